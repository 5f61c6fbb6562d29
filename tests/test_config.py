"""Run files: every setting is checked, named and explained; what is saved reads back the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.run.settings import RunSettings, json_schema

LEAST = """
model: {path: some/model}
data:
  train: [{path: train.json}, {path: [more.json, other.jsonl], media_dir: images}]
batch: {samples: 4}
output: runs/first
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(LEAST)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run_file.load(path, overrides)
    return str(caught.value)


def test_the_least_run_file_has_a_default_for_everything_else(run: Path) -> None:
    loaded = run_file.load(run)
    assert loaded.batch.samples == 4
    assert [source.files for source in loaded.sources("eval")] == []
    first, second = loaded.sources("train")
    assert (first.path, first.media_dir, first.confine) == (str(run.parent / "train.json"), None, False)
    names = [str(run.parent / name) for name in ("more.json", "other.jsonl", "images")]
    assert (second.path, second.media_dir) == (tuple(names[:2]), names[2]), "paths start from the run file's folder"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=3", "unknown setting `trian`; did you mean `train`?"),
        ("train.learning_rte=3", "unknown setting `train.learning_rte`; did you mean `learning_rate`?"),
        ("model.lora.rnak=3", "unknown setting `model.lora.rnak`; did you mean `rank`?"),
        ("data.train.0.media=x", "unknown setting `data.train.0.media`; did you mean `media_dir`?"),
        ("data.train.1.paht=x", "unknown setting `data.train.1.paht`; did you mean `path`?"),
        ("batch.sampels=3", "unknown setting `batch.sampels`; did you mean `samples`?"),
        ("zzz=3", "unknown setting `zzz`"),
        # Names that look like pydantic's own.
        ("strategy=3", "unknown setting `strategy`"),
        ("integrations=3", "unknown setting `integrations`"),
        ("train.strategy=3", "unknown setting `train.strategy`"),
        ("train.literal_x=3", "unknown setting `train.literal_x`"),
        ("train.str=3", "unknown setting `train.str`"),
        ("int=3", "unknown setting `int`"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(run: Path, override: str, message: str) -> None:
    assert refused(run, override).startswith(f"{run}: {message}")


def test_a_name_that_is_near_nothing_gets_no_suggestion(run: Path) -> None:
    assert refused(run, "zzz=3") == f"{run}: unknown setting `zzz`"


def test_all_mistakes_are_reported_each_on_its_line(run: Path) -> None:
    lines = refused(run, "train.epochs=0", "train.speed=1", "batch.samples=no", "model.train=half").splitlines()
    assert [line.split("`")[1] for line in lines] == ["model.train", "batch.samples", "train.epochs", "train.speed"]


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("train.epochs=0", "train.epochs"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.warmup=.nan", "train.warmup"),
        ("train.save_every=often", "train.save_every"),
        ("train.part_learning_rates.visoin=1e-5", "train.part_learning_rates.visoin"),
        ("model.freeze=[tail]", "model.freeze.0"),
        ("model.lora.targets=3", "model.lora.targets"),
        ("model.path=", "model.path"),
        ("data.train=x.json", "data.train"),
        ("data.too_long=squeeze", "data.too_long"),
        ("data.workers=-1", "data.workers"),
        ("train=", "train"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_its_place(run: Path, override: str, place: str) -> None:
    assert all(line.startswith(f"{run}: `{place}`: ") for line in refused(run, override).splitlines())


@pytest.mark.parametrize("group", ["model", "data", "batch", "output"])
def test_what_has_no_default_is_named_when_it_is_missing(run: Path, group: str) -> None:
    lines = [
        line for line in LEAST.splitlines() if not line.startswith(group) and (group != "data" or line[:2] != "  ")
    ]
    run.write_text("\n".join(lines))
    assert refused(run) == f"{run}: `{group}` is missing"


@pytest.mark.parametrize("batch", ["{}", "{samples: 2, tokens: 100}", "{patches: 100}", "{samples: 2, patches: 100}"])
def test_a_row_is_filled_in_exactly_one_way(run: Path, batch: str) -> None:
    assert refused(run, f"batch={batch}").startswith(f"{run}: `batch`: ")


@pytest.mark.parametrize("batch", ["{samples: 2}", "{tokens: 100}", "{tokens: 100, patches: 400}"])
def test_each_way_of_filling_a_row_is_accepted(run: Path, batch: str) -> None:
    spec = run_file.load(run, [f"batch={batch}"]).batch.spec()
    assert (spec.samples is None) != (spec.tokens is None)


def test_a_run_in_which_nothing_learns_is_refused(run: Path) -> None:
    assert "nothing would learn" in refused(run, "model.freeze=[vision, merger, language]")
    assert run_file.load(run, ["model.freeze=[vision, merger]"]).model.freeze == ["vision", "merger"]


def test_contradicting_limits_are_refused(run: Path, model_dir: Path) -> None:
    from triptych.family.family import read_model_files
    from triptych.run.prepare import make_encoder

    assert "larger than `max_pixels`" in refused(run, "data.min_pixels=2000", "data.max_pixels=1000")
    # One of the two may be the model's own.
    with pytest.raises(ConfigError, match=r"min_pixels 3,136 is larger than data\.max_pixels 1,000"):
        make_encoder(read_model_files(str(model_dir)), run_file.load(run, ["data.max_pixels=1000"]))


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4", "+1e-4"])
def test_every_way_to_write_a_number_is_a_number(run: Path, number: str) -> None:
    assert run_file.load(run, [f"train.learning_rate={number}"]).train.learning_rate == 1e-4
    run.write_text(LEAST + f"train: {{learning_rate: {number}, hf: {{adam_epsilon: {number}}}}}")
    loaded = run_file.load(run)
    assert loaded.train.learning_rate == loaded.train.hf["adam_epsilon"] == 1e-4


def test_overrides_reach_into_groups_and_lists_and_make_what_is_missing(run: Path) -> None:
    loaded = run_file.load(
        run,
        [
            "train.epochs=3",
            "train.epochs=4",
            "data.train.0.path=a.json",
            "data.train.1.path=[b.json, c.json]",
            "data.train.1.tags.role=speaker",
            "data.eval=[{path: held.json}]",
            "train.hf.adam_beta2=0.95",
            "model.lora={rank: 8, targets: [q_proj]}",
            "output=runs/a=b",
        ],
    )
    assert loaded.train.epochs == 4
    assert [source.path for source in loaded.data.train] == ["a.json", ["b.json", "c.json"]]
    assert loaded.data.train[1].tags == {"role": "speaker"}
    assert loaded.data.train[1].media_dir == str(run.parent / "images"), "the rest of the element stays"
    assert loaded.data.eval[0].path == "held.json"
    assert loaded.train.hf == {"adam_beta2": 0.95}
    assert (loaded.model.lora.rank, loaded.model.lora.targets, loaded.model.lora.alpha) == (8, ["q_proj"], 32.0)
    assert loaded.output == "runs/a=b"


NOWHERE = ["epochs", "=3", "", "data.train.7.path=x", "data.train.x=1", "data.train.²=x", "output.x=1"]
NO_YAML = ["train.epochs=[", "train.hf.x=2024-99-99", "train.hf.x=" + "[" * 1200]


@pytest.mark.parametrize("override", [*NOWHERE, *NO_YAML], ids=lambda override: override[:20])
def test_an_override_that_leads_nowhere_is_refused(run: Path, override: str) -> None:
    assert override[:20] in refused(run, override)


BROKEN = [b"", b"[]", b"text", b"{", b"\0", b"\xff\xfe", b"a: *b", b"--- a\n--- b", b"x: 2024-13-45", b"[" * 1200]
STRANGE_KEYS = [b"? [a]\n: b", b"? {a: b}\n: c", b"1: 2", b"train: {save_every: {2024-01-01: 1}}"]
HOLDS_ITSELF = [b"train: {save_every: &a {x: *a}}"]


@pytest.mark.parametrize("content", [*BROKEN, *STRANGE_KEYS, *HOLDS_ITSELF], ids=lambda content: repr(content[:20]))
def test_a_file_that_is_no_run_file_is_refused_by_name(run: Path, content: bytes) -> None:
    run.write_bytes(content)
    assert str(run) in refused(run)


def test_a_missing_run_file_is_named(tmp_path: Path) -> None:
    assert "gone.yaml" in refused(tmp_path / "gone.yaml")
    assert str(tmp_path) in refused(tmp_path)


# PyYAML reads NEL, a line break of old mainframes, as another line break.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
words = st.text(characters, min_size=1, max_size=12) | st.sampled_from(
    ["1e5", "1e-4", "+1.e3", "null", "yes", "~", "0x1", "1_000", "2024-01-01", "a: b", "- a", "#", " x ", "é\u2028图"]
)
columns = st.sampled_from(["images", "messages", "system"])
floats = st.floats(1e-12, 1e6)
hf_names = st.sampled_from(["run_name", "project", "optim_args", "ddp_timeout", "adam_beta1"])
runs = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"path": words}, optional={"freeze": st.just(["vision"])}),
        "data": st.fixed_dictionaries(
            {
                "train": st.lists(
                    st.fixed_dictionaries(
                        {"path": words | st.lists(words, min_size=1, max_size=2)},
                        optional={"media_dir": words, "columns": st.dictionaries(columns, words, max_size=2)},
                    ),
                    min_size=1,
                    max_size=2,
                )
            },
            optional={"max_tokens": st.integers(1, 10**6), "on_error": st.sampled_from(["stop", "skip"])},
        ),
        "batch": st.fixed_dictionaries({"samples": st.integers(1, 99)})
        | st.fixed_dictionaries({"tokens": st.integers(1, 99)}),
        "output": words,
    },
    optional={
        "train": st.fixed_dictionaries(
            {"learning_rate": floats, "save_every": st.just("epoch") | st.integers(1, 9)},
            optional={"hf": st.dictionaries(hf_names, words | floats | st.booleans() | st.none(), max_size=3)},
        )
    },
)


