"""Every token's temporal, height and width position is the one ``get_rope_index`` of transformers gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import tiny
from equivalence import oracle
from families import FAMILIES
from triptych.commands.encode import PixelLimits, encode
from triptych.errors import Origin
from triptych.family.family import ModelFiles, read_model_files
from triptych.images.geometry import Geometry
from triptych.text.conversation import Conversation, ImageRef, Turn
from triptych.text.layout import Layout, lay_out
from triptych.text.template import Encoded, Template


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tiny.write_model(tmp_path_factory.mktemp("model"), family=request.param)
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(model: PreTrainedModel) -> ModelFiles:
    return read_model_files(model.name_or_path)


@pytest.fixture(scope="module")
def template(files: ModelFiles) -> Template:
    return files.template()


def rope_index(model: PreTrainedModel, ids: list[int], grids: list[list[int]]) -> list[list[int]]:
    """(3, T) positions of one sample by transformers."""
    tokens = torch.tensor([ids])
    positions, _ = model.model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    return positions[:, 0].tolist()


def random_layout(template: Template, geometry: Geometry, seed: int) -> tuple[Layout, int]:
    """A conversation of random turns, words and images, and its number of images."""
    random = np.random.default_rng(seed)
    turns: list[Turn] = []
    sizes: list[tuple[int, int]] = []
    for number in range(2 * int(random.integers(1, 5))):
        parts: list[str | int] = []
        # A model may be shown an image wherever a text may stand: before, between, after, right after another.
        for _ in range(int(random.integers(1, 5))):
            if random.random() < 0.5:
                parts.append(len(sizes))
                sizes.append(geometry.resized(*(int(side) for side in random.integers(20, 500, 2))))
            elif not parts or isinstance(parts[-1], int):
                parts.append(" ".join(random.choice(tiny.WORDS, int(random.integers(1, 20)))))
        turns.append(Turn("assistant" if number % 2 else "user", tuple(parts), number % 2 == 1))
    images = tuple(ImageRef(f"{number}.png") for number in range(len(sizes)))
    encoded = template.encode(Conversation(tuple(turns), images, Origin("random", seed)))
    return lay_out(encoded, sizes, geometry, Origin("random", seed)), len(sizes)


@pytest.mark.parametrize("seed", range(40))
def test_positions_of_random_conversations_are_rope_index(
    model: PreTrainedModel, files: ModelFiles, template: Template, seed: int
) -> None:
    layout, images = random_layout(template, files.geometry, seed)
    assert layout.grids.shape == (images, 3)
    expected = rope_index(model, layout.input_ids.tolist(), layout.grids.tolist())
    assert layout.position_ids.tolist() == expected


def test_the_random_conversations_cover_none_one_and_many_images(files: ModelFiles, template: Template) -> None:
    counts = [random_layout(template, files.geometry, seed)[1] for seed in range(40)]
    assert 0 in counts
    assert 1 in counts
    assert max(counts) > 8


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 3), (7, 7), (1, 200)], ids=lambda side: str(side)
)
def test_positions_around_a_image_of_any_shape_are_rope_index(
    model: PreTrainedModel, files: ModelFiles, template: Template, height: int, width: int
) -> None:
    turns = (Turn("user", (0, 1, "then", 2), False), Turn("assistant", ("yes",), True))
    encoded = template.encode(Conversation(turns, (ImageRef("x"),) * 3, Origin("shape", 1)))
    side = files.geometry.factor
    layout = lay_out(encoded, [(side * height, side * width)] * 3, files.geometry, Origin("shape", 1))
    assert layout.position_ids.tolist() == rope_index(model, layout.input_ids.tolist(), layout.grids.tolist())


def test_the_lines_of_encode_hold_the_rope_index(model: PreTrainedModel, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 24)
    out = tmp_path / "out.jsonl"
    encode([str(data)], model=model.name_or_path, limits=PixelLimits(), out=out, pixels=None)
    lines = oracle.read_lines(out)
    assert len(lines) == 24
    for line in lines:
        assert line["position_ids"] == rope_index(model, line["input_ids"], line["image_grid_thw"])


def test_the_drawn_example_of_the_layout_holds() -> None:
    word, start, pad, end = 5, 6, 7, 8
    encoded = Encoded(
        ids=np.array([word, start, pad, end, word], np.int32),
        weights=np.array([0, 0, 0, 0, 1], np.float32),
        slots=np.array([2], np.int32),
    )
    geometry = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=784, max_pixels=784 * 64)
    layout = lay_out(encoded, [(2 * 28, 3 * 28)], geometry, Origin("drawn", 1))
    assert layout.input_ids.tolist() == [word, start, *[pad] * 6, end, word]
    assert layout.supervised.tolist() == [False] * 9 + [True]
    assert layout.grids.tolist() == [[1, 4, 6]]
    assert layout.position_ids.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
