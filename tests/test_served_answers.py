"""What an export tells servers: to answer as the evaluation did, and to pad a batch where its answers begin."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

import tiny
from triptych.exporting import generation
from triptych.exporting.export import ExportOptions, export
from triptych.exporting.generation import BASE_GENERATION, GENERATION_CONFIG
from triptych.family.family import FAMILIES, read_model_files
from triptych.inference.answering import PromptDataset
from triptych.inference.generate import Prompt, answer
from triptych.model.loading import PixelNormalizer
from triptych.model.trained import quiet_loading
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# What these models are released with, token ids aside.
RELEASED: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6},
    "qwen3_vl": {"do_sample": True, "repetition_penalty": 1.0, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
}


@pytest.fixture(scope="module", params=RELEASED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Adapters of a family with its released generation config, and their export."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.write_model(folder / "base", family=request.param, max_pixels=96 * 96)
    path = base / GENERATION_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **RELEASED[request.param]}))
    data = tiny.write_dataset(folder, 6)
    lora = {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 4, "alpha": 64}}
    sources = {"eval": [{"path": str(data)}]}
    optimisation = {"warmup": 0, "learning_rate": 2e-3}
    settings = load(tiny.write_run(folder, base, data, model=lora, data=sources, train=optimisation))
    final = train(settings, prepare(settings, ("train", "eval"), Terminal()), Terminal())
    export(final, folder / "out", Terminal(), ExportOptions(dtype="float32"))
    return final, folder / "out"


def test_an_export_answers_without_settings_as_eval_does(exported: tuple[Path, Path]) -> None:
    final, out = exported
    settings = load(final / "run.yaml")
    prepared = prepare(settings, ("eval",), Terminal())
    files = read_model_files(str(out))
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    corpus = prepared.corpora["eval"]
    asked = PromptDataset(corpus, prepared.encoder.template, range(len(corpus)))
    for prompt in (asked[index] for index in range(len(asked))):
        assert isinstance(prompt, Prompt)
        (expected,) = answer(model, [prompt], prepared.encoder.template, PixelNormalizer(files), max_new_tokens=8)
        ids = torch.from_numpy(prompt.layout.input_ids)[None]
        inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if len(prompt.pixels):
            inputs |= {
                "pixel_values": PixelNormalizer(files)(torch.from_numpy(prompt.pixels)),
                "image_grid_thw": torch.from_numpy(prompt.layout.grids),
                "mm_token_type_ids": (ids == prepared.encoder.template.image_pad).int(),
            }
        written = model.generate(**inputs, max_new_tokens=8)[0, ids.shape[1] :].tolist()
        assert written[: len(expected.ids)] == expected.ids


def test_the_generation_config_is_greedy_and_the_bases_own_is_kept(exported: tuple[Path, Path]) -> None:
    _, out = exported
    written = json.loads((out / GENERATION_CONFIG).read_text())
    base = json.loads((out / BASE_GENERATION / GENERATION_CONFIG).read_text())
    # What vLLM takes as defaults of a request.
    assert (written["temperature"], written["repetition_penalty"], written["do_sample"]) == (0.0, 1.0, False)
    assert not {"top_p", "top_k", "min_p"} & written.keys()
    assert set(written["eos_token_id"]) >= set(base["eos_token_id"])
    assert base["do_sample"] is True
    kept = GenerationConfig.from_pretrained(out, f"{BASE_GENERATION}/{GENERATION_CONFIG}")
    assert kept.temperature == base["temperature"]


def test_loading_an_export_says_nothing_about_its_temperature(
    exported: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, out = exported
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("transformers.generation.configuration_utils")
    logger.addHandler(caplog.handler)
    with quiet_loading():
        GenerationConfig.from_pretrained(out)
    assert not caplog.records
    transformers_logging.warning_once.cache_clear()  # it says things once
    GenerationConfig.from_pretrained(out)
    logger.removeHandler(caplog.handler)
    assert any("temperature" in record.getMessage() for record in caplog.records)


def test_the_card_says_how_requests_are_answered(exported: tuple[Path, Path]) -> None:
    _, out = exported
    card = (out / "README.md").read_text()
    assert "A request that sends no settings is answered as in the evaluation" in card
    assert "do_sample true" in card
    assert '--override-generation-config \'{"temperature": 0.0, "repetition_penalty": 1.0}\'' in card


def test_a_base_that_is_greedy_too_needs_no_word(small_model_dir: Path) -> None:
    assert generation.own_settings(small_model_dir) == []
    assert BASE_GENERATION not in generation.note(small_model_dir)


def test_adapters_and_exports_name_their_processor_and_pad_on_the_left(exported: tuple[Path, Path]) -> None:
    for folder in exported:
        names = {json.loads((folder / name).read_text())["processor_class"] for name in CLASSED}
        family = read_model_files(str(exported[1])).family
        assert names == {family.processor}, folder
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.padding_side == "left"
        padded = tokenizer(["one", "one and more words"], padding=True)["attention_mask"]
        assert padded[0][-1] == 1
        assert padded[0][0] == 0


CLASSED = ("preprocessor_config.json", "tokenizer_config.json")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_processors_of_families_are_those_of_transformers(model_type: str) -> None:
    assert FAMILIES[model_type].processor == PROCESSOR_MAPPING_NAMES[model_type]


def test_a_batch_through_the_exported_processor_is_answered_as_one_by_one(exported: tuple[Path, Path]) -> None:
    pytest.importorskip("torchvision", reason="transformers' processors need torchvision")
    from transformers import AutoProcessor

    final, out = exported
    assert AutoProcessor.from_pretrained(final).tokenizer.padding_side == "left"
    processor = AutoProcessor.from_pretrained(out)
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    images = [Image.open(path).convert("RGB") for path in sorted((final.parent.parent / "images").glob("*"))[:3]]
    conversations = [
        [{"role": "user", "content": [*({"type": "image", "image": image} for image in images[:count]), *TEXT]}]
        for count in (1, 3, 2)
    ]

    def ask(chats: list[Any]) -> list[str]:
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        written = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
        return list(processor.batch_decode(written, skip_special_tokens=True))

    assert ask(conversations) == [ask([chat])[0] for chat in conversations]


TEXT = [{"type": "text", "text": "Compare."}]
