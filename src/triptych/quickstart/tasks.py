"""Four things people do with several images, and naming a single one, as questions and answers in two languages.

A label stands before each image, and an answer says what each label shows before it concludes: "A 4, B 7: B is
larger." That is how a careful person would answer, and a small model can learn to read first and reason after, which
it cannot do in one word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from triptych.quickstart.scans import Scan


@dataclass(frozen=True, slots=True)
class Image:
    """One file, and the digit on it."""

    path: Path
    digit: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about images: questions and answers in turn, `<image>` where an image belongs."""

    task: str
    turns: list[tuple[str, str]]
    images: list[Image]


class Album:
    """Images to choose from: several files of every scan."""

    def __init__(self, files_of_scan: list[tuple[Scan, list[Path]]]) -> None:
        self.scans: dict[int, list[list[Image]]] = {digit: [] for digit in range(10)}
        for scan, paths in files_of_scan:
            self.scans[scan.digit].append([Image(path, scan.digit) for path in paths])

    def views(self, digit: int, count: int, rng: Random) -> list[Image]:
        """`count` different images of one scan of the digit."""
        return rng.sample(rng.choice(self.scans[digit]), count)

    def image(self, digit: int, rng: Random) -> Image:
        return self.views(digit, 1, rng)[0]


LABELS = "ABCDE"


def name(album: Album, language: str, rng: Random) -> Sample:
    """What is on one image? What the base model knows of images."""
    label = rng.choice(LABELS)
    questions = {
        "en": ["<image>\nWhich digit is this?", f"{label}: <image>\nWhich digit is this?", "<image>Read the digit."],
        "zh": ["<image>\n这是哪个数字？", f"{label}: <image>\n这是哪个数字？", "<image>请读出数字。"],
    }
    digit = rng.randrange(10)
    return Sample("name", [(rng.choice(questions[language]), str(digit))], [album.image(digit, rng)])


def exercise(album: Album, language: str, rng: Random) -> Sample:  # noqa: ARG001 - one signature for all tasks
    """Text alone, so that the base model can repeat, look up and order digits, as any language model can."""
    count = rng.randint(1, 5)
    digits = [rng.randrange(10) for _ in range(count)]
    listing = "".join(f"{label}: {digit}\n" for label, digit in zip(LABELS, digits, strict=False))
    asked = rng.randrange(count)
    plain = " ".join(map(str, digits))
    labelled = " ".join(f"{label} {digit}" for label, digit in zip(LABELS, digits, strict=False))
    first, second = rng.sample(range(10), 2)
    step = rng.choice((-1, 1))
    start = rng.randint(3, 6)
    run = [start + step * place for place in range(4)]
    shown = " ".join(map(str, run[:3]))
    english = [
        (f"{listing}Read all.", plain),
        (f"{listing}Read all with labels.", labelled),
        (f"{listing}Read {LABELS[asked]}.", str(digits[asked])),
        (f"A: {first}\nB: {second}\nLarger?", "A" if first > second else "B"),
        (f"{first} {second}: up or down?", "up" if first < second else "down"),
        (f"{shown} and then?", str(run[3])),
    ]
    chinese = [
        (f"{listing}全部读出。", plain),
        (f"{listing}带标签读出。", labelled),
        (f"{listing}读出{LABELS[asked]}。", str(digits[asked])),
        (f"A: {first}\nB: {second}\n哪个大？", "A" if first > second else "B"),
        (f"{first} {second}：升还是降？", "升" if first < second else "降"),
        (f"{shown}，然后呢？", str(run[3])),
    ]
    return Sample("exercise", [rng.choice({"en": english, "zh": chinese}[language])], [])


def compare(album: Album, language: str, rng: Random) -> Sample:
    """Which of two images shows the larger digit, or are they equal?"""
    questions = {
        "en": ["Which digit is larger?", "Compare the two digits."],
        "zh": ["哪个数字更大？", "比较两个数字。"],
    }
    first = rng.randrange(10)
    second = first if rng.random() < 0.2 else rng.randrange(10)
    verdicts = {"en": ("B is larger", "equal", "A is larger"), "zh": ("B更大", "一样大", "A更大")}
    verdict = verdicts[language][1 + (first > second) - (first < second)]
    question = _listing(2) + rng.choice(questions[language])
    images = [album.image(digit, rng) for digit in (first, second)]
    return Sample("compare", [(question, _answer([first, second], verdict, language))], images)


