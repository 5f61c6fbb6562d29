"""Scores of answers: fixed cases, the reference libraries, intervals, names that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triptych.errors import ConfigError
from triptych.scoring import scorers, texts, values
from triptych.scoring.intervals import mean
from triptych.scoring.texts import Answered

# scorer, prediction, expected, score
CASES: list[tuple[str, str, str, float | None]] = [
    ("exact_match", " Two cats.\n", "Two cats.", 1),
    ("exact_match", "two cats.", "Two cats.", 0),
    ("exact_match", "", "", 1),
    ("last_line", "First count the left one.\n\n7 \n", "7", 1),
    ("last_line", "7\nno, 8", "7", 0),
    ("last_line", "", "7", 0),
    ("contains", "It is No, I think", "no", 1),
    ("contains", "nothing there", "no", 0),
    ("contains", "答案是猫。", "猫", 1),
    ("contains", "cost: $5 (new)", "$5", 1),
    ("regex:Answer: (.*)", "Answer: 3\nAnswer: 4", "Answer: 4", 1),
    ("regex:Answer: (.*)", "Answer: 4", "4", 1),
    ("regex:Answer: (.*)", "4", "4", 0),
    ("regex:\\d+", "of 12 there are 7", "7", 1),
    ("choice", "B", "b", 1),
    ("choice", "(B)", "B. a dog", 1),
    ("choice", "A is wrong, so the answer is C.", "C", 1),
    ("choice", "The answer is a cat", "A", 0),
    ("choice", "答案：D", "D", 1),
    ("choice", "B) because of A", "B", 1),
    ("choice", "no letter", "A", 0),
    ("choice", "A", "seven", None),
    ("number", "It costs 1,234.50 dollars", "1234.5", 1),
    ("number", "between 3 and -4", "-4", 1),
    ("number", "12,5", "5", 1),
    ("number", "104", "100", 0),
    ("number:0.05", "104", "100", 1),
    ("number:0.05", "106", "100", 0),
    ("number", "0", "0", 1),
    ("number", "none", "None", 1),
    ("number", "", "7", 0),
    ("json_fields", '```json\n{"a": 1, "b": ["x"]}\n```', '{"a": 1.0, "b": ["x"]}', 1),
    ("json_fields", '{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
    ("json_fields", '{"a": true}', '{"a": 1}', 0),
    ("json_fields", "no {json", '{"a": 1}', 0),
    ("json_fields", "{}", "no json", None),
    ("token_f1", "The cat sat.", "a cat sat down", 0.8),
    ("token_f1", "两只猫", "两只狗", 2 / 3),
    ("token_f1", "", "cat", 0),
    ("anls", "Hello World", "hello  world", 1),
    ("anls", "hallo", "hello", 0.8),
    ("anls", "abc", "xyz", 0),
    ("iou", "[0, 0, 10, 10]", "[0, 0, 10, 10]", 1),
    ("iou", "(0,0),(10,10)", "[0, 0, 10, 5]", 0.5),
    ("iou", "[0, 0, 10, 10] [50, 50, 60, 60]", "[0, 0, 10, 10]", 0.5),
    ("iou:0.5", '{"bbox_2d": [0, 0, 10, 6]}', "[0, 0, 10, 10]", 1),
    ("iou", "nothing", "[1, 2, 3, 4]", 0),
    ("iou", "[1, 2, 3, 4]", "no box", None),
]


def test_scorers_give_the_scores_of_fixed_cases() -> None:
    for name, prediction, reference, wanted in CASES:
        found = scorers.find([name])[0].score(Answered(prediction, reference))
        assert found == (None if wanted is None else pytest.approx(wanted)), (name, prediction, reference)


def test_bleu_and_rouge_equal_their_libraries() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    answer = Answered("the cat sat on the mat today", "the cat is on the mat")
    bleu = sacrebleu.sentence_bleu(answer.prediction, [answer.reference]).score / 100
    rouge = rouge_scorer.RougeScorer(["rouge2"]).score(answer.reference, answer.prediction)["rouge2"].fmeasure
    found = [scorer.score(answer) for scorer in scorers.find(["bleu", "rouge:rouge2"])]
    assert found == [pytest.approx(bleu), pytest.approx(rouge)]


def test_a_scorer_of_the_user_reads_the_record_and_must_give_a_score(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Any: pass\n"
        "def score(prediction, reference, record):\n    return record['value']\nnumber = 3\n"
    )
    scorer = scorers.find([f"{file}:score"])[0]
    assert scorer.reads_record
    for value, wanted in ((1, 1.0), (0.25, 0.25), (True, 1.0), (None, None)):
        assert scorer.score(Answered("a", "b", {"value": value})) == wanted, value
    for bad in (2, "yes", float("nan")):
        with pytest.raises(ConfigError, match="a number from 0 to 1"):
            scorer.score(Answered("a", "b", {"value": bad}))
    for name, message in (
        (f"{file}:other", "no function `other`"),
        (f"{file}:number", "no function `number`"),
        (f"{tmp_path}/none.py:score", "no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            scorers.find([name])
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        scorers.find([f"{file}:score"])


def test_names_and_arguments_that_are_wrong_are_refused() -> None:
    for name, message in (
        ("exact", "did you mean `exact_match`"),
        ("zzz", "no scorer is called `zzz`; there are"),
        ("exact_match:1", "takes nothing after a colon"),
        ("regex", "needs an expression"),
        ("regex:(", "not a regular expression"),
        ("number:two", "a number from 0 to 1"),
        ("iou:5", "a number from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            scorers.check_names([name])
    scorers.check_names(["not/there.py:score", "bleu:zh", "regex:a:b"])


def test_edit_distance_equals_the_recursive_definition() -> None:
    def slow(one: str, two: str) -> int:
        if not one or not two:
            return len(one) + len(two)
        last = slow(one[:-1], two[:-1]) + (one[-1] != two[-1])
        return min(last, slow(one[:-1], two) + 1, slow(one, two[:-1]) + 1)

    random = np.random.default_rng(0)
    for _ in range(30):
        one, two = ("".join(random.choice(list("abc"), size)) for size in random.integers(0, 5, 2))
        assert texts.edit_distance(one, two) == slow(one, two), (one, two)


def test_overlap_of_boxes_equals_a_count_of_cells() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        boxes = [tuple(sorted(pair)) for pair in random.integers(0, 9, (4, 2)).tolist()]
        one, two = ((x[0], y[0], x[1], y[1]) for x, y in (boxes[:2], boxes[2:]))
        grid = np.zeros((2, 9, 9), bool)
        for cells, (x1, y1, x2, y2) in zip(grid, (one, two), strict=True):
            cells[y1:y2, x1:x2] = True
        either = (grid[0] | grid[1]).sum()
        wanted = (grid[0] & grid[1]).sum() / either if either else float(one == two)
        assert values.overlap(one, two) == pytest.approx(wanted), (one, two)


def test_intervals_hold_the_mean_and_shrink_with_more_samples() -> None:
    random = np.random.default_rng(0)
    few, many = (mean(random.integers(0, 2, count).tolist()) for count in (20, 2000))
    assert few is not None
    assert many is not None
    assert few.low <= few.value <= few.high
    assert many.high - many.low < (few.high - few.low) / 5
    # Of a proportion, the interval is about 1.96 standard errors to both sides.
    error = 1.96 * (many.value * (1 - many.value) / 2000) ** 0.5
    assert many.high - many.value == pytest.approx(error, rel=0.2)
    assert mean([1.0, None, 0.0]) == mean([1.0, 0.0]), "what could not be scored does not count"
    assert mean([None]) is None
