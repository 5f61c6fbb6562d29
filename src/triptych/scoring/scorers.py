"""Scorers by name: which there are, what they take, and a user's own from a Python file."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from triptych.errors import ConfigError
from triptych.scoring import texts, values
from triptych.scoring.texts import Answered

Score = Callable[[Answered], "float | None"]
EXACT = "exact_match"
_PLAIN: dict[str, Score] = {
    EXACT: texts.exact_match,
    "last_line": texts.last_line,
    "contains": texts.contains,
    "token_f1": texts.token_f1,
    "anls": texts.anls,
    "choice": values.choice,
    "json_fields": values.json_fields,
}
_WITH_ARGUMENT = ("regex", "number", "iou", "bleu", "rouge")
NAMES = (*_PLAIN, *_WITH_ARGUMENT)
RIGHT = 0.5
"""An answer is right where its score is over this."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named way to score an answer."""

    name: str
    """As the run file writes it"""
    score: Score
    reads_record: bool = False
    """Whether it looks at the sample's record"""


def find(names: Sequence[str]) -> list[Scorer]:
    """The scorers of these names, in their order, each once.

    Raises:
        ConfigError: for a name, an argument, a package or a function that is not there.
    """
    return [_find(name) for name in dict.fromkeys(names)]


def check_names(names: Sequence[str]) -> None:
    """See that scorers can be called so; loads no Python file and no package.

    Raises:
        ConfigError: naming the first that cannot.
    """
    for name in names:
        if not _is_own(name):
            kind, _, argument = name.partition(":")
            _check(name, kind, argument)


def is_right(score: float | None) -> bool:
    """Whether an answer counts as right in pages that show right and wrong."""
    return score is not None and score > RIGHT


def _find(name: str) -> Scorer:
    if _is_own(name):
        return Scorer(name, _own(name), reads_record=True)
    kind, _, argument = name.partition(":")
    _check(name, kind, argument)
    if kind in _PLAIN:
        return Scorer(name, _PLAIN[kind])
    if kind == "regex":
        return Scorer(name, partial(texts.extracted, re.compile(argument)))
    if kind == "number":
        return Scorer(name, partial(values.number, float(argument or 0)))
    if kind == "iou":
        return Scorer(name, partial(values.iou, float(argument) if argument else None))
    return Scorer(name, _bleu(name, argument) if kind == "bleu" else _rouge(name, argument))


def _check(name: str, kind: str, argument: str) -> None:
    if kind not in NAMES:
        near = difflib.get_close_matches(kind, NAMES, n=1)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(
            f"no scorer is called `{name}`{meant}; there are {', '.join(NAMES)}, and your own as `file.py:function`"
        )
    if kind in _PLAIN and argument:
        raise ConfigError(f"scorer `{name}`: `{kind}` takes nothing after a colon")
    if kind == "regex":
        try:
            if not argument:
                raise ConfigError("scorer `regex` needs an expression: `regex:Answer: (.*)`")
            re.compile(argument)
        except re.error as error:
            raise ConfigError(f"scorer `{name}`: not a regular expression: {error}") from error
    if kind in ("number", "iou") and argument:
        try:
            inside = 0 <= float(argument) <= 1
        except ValueError:
            inside = False
        if not inside:
            raise ConfigError(f"scorer `{name}`: what follows the colon is a number from 0 to 1, such as `{kind}:0.05`")


def _bleu(name: str, tokenizer: str) -> Score:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ConfigError(f"scorer `{name}` needs sacrebleu: pip install 'triptych[scores]'") from error
    try:
        bleu = BLEU(tokenize=tokenizer or None, effective_order=True)
    except Exception as error:  # sacrebleu's own, for a tokenizer that it does not know
        raise ConfigError(f"scorer `{name}`: {error}") from error
    return lambda answer: float(bleu.sentence_score(answer.prediction, [answer.reference]).score) / 100


def _rouge(name: str, kind: str) -> Score:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(f"scorer `{name}` needs rouge-score: pip install 'triptych[scores]'") from error
    kind = kind or "rougeL"
    if not re.fullmatch(r"rouge(L|Lsum|[1-9])", kind):
        raise ConfigError(f"scorer `{name}`: write rouge:rouge1, rouge:rouge2 or rouge:rougeL")
    rouge = RougeScorer([kind])
    return lambda answer: float(rouge.score(answer.reference, answer.prediction)[kind].fmeasure)


def _is_own(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _own(name: str) -> Score:
    """A user's function: ``def score(prediction, reference, record) -> float``."""
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"scorer `{name}`: no file {path.absolute()}")
    specification = importlib.util.spec_from_file_location(f"triptych_scorer_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"scorer `{name}`: {file} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # as an import does: a dataclass in it looks itself up there
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"scorer `{name}`: {file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"scorer `{name}`: {file} has no function `{function}`")

    def score(answer: Answered) -> float | None:
        value = found(answer.prediction, answer.reference, answer.record)
        if value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, (int, float)) and 0 <= value <= 1):
            return float(value)
        raise ConfigError(f"scorer `{name}` gave {value!r}; it must give a number from 0 to 1, or None")

    return score
