"""Lists of data sets: entries of dataset_info.json and of other tools' lists become sources, by the rules there."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from triptych.api.data import load_run
from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.sources.lists.dataset_info import entry_source
from triptych.sources.lists.entries import expand


def source(entry: dict[str, Any]) -> dict[str, Any]:
    return entry_source({"one": entry}, "one", "data/dataset_info.json").source


def test_columns_that_are_left_out_are_none() -> None:
    found = source({"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "chat"}})
    assert (found["path"], found["columns"]) == ("data/a.json", {"messages": "chat"})
    assert {"images", "image", "system", "videos", "conversations"} <= set(found["ignore"])
    named = {"messages": "messages", "images": "images", "system": "prompt"}
    found = source({"file_name": "/b/a.json", "formatting": "sharegpt", "columns": named})
    assert (found["path"], found["columns"]) == ("/b/a.json", {"system": "prompt"})
    assert {"images", "messages"}.isdisjoint(found["ignore"])
    assert {"image", "system", "conversations"} <= set(found["ignore"])


def test_tags_are_named_where_they_are_not_the_usual_ones() -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"}
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    assert source(entry)["tags"] == {"user": "U", "assistant": "A", "system": "S"}
    assert "tags" not in source(
        {**entry, "tags": {**tags, "user_tag": "user", "assistant_tag": "gpt", "system_tag": "system"}}
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hf_hub_url": "a/b"}, "hf download a/b --repo-type dataset"),
        ({"script_url": "a.py"}, "a program"),
        ({"file_name": "a.json", "ranking": True}, "preference data"),
        ({"file_name": "a.json", "formatting": "sharegtp"}, "alpaca, sharegpt, openai"),
        ({"file_name": "a.json", "colums": {}}, "did you mean `columns`?"),
        ({"file_name": "a.json", "columns": {"mesages": "m"}}, "unknown `columns.mesages`; did you mean `messages`?"),
        ({"file_name": "a.json", "formatting": "sharegpt", "columns": {"images": "images"}}, "names no `messages`"),
        ({"file_name": "a.json", "formatting": "sharegpt", "tags": {"role_tag": "r"}}, "names no `content_tag`"),
        ({"file_name": "a.json", "columns": {"prompt": "q"}}, "names no `response`"),
        ({"file_name": "a.json", "split": "train[:10%]"}, "a file is read whole"),
        ({"file_name": "a.json", "columns": {}}, "names no `response`"),
        ({"formatting": "sharegpt"}, "no `file_name`"),
        ({"file_name": "a.json", "num_samples": "many"}, "a number of samples"),
    ],
)
def test_an_entry_that_cannot_be_a_source_says_why(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source(entry)
    assert message in str(caught.value), entry
    assert "data/dataset_info.json" in str(caught.value)


def test_records_are_read_by_the_columns_and_tags_of_their_entry(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    tiny.write_image(tmp_path / "img" / "a.png", 60, 80)
    turns = [{"who": "S", "text": "Be brief."}, {"who": "U", "text": "<image>Old?"}, {"who": "A", "text": "No."}]
    records: dict[str, Any] = {
        "dialogues": [{"chat": turns, "photos": "a.png", "images": ["gone.png"], "system": "Not this."}],
        "pairs": [{"instruction": "<image>Old?", "input": "Say.", "output": "No.", "images": ["a.png"], "system": "x"}],
        "short": [{"q": "<image>Old?", "input": "not read", "a": "No.", "images": ["a.png"]}],
    }
    for name, content in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"}
    alpaca = {"prompt": "instruction", "query": "input", "response": "output", "images": "images"}
    info = {
        "dialogues": {"formatting": "sharegpt", "columns": {"messages": "chat", "images": "photos"}, "tags": tags},
        "pairs": {"columns": alpaca},
        "short": {"columns": {"prompt": "q", "response": "a", "images": "images"}},
    }
    listed = {name: {"file_name": f"{name}.json", **entry} for name, entry in info.items()}
    (tmp_path / "dataset_info.json").write_text(json.dumps(listed))
    path = tmp_path / "run.yaml"
    train = [{"info": "dataset_info.json", "name": ["dialogues", "pairs", "short"], "media_dir": "img"}]
    content = {"model": {"path": str(model)}, "data": {"train": train}, "batch": {"samples": 1}, "output": "out"}
    path.write_text(json.dumps(content))
    samples = load_run(path).samples()
    texts = [samples[number].text() for number in range(len(samples))]
    assert len(texts) == 3
    for text, parts in zip(texts, (("Be brief.", "Old?", "No."), ("Old?\nSay.", "No."), ("Old?", "No.")), strict=True):
        assert all(part in text for part in parts), text
    assert not any("not read" in text or "Not this" in text for text in texts)
    assert all(len(samples[number].images) == 1 for number in range(3))


def test_lists_of_other_tools_become_sources_too(tmp_path: Path) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text(
        json.dumps({"a": {"root": "img", "annotation": "a.jsonl", "repeat_time": 2}, "b": {"annotation": "/b.json"}})
    )
    found = expand([{"info": str(meta)}, {"path": "own.json"}])
    assert found == [
        {"path": f"{tmp_path}/a.jsonl", "media_dir": f"{tmp_path}/img", "epochs": 2},
        {"path": "/b.json"},
        {"path": "own.json"},
    ]
    qwen = tmp_path / "qwen.json"
    qwen.write_text(json.dumps({"c": {"annotation_path": "c.json", "data_path": "img", "sampling_rate": 0.5}}))
    assert expand([{"info": str(qwen), "name": "c", "weight": 1}])[0] == {
        "path": f"{tmp_path}/c.json",
        "media_dir": f"{tmp_path}/img",
        "epochs": 0.5,
        "weight": 1,
    }
    llava = tmp_path / "llava.yaml"
    llava.write_text("datasets:\n  - json_path: d.json\n    sampling_strategy: random:30\n  - json_path: e.json\n")
    assert expand([{"info": str(llava)}]) == [
        {"path": f"{tmp_path}/d.json", "max_samples": 30},
        {"path": f"{tmp_path}/e.json"},
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a"}, "goes with `info`"),
        ({"info": "nothing.json", "name": "a"}, "cannot read the list of data sets nothing.json"),
        ({"info": "LIST", "name": "pairz"}, "did you mean 'pairs'?"),
        ({"info": "LIST"}, "say which data set with `name`; it has pairs"),
        ({"info": "LIST", "name": []}, "the name of a data set, or a list of names"),
        ({"info": "LIST", "name": "pairs", "path": "b.json"}, "this one has both"),
    ],
)
def test_what_a_source_names_must_be_in_its_list(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    place = tmp_path / "dataset_info.json"
    place.write_text(json.dumps({"pairs": {"file_name": "a.json"}}))
    content = {key: str(place) if value == "LIST" else value for key, value in given.items()}
    with pytest.raises(ConfigError) as caught:
        run_file.from_mapping({"data": {"train": [content]}})
    assert message in str(caught.value), given
