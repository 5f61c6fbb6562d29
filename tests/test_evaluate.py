"""Answering held-out samples: in batches as alone, scores per task, files that say what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

import tiny
from browser import page_data
from triptych.errors import DataError
from triptych.inference.answering import predict
from triptych.inference.evaluate import evaluate, evaluate_all, model_names
from triptych.inference.predictions import Prediction, score
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal


@pytest.fixture
def run_file(small_model_dir: Path, tmp_path: Path) -> Path:
    data = tiny.write_dataset(tmp_path, 9, seed=2)
    settings = {"eval": [{"path": str(data)}]}
    return tiny.write_run(tmp_path, small_model_dir, data, data=settings, eval={"max_new_tokens": 6})


def test_a_batch_of_samples_is_answered_as_each_alone(small_model_dir: Path, run_file: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(small_model_dir).eval()
    answers = []
    for size in (1, 4):
        settings = load(run_file, [f"eval.batch_size={size}"])
        prepared = prepare(settings, ("eval",), Terminal())
        answers.append(predict(settings, prepared, model, Terminal()))
    assert len(answers[0]) == 9
    assert answers[0] == answers[1]
    assert len({answer.prediction for answer in answers[0]}) > 1, "the answers depend on the sample"


def test_predictions_scores_and_page_are_written(small_model_dir: Path, run_file: Path) -> None:
    settings = load(run_file)
    scores = evaluate(settings, prepare(settings, ("eval",), Terminal()), small_model_dir, Terminal()).scores
    folder = Path(settings.output) / "eval" / small_model_dir.name
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    records = json.loads(Path(settings.data.eval[0].path).read_text())
    assert [line["reference"] for line in lines] == [item["conversations"][-1]["value"] for item in records]
    assert [line["images"] for line in lines] == [item["images"] for item in records]
    assert [line["origin"].rpartition(":")[2] for line in lines] == [str(n) for n in range(1, 10)]
    assert list(scores) == ["task-0", "task-1", "all"]
    assert json.loads((folder / "scores.json").read_text())["all"]["samples"] == 9
    cards = page_data(folder / "index.html")["cards"]
    assert [len(card["images"]) for card in cards] == [len(item["images"]) for item in records]
    assert all(image["thumb"].startswith("data:image/jpeg") for card in cards for image in card["images"])
    assert [card["reference"] for card in cards] == [line["reference"] for line in lines]


def test_the_prompt_holds_the_history_and_not_the_last_answer(run_file: Path) -> None:
    settings = load(run_file)
    prepared = prepare(settings, ("eval",), Terminal())
    template, corpus = prepared.encoder.template, prepared.corpora["eval"]
    records = json.loads(Path(settings.data.eval[0].path).read_text())
    prompt, answer = template.split_answer(corpus.encoded(0))
    assert template.decode(answer.tolist()) == records[0]["conversations"][3]["value"]
    shown = template.readable(prompt)
    first = records[0]["conversations"][1]["value"]
    assert shown.endswith(f"assistant: {first}\nuser: And why?")
    assert template.tokenizer.decode(prompt.ids.tolist(), skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_an_image_that_broke_since_it_was_indexed_ends_the_evaluation(small_model_dir: Path, run_file: Path) -> None:
    settings = load(run_file)
    prepared = prepare(settings, ("eval",), Terminal())
    image = sorted((run_file.parent / "images").iterdir())[0]
    image.unlink()
    model = AutoModelForImageTextToText.from_pretrained(small_model_dir)
    with pytest.raises(DataError, match=image.name):
        predict(settings, prepared, model, Terminal())


def test_scores_count_exact_matches_per_task() -> None:
    def item(task: str | None, match: bool) -> Prediction:
        return Prediction("a:1", task, "", [], "", "", match, True)

    scores = score([item("b", True), item("a", False), item("b", False), item(None, True)])
    assert {name: (value.samples, value.matches) for name, value in scores.items()} == {
        "a": (1, 0),
        "b": (2, 1),
        "all": (4, 2),
    }


def test_several_models_are_compared_by_task_and_field(
    small_model_dir: Path, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_model(tmp_path / "other" / small_model_dir.name, max_pixels=84 * 84, seed=5)
    data = Path(load(run_file).data.eval[0].path)
    records = json.loads(data.read_text())
    for number, record in enumerate(records):
        record["meta"] = {"language": "zh" if number % 3 else "en"}
    data.write_text(json.dumps(records))
    scorers = '{task-0: [number, exact_match], "*": [token_f1]}'
    settings = load(run_file, [f"eval.scorers={scorers}", "eval.by=[meta.language, nothing]"])
    prepared = prepare(settings, ("eval",), Terminal())
    found = evaluate_all(settings, prepared, [small_model_dir, other], Terminal())
    names = [item.folder.name for item in found]
    assert len(set(names)) == 2, "two folders of one name do not share their files"
    for item in found:
        assert {name: score.samples for name, score in item.by["meta.language"].items()} == {"en": 3, "zh": 6}
        assert item.by["nothing"] == {}
        assert [list(one.scores) for one in item.predictions[:2]] == [["number", "exact_match"], ["token_f1"]]
        assert set(item.scores["all"].means) == {"number", "exact_match", "token_f1"}
    page = page_data(found[0].folder.parent / "compare.html")
    assert page["models"] == names
    assert sum(page["cells"]["0,1"].values()) == len(page["cards"]) == 9
    same = {name.replace(" → ", " ").split()[0] for name in page["cells"]["0,0"]}
    assert all(name in ("right → right", "wrong → wrong") for name in page["cells"]["0,0"]), same
    assert "comparison:" in capsys.readouterr().err


def test_what_cannot_be_scored_is_said_once(
    small_model_dir: Path, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(run_file, ["eval.scorers=[json_fields]", "eval.limit=4"])
    evaluation = evaluate(settings, prepare(settings, ("eval",), Terminal()), small_model_dir, Terminal())
    assert evaluation.scores["all"].means == {}
    said = capsys.readouterr().err
    assert said.count("json_fields: 4 answers are not scored") == 1
    assert f"{settings.data.eval[0].path}:1" in said.replace("\n", "")


def test_folders_get_names_of_their_own() -> None:
    for folders, wanted in (
        (["a/final"], ["final"]),
        (["a/final", "b/final"], ["a-final", "b-final"]),
        (["a/checkpoint-1", "a/checkpoint-2"], ["checkpoint-1", "checkpoint-2"]),
        (["a/final", "a/final"], ["final", "final-2"]),
    ):
        assert model_names([Path(folder) for folder in folders]) == wanted, folders
