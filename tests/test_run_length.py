"""How long a run is and what is held out or learned, where other tools count in other ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import tiny
from triptych.api.data import load_run
from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.run.prepare import plan_training, prepare
from triptych.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("length")
    tiny.write_model(folder / "model", max_pixels=84 * 84)
    tiny.write_dataset(folder, 10)
    return folder


def steps(folder: Path, *overrides: str, **settings: Any) -> tuple[int, float]:
    path = tiny.write_run(folder, folder / "model", folder / "train.json", **settings)
    loaded = run_file.load(path, overrides)
    plan = plan_training(loaded, prepare(loaded, ("train",), Terminal()).corpora["train"], 1)
    return -(-len(plan) // loaded.train.rows_per_step), plan.epochs


@pytest.mark.parametrize("average", ["tokens", "rows"])
def test_a_part_of_an_epoch_is_rounded_up_to_whole_steps(folder: Path, average: str) -> None:
    given = f"train.average={average}"
    # 10 samples in rows of 2: 5 rows, in steps of 2 rows
    assert steps(folder, "batch.samples=2", "train.rows_per_step=2", "train.epochs=0.5", given)[0] == 2
    whole = steps(folder, "batch.samples=2", "train.rows_per_step=2", "train.epochs=3", given)[0]
    assert whole == (9 if average == "rows" else 8)
    part = steps(folder, "batch.samples=2", "train.rows_per_step=2", "train.epochs=2.5", given)[0]
    assert part == (8 if average == "rows" else 7)
    assert steps(folder, "batch.samples=2", "train.epochs=2.0") == (10, 2.0)


def test_max_steps_take_as_many_epochs_as_they_need(folder: Path) -> None:
    assert steps(folder, "batch.samples=2", "train.epochs=null", "train.max_steps=23") == (23, 4.6)
    assert steps(folder, "batch={tokens: 400}", "train.epochs=null", "train.max_steps=17")[0] == 17
    assert steps(folder, "batch.samples=2", "train.epochs=1", "train.max_steps=23")[0] == 5
    with pytest.raises(ConfigError, match="ends after `epochs` or `max_steps`"):
        steps(folder, "train.epochs=null")


@pytest.mark.parametrize("wanted", [0.25, 3])
def test_rows_are_held_out_by_the_permutation_of_datasets(folder: Path, wanted: float) -> None:
    data = {"hold_out": wanted, "hold_out_by": "rows"}
    path = tiny.write_run(folder, folder / "model", folder / "train.json", data=data)
    samples = {split: load_run(path).samples(split) for split in ("train", "eval")}
    found = {split: [sample.origin.line - 1 for sample in held] for split, held in samples.items()}
    expected = Dataset.from_dict({"row": list(range(10))}).train_test_split(test_size=wanted, seed=42)
    assert found["eval"] == sorted(expected["test"]["row"])
    assert found["train"] == sorted(expected["train"]["row"])


def test_everything_is_learned_with_the_tokens_of_images(folder: Path) -> None:
    for limit in ({}, {"max_tokens": 60}):
        data = {"supervise": "everything", **limit}
        path = tiny.write_run(folder, folder / "model", folder / "train.json", data=data)
        samples = load_run(path).samples()
        for sample in samples:
            assert np.array_equal(sample.labels[1:], sample.input_ids[1:]), sample.origin
        supervised = samples.corpus.supervised.tolist()
        assert supervised == [len(sample.input_ids) - 1 for sample in samples], limit