@settings(max_examples=100, deadline=None)
@given(content=runs)
def test_the_saved_run_file_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    resolved = RunSettings.model_validate(content)
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(run_file.to_yaml(resolved), encoding="utf-8")
    assert run_file.load(path) == RunSettings.model_validate(run_file.absolute_paths(resolved.model_dump()))


SCHEMA = json.loads(json_schema())


def groups() -> list[dict[str, Any]]:
    """Each group of settings in the JSON Schema."""
    return [SCHEMA, *SCHEMA["$defs"].values()]


def description(field: dict[str, Any]) -> str:
    """What an editor shows: the field's sentence, or that of the group it refers to."""
    return field.get("description") or SCHEMA["$defs"][field["$ref"].rpartition("/")[2]]["description"]


def test_every_setting_and_every_group_is_described_in_the_schema() -> None:
    assert len(groups()) > 6
    for group in groups():
        assert len(group["description"]) > 10, group["title"]
        assert group["additionalProperties"] is False, group["title"]
        for name, field in group["properties"].items():
            assert len(description(field)) > 10, f"{group['title']}.{name}"


def test_there_are_few_enough_settings_to_read() -> None:
    values = [field for group in groups() for field in group["properties"].values() if "$ref" not in field]
    assert len(values) < 100, "a group's name is none: only what holds a value is one"


def test_settings_do_not_change(run: Path) -> None:
    loaded = run_file.load(run)
    with pytest.raises(ValueError, match="frozen"):
        loaded.output = "x"  # type: ignore[misc]
