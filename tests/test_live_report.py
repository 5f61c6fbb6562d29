"""The report of a run: training is the same with it, answers are those of the model, the page follows the run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import tiny
from browser import browser, page_data
from triptych.cli import app
from triptych.inference.evaluate import evaluate
from triptych.recovery.start import starting
from triptych.reports import history, rules
from triptych.reports.answers import Matter, Showing, ShownAnswer, read_showings
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SHOW = {"samples": 3, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("live"), 12, seed=6)


def run(folder: Path, model: Path, data: Path, *, resume: bool = False, **train_settings: Any) -> Path:
    """Train; returns the output folder."""
    folder.mkdir(exist_ok=True)
    settings = {"epochs": 2, "save_every": 2, "eval_every": 2, **train_settings}
    model_settings = {"train": "lora", "lora": {"rank": 2, "dropout": 0.2}}
    held_out = {"eval": [{"path": str(data)}]}
    path = tiny.write_run(folder, model, data, data=held_out, train=settings, model=model_settings)
    out = Terminal()
    with starting(load(path), out, resuming=resume) as (resolved, prepared, start):
        train(resolved, prepared, out, start=start)
    return folder / "run"


def live_data(output: Path) -> Any:
    text = (output / "report-data.js").read_text()
    return json.loads(text.removeprefix("liveReport(").removesuffix(");\n"))


@pytest.fixture(scope="module")
def shown(small_model_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("shown"), small_model_dir, data, show=SHOW)


def losses(output: Path) -> list[Any]:
    """Every number of training that the log holds and that is no time."""
    keys = ("step", "loss", "grad_norm", "eval_loss", "learning_rate")
    return [tuple(entry.get(key) for key in keys) for entry in history.read_log(output)]


def test_training_is_the_same_to_the_last_bit_with_answers_or_without(
    shown: Path, small_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    without = run(tmp_path / "without", small_model_dir, data, show={"samples": 0})
    assert losses(shown) == losses(without)
    weights = [(folder / "final" / "adapter_model.safetensors").read_bytes() for folder in (shown, without)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_training_is_the_same_where_answers_decide_which_model_is_best(
    shown: Path, small_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    scored = run(tmp_path / "scored", small_model_dir, data, metric="exact_match")
    assert losses(shown) == losses(scored)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_losses_and_doubles_no_answer(
    shown: Path, small_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    output = run(tmp_path / "resumed", small_model_dir, data, show=SHOW)
    for left in ("final", "checkpoint-6"):
        (output / left).rename(tmp_path / left)
    run(tmp_path / "resumed", small_model_dir, data, show=SHOW, resume=True)
    assert losses(output) == losses(shown)
    assert read_showings(output) == read_showings(shown)
    assert [showing.step for showing in read_showings(output)] == [0, 2, 4, 6]
    assert live_data(output)["state"] == "finished"


def test_answers_at_step_0_are_the_base_models(shown: Path, small_model_dir: Path, data: Path, tmp_path: Path) -> None:
    held_out = {"eval": [{"path": str(data)}]}
    path = tiny.write_run(tmp_path, small_model_dir, data, data=held_out, eval={"max_new_tokens": 5})
    settings = load(path)
    answers = evaluate(settings, prepare(settings, ("eval",), Terminal()), small_model_dir, Terminal()).predictions
    by_origin = {answer.origin: answer for answer in answers}
    cards = page_data(shown / "report.html")["cards"]
    first, last = read_showings(shown)[0], live_data(shown)["showings"][-1]
    for card, answer in zip(cards, first.answers, strict=True):
        wanted = by_origin[card["origin"]]
        assert (answer.text, answer.right, answer.finished) == (wanted.prediction, wanted.match, wanted.finished)
    assert last["step"] == 6
    assert live_data(shown)["verdict"].startswith("The images")


def test_tensorboard_of_a_run_holds_the_answers_of_its_report(shown: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(shown / "tensorboard")).Reload()
    tables = {event.step: event.tensor_proto.string_val[0].decode() for event in found.Tensors("answers/text_summary")}
    assert list(tables) == [showing.step for showing in read_showings(shown)]
    cards = page_data(shown / "report.html")["cards"]
    for table in tables.values():
        assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {card['origin']}" for card in cards]
    with_images = [f"answers/{card['origin']}" for card in cards if card["images"]]
    assert found.Tags()["images"] == with_images


@pytest.mark.slow
def test_the_best_model_is_the_best_by_its_metric_and_patience_ends_the_run(
    small_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    for method in ("full", "lora"):
        held_out = {"eval": [{"path": str(data)}], "workers": 0}
        settings = {"epochs": 6, "eval_every": 3, "save_every": 3, "metric": "token_f1", "patience": 2}
        groups = {"data": held_out, "model": {"train": method}, "eval": {"max_new_tokens": 5}}
        folder = tmp_path / method
        folder.mkdir()
        path = tiny.write_run(folder, small_model_dir, data, train=settings | {"learning_rate": 3e-3}, **groups)
        loaded, out = load(path), Terminal()
        with starting(loaded, out) as (resolved, prepared, start):
            final = train(resolved, prepared, out, start=start)
        scores = {
            entry["step"]: entry["eval_token_f1"] for entry in history.read_log(final.parent) if "eval_loss" in entry
        }
        best = max(scores.values())
        steps = list(scores)
        since = len(steps) - 1 - [scores[step] for step in steps].index(best)
        assert since == 2 or steps[-1] == 18, (method, scores)
        again = load(path, ["eval.scorers=[token_f1]"])
        found = evaluate(again, prepare(again, ("eval",), out), final, out).scores["all"].means["token_f1"].value
        assert found == pytest.approx(best), (method, scores)


def test_settings_that_have_no_evaluation_are_refused(small_model_dir: Path, data: Path, tmp_path: Path) -> None:
    from triptych.errors import ConfigError

    held_out = {"eval": [{"path": str(data)}]}
    for settings, groups, message in (
        ({"metric": "exact_match"}, {}, "need evaluations"),
        ({"patience": 1}, {}, "need evaluations"),
        ({"patience": 1, "eval_every": None}, {"data": held_out}, "need evaluations"),
        ({"metric": "exact"}, {"data": held_out}, "did you mean `exact_match`"),
    ):
        path = tiny.write_run(tmp_path, small_model_dir, data, train=settings, **groups)
        with pytest.raises(ConfigError, match=message):
            load(path)


def test_a_failed_run_says_so_in_its_report(small_model_dir: Path, data: Path, tmp_path: Path) -> None:
    from triptych.recovery.health import DivergedError

    with pytest.raises(DivergedError):
        run(tmp_path / "failed", small_model_dir, data, learning_rate=1e30, warmup=0)
    found = live_data(tmp_path / "failed" / "run")
    assert found["state"] == "failed"
    assert "DivergedError" in found["message"]


def test_curves_keep_peaks_and_stay_small() -> None:
    log = [{"step": step, "loss": 1.0 if step != 777 else 50.0, "epoch": 1} for step in range(1, 10_001)]
    log += [{"step": 10_000, "eval_loss": float("nan")}, {"step": "x", "loss": 1}]
    found = history.curves(log)
    assert set(found) == {"loss", "eval_loss"}
    assert len(found["loss"]) <= history.MOST_POINTS
    assert (777, 50.0) in found["loss"]
    assert found["loss"][-1] == (10_000, 1.0)
    assert found["eval_loss"] == [(10_000, None)]
    assert history.thinned([(1, None)] * 2000)[0] == (1, None)


def test_rules_name_what_is_unusual_and_nothing_else() -> None:
    fine = [{"step": step, "loss": 2 - step / 100, "grad_norm": 1.0, "data_wait": 0.01} for step in range(1, 101)]
    rising = [{"step": 20 * step, "eval_loss": value} for step, value in enumerate((2.0, 1.0, 1.2, 1.5), 1)]
    spiked = [{**fine[50], "grad_norm": 40.0}]
    waiting = [{**entry, "data_wait": 0.4} for entry in fine[-10:]]
    flat = [{"step": step, "loss": 2.0} for step in range(1, 60)]
    empty = [{"step": step, "row_fill": 0.5} for step in range(1, 6)]
    same = [Showing(5, [ShownAnswer("yes", right=False, finished=False)] * 4)]
    references = ["a", "b", "c", "d"]
    cases: list[tuple[list[dict[str, Any]], list[Showing], list[str]]] = [
        (fine, [], []),
        ([], [], []),
        (fine + rising, [], ["evaluation loss rises"]),
        (fine + spiked, [], ["gradient norm spiked"]),
        (waiting, [], ["waits for images 40%"]),
        (flat, [], ["does not fall"]),
        (empty, [], ["Rows are 50% full"]),
        (fine, same, ["All 4 answers at step 5 are equal", "4 of 4 answers at step 5 are cut off"]),
    ]
    for log, showings, wanted in cases:
        found = rules.what_to_look_at(log, showings, references)
        assert len(found) == len(wanted), found
        for sentence, words in zip(found, wanted, strict=True):
            assert words in sentence
    assert rules.do_images_matter([]) == rules.do_images_matter([Matter("x", 0, 0)]) == ""
    assert rules.do_images_matter([Matter("all of them are grey", 10, 6)]).startswith("The images matter: ")
    assert rules.do_images_matter([Matter("all of them are grey", 10, 1)]).startswith("The images do not seem")


@pytest.fixture(scope="module")
def other(small_model_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns nothing, and shows more samples."""
    folder = tmp_path_factory.mktemp("other")
    return run(folder, small_model_dir, data, show=SHOW | {"samples": 5}, learning_rate=1e-9, epochs=1)


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_runs_are_compared(shown: Path, other: Path, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    made = report(shown, other.parent / "run.yaml", "--html", page, "--json")
    assert made.exit_code == 0, made.exception
    said = json.loads(made.stdout)
    names = [f"{folder.parent.name}/run" for folder in (shown, other)]
    assert said["runs"] == names, "as much of the path as tells them apart"
    rows = {row[0]: row[1:] for row in said["results"]}
    assert rows["step"] == ["6", "3"]
    best = min((entry["eval_loss"], entry["step"]) for entry in history.read_log(shown) if "eval_loss" in entry)
    assert rows["eval_loss, best"][0] == f"{best[0]:.4g} at step {best[1]}"
    settings = {row[0]: row[1:] for row in said["settings"]}
    assert settings.pop("train.learning_rate")[1] == "1e-09"
    assert settings == {"train.epochs": ["2.0", "1.0"], "train.show.samples": ["3", "5"]}
    found = page_data(page)
    for number, folder in enumerate((shown, other)):
        cards = {card["origin"]: card["answers"][number] for card in found["cards"]}
        last = read_showings(folder)[-1]
        for card, answer in zip(page_data(folder / "report.html")["cards"], last.answers, strict=True):
            assert cards[card["origin"]]["text"] == answer.text, "each answer with its own sample"
    both = sum(None not in card["answers"] for card in found["cards"])
    assert f"{both} samples answered by all 2 runs, {len(found['cards']) - both} by some" in made.stderr
    assert both > 0


def test_what_is_no_run_is_refused_and_what_is_damaged_is_left_out(shown: Path, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    for arguments, message in (
        ([tmp_path], "has no log.jsonl"),
        ([shown.parent], "it holds the runs run"),
        ([shown, shown.parent / "." / "run"], "given twice"),
        ([shown, "--html", shown / "log.jsonl" / "x.html"], "cannot write"),
    ):
        assert message in str(report("--html", page, *arguments).exception), arguments
    copies = []
    for name, content in (("report.html", "<html>"), ("run.yaml", "a: [1"), ("showings.jsonl", '{"origins": ')):
        copies.append(tmp_path / name.replace(".", "-"))
        shutil.copytree(shown, copies[-1], ignore=shutil.ignore_patterns("checkpoint-*", "final", "tensorboard"))
        (copies[-1] / name).write_text(content)
    made = report("--html", page, "--json", shown, *copies)
    assert made.exit_code == 0, made.exception
    rows = {row[0]: row[1:] for row in json.loads(made.stdout)["results"]}
    assert rows["step"] == ["6"] * 4
    answered = [[answer is not None for answer in card["answers"]] for card in page_data(page)["cards"]]
    assert answered == [[True, False, True, False]] * 3


@pytest.mark.slow
def test_a_browser_shows_runs_side_by_side(shown: Path, other: Path, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    report(shown, other, "--html", page)
    data = page_data(page)
    with browser(width=420) as opened:
        tab = opened.page
        tab.goto(page.as_uri())
        assert tab.locator(".card").count() == len(data["cards"])
        assert tab.locator("svg.curve").count() >= 4
        assert tab.locator("svg.curve").first.locator("path").count() == 2, "a curve of each run"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 420
        tab.locator('[data-value="not shown"]').first.click()
        wanted = sum(card["answers"][0] is None for card in data["cards"])
        assert tab.locator(".card").count() == wanted > 0
        assert opened.errors == []
        assert opened.foreign(page) == []


@pytest.mark.slow
def test_a_browser_follows_the_run_without_reloading(shown: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes((shown / "report.html").read_bytes())
    found = live_data(shown)

    def write(**changes: Any) -> None:
        (tmp_path / "report-data.js").write_text(f"liveReport({json.dumps(found | changes)});\n")

    with browser() as opened:
        tab = opened.page
        now = tab.evaluate("Date.now()")
        write(state="running", step=3, updated=now)
        tab.goto(page.as_uri())
        tab.wait_for_selector("text=step 3 of 6")
        assert tab.locator("svg.curve").count() >= 4
        assert tab.locator(".card").count() == 3
        write(state="running", step=5, updated=now + 1)
        tab.wait_for_selector("text=step 5 of 6", timeout=15_000)
        write(state="running", step=5, updated=now - 10_000_000)
        tab.wait_for_selector("text=stopped: no sign of life", timeout=15_000)
        write(state="finished", updated=now + 2)
        tab.wait_for_selector(".status.finished", timeout=15_000)
        assert opened.errors == []
        assert all(url.split("?")[0].endswith("report-data.js") for url in opened.foreign(page))


def shown_step(tab: Any) -> int:
    found = re.search(r"step ([0-9,]+)", tab.locator("[role=status]").first.inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


@pytest.mark.slow
def test_a_browser_follows_a_run_that_trains_and_sees_that_it_was_killed(
    small_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"epochs": None, "max_steps": 100_000, "eval_every": None, "save_every": None, "log_every": 1}
    path = tiny.write_run(tmp_path, small_model_dir, data, train=settings | {"show": SHOW})
    page = tmp_path / "run" / "report.html"
    with browser() as opened:
        tab = opened.page
        running = subprocess.Popen([sys.executable, "-m", "triptych", "train", str(path)], stderr=subprocess.DEVNULL)
        try:
            while not page.exists():
                assert running.poll() is None, "the run goes on"
                time.sleep(0.2)
            tab.goto(page.as_uri())
            tab.wait_for_selector("text=/step [1-9]/", timeout=60_000)
            first = shown_step(tab)
            for _ in range(60):
                if shown_step(tab) > first:
                    break
                tab.wait_for_timeout(500)
            assert shown_step(tab) > first, "without reloading"
        finally:
            running.kill()
            running.wait()
        assert "stopped" not in tab.locator("[role=status]").first.inner_text()
        tab.evaluate("() => { const now = Date.now; Date.now = () => now() + 3600000; }")  # an hour later
        tab.wait_for_selector("text=stopped: no sign of life for", timeout=60_000)
        assert opened.errors == []
    assert live_data(page.parent)["state"] == "running", "what is there is whole"