def views(album: Album, language: str, rng: Random) -> Sample:
    """Several images of one and the same thing, next to each other: what is it?"""
    count = rng.randint(2, 4)
    marks = "<image>" * count
    questions = {
        "en": [
            f"{marks}\n{count} views of one card. Which digit is on it?",
            f"The same card, seen {count} times: {marks}\nWhat does it show?",
        ],
        "zh": [
            f"{marks}\n同一张卡片的{count}个视角，上面是哪个数字？",
            f"同一张卡片拍了{count}次：{marks}\n上面是什么？",
        ],
    }
    digit = rng.randrange(10)
    answer = {"en": f"All {count} views show {digit}.", "zh": f"{count}张都是{digit}。"}[language]
    return Sample("views", [(rng.choice(questions[language]), answer)], album.views(digit, count, rng))


def series(album: Album, language: str, rng: Random) -> Sample:
    """Images in order: do the digits rise or fall, or what comes next?"""
    count = rng.randint(3, 5)
    if rng.random() < 0.5:
        runs = [(start, step) for start in range(10) for step in (-1, 1) if 0 <= start + count * step <= 9]
        start, step = rng.choice(runs)
        digits = [start + position * step for position in range(count)]
        question = {"en": "A counter. What comes next?", "zh": "计数器。下一个是什么？"}[language]
        verdict = {"en": f"next is {start + count * step}", "zh": f"下一个是{start + count * step}"}[language]
    else:
        digits = sorted(rng.sample(range(10), count), reverse=rng.random() < 0.5)
        question = {"en": "Do the digits rise or fall?", "zh": "数字在变大还是变小？"}[language]
        rises = digits[0] < digits[-1]
        verdict = {"en": "they rise" if rises else "they fall", "zh": "变大" if rises else "变小"}[language]
    images = [album.image(digit, rng) for digit in digits]
    return Sample("series", [(_listing(count) + question, _answer(digits, verdict, language))], images)


def interleaved(album: Album, language: str, rng: Random) -> Sample:
    """Text between the images, and a question about one of them."""
    count = rng.randint(1, 4)
    digits = [rng.randrange(10) for _ in range(count)]
    asked = rng.randrange(count)
    label, digit = LABELS[asked], digits[asked]
    question = {"en": f"What is in picture {label}?", "zh": f"图{label}里是什么？"}[language]
    verdict = {"en": f"{label} is {digit}", "zh": f"{label}是{digit}"}[language]
    images = [album.image(digit, rng) for digit in digits]
    return Sample("interleaved", [(_listing(count) + question, _answer(digits, verdict, language))], images)


def _listing(count: int) -> str:
    """A line for each image, its label in front."""
    return "".join(f"{label}: <image>\n" for label in LABELS[:count])


def _answer(digits: list[int], verdict: str, language: str) -> str:
    """First what every image shows, in order, then the conclusion."""
    comma, colon, stop = {"en": (", ", ": ", "."), "zh": ("，", "：", "。")}[language]
    return comma.join(f"{label} {digit}" for label, digit in zip(LABELS, digits, strict=False)) + colon + verdict + stop


Task = Callable[[Album, str, Random], Sample]

TASKS: tuple[Task, ...] = (compare, views, series, interleaved)
"""What the quickstart teaches, and is tested on in equal shares."""
TRAIN_TASKS: tuple[Task, ...] = (
    *(interleaved, series, compare, views, interleaved, series, compare, interleaved),
    name,  # what the base knows is kept by being practised
)
"""What the quickstart trains on, in these shares: the harder tasks more often."""
BASE_TASKS: tuple[Task, ...] = (name, name, name, exercise, exercise)
"""What the base model is trained on, in these shares."""
LANGUAGES = ("en", "zh")
