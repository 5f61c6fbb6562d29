"""The work of the benchmarks: photo-like JPEGs and multi-image records over them, the same on every machine.

    python benchmarks/workload.py --out DIR --samples 1000 --files 400

writes DIR/images/ and DIR/train.jsonl: ShareGPT records of 1 to 8 images (3.5 on average), 1 to 3 turns, questions of
5 to 25 words and answers of 5 to 120. Everything follows from the seed, and nothing is read from outside.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headers import SIZES, photo

SMALL_SIZES = tuple((height // 8, width // 8) for height, width in SIZES)
"""For pools of many files, where the number of files matters and not their pixels."""

DRAWN = 40
"""Images that are really drawn; the other files of a pool hold the same images with other bytes."""

IMAGE_SHARES = (0.14, 0.20, 0.22, 0.17, 0.11, 0.07, 0.05, 0.04)
"""Share of samples with 1, 2, ... 8 images; 3.52 on average."""

MAX_TURNS = 3
QUESTION_WORDS = (5, 25)
ANSWER_WORDS = (5, 120)

CHUNK = 4096
"""Samples drawn at a time: memory does not grow with their number."""

COMMON = (
    "the of and a to in is it that with on as for are was by at this be from two one or which an not but they left "
    "right both image image shows more has its same there other between first second than while have no their each "
    "can small large white black red blue green behind front near above below people person man woman child street "
    "house tree car light dark water sky table hand side center corner top bottom background foreground number sign "
    "letter line color shape different similar only also three four five several many few most some all another next "
    "seems appears stands holds looks walks sits wears carries shown seen taken placed written covered filled open "
    "closed old new young tall short long wide narrow bright clear visible hidden empty full round square door window "
    "wall floor roof road bridge river field mountain city building shop market train bus bicycle boat animal dog cat "
    "bird horse flower grass leaf food fruit bread cup bottle plate chair bed lamp book paper screen phone clock bag "
    "shirt hat shoe face hair eye arm leg morning evening summer winter rain snow sun shadow because however although "
    "if when where before after then so very quite almost about around across along toward would could should may"
)
STEMS = (
    "compar observ illustr decor construct arrang transport harvest perform reflect install photograph assembl celebr "
    "navig document restor cultiv demonstr gener separ indic contain preserv produc exhibit combin examin select "
    "project collect direct connect express design represent"
)
ENDINGS = ("ed", "ing", "ation", "or", "able")

WORDS = (*COMMON.split(), *(stem + ending for ending in ENDINGS for stem in STEMS.split()))
"""By falling frequency: words of one token first, then rarer ones of several."""

JOINTS = (" ", ", ", ". ")
JOINT_SHARES = (0.87, 0.06, 0.07)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What K samples look like before they are words: the distribution of the work, in columns."""

    images: NDArray[np.int64]
    """(K,) images of each sample"""
    turns: NDArray[np.int64]
    """(K,) exchanges of each sample"""
    questions: NDArray[np.int64]
    """(turns.sum(),) words"""
    answers: NDArray[np.int64]
    """(turns.sum(),) words"""
    chosen: NDArray[np.int64]
    """(images.sum(),) file of each image, an index into the pool"""
    asked_in: NDArray[np.int64]
    """(images.sum(),) exchange that shows each image"""


def draw_shapes(samples: int, pool: int, random: np.random.Generator) -> Shapes:
    """Draw ``samples`` samples over ``pool`` files."""
    pictures = random.choice(len(IMAGE_SHARES), samples, p=IMAGE_SHARES) + 1
    turns = random.integers(1, MAX_TURNS + 1, samples)
    exchanges, shown = int(turns.sum()), int(pictures.sum())
    return Shapes(
        pictures,
        turns,
        random.integers(QUESTION_WORDS[0], QUESTION_WORDS[1] + 1, exchanges),
        random.integers(ANSWER_WORDS[0], ANSWER_WORDS[1] + 1, exchanges),
        random.integers(0, pool, shown),
        random.integers(0, np.repeat(turns, pictures)),
    )


def write_pool(
    folder: Path, files: int, seed: int = 0, sizes: Sequence[tuple[int, int]] = SIZES, drawn: int = DRAWN
) -> list[str]:
    """Write ``files`` JPEGs of quality 90 into ``folder`` and return their names.

    ``drawn`` images are drawn and encoded. Every file is one of them with a comment of its own in the header, so all
    files are valid, as large as photographs, and no two have the same bytes.

    Args:
        folder: made if missing.
        files: number of files.
        seed: decides every pixel.
        sizes: (height, width) of the images, px; file k has size k modulo their number.
        drawn: distinct images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng((seed, 0))
    encoded = []
    for number in range(min(files, drawn - drawn % len(sizes))):
        buffer = io.BytesIO()
        photo(*sizes[number % len(sizes)], random).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    names = [f"{number:06d}.jpg" for number in range(files)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(_commented(encoded[number % len(encoded)], f"file {number} of seed {seed}"))
    return names


def write_records(path: Path, samples: int, pool_names: Sequence[str], seed: int = 0, *, as_lines: bool = True) -> None:
    """Stream ``samples`` ShareGPT records to ``path``, as JSON lines or as one JSON array.

    Args:
        path: the file to write.
        samples: number of records.
        pool_names: image paths as the records shall name them.
        seed: decides every record.
        as_lines: JSON lines, else an array.
    """
    start, between, end = ("", "\n", "\n") if as_lines else ("[\n", ",\n", "\n]\n")
    with path.open("w", encoding="utf-8") as file:
        file.write(start)
        for number, record in enumerate(_records(samples, pool_names, np.random.default_rng((seed, 1)))):
            file.write((between if number else "") + json.dumps(record))
        file.write(end)


def commit() -> str | None:
    """The commit that is measured, for the results; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _commented(jpeg: bytes, comment: str) -> bytes:
    """The same image in other bytes: a comment segment after the JFIF header."""
    header_end = 4 + int.from_bytes(jpeg[4:6], "big")  # start of image, marker, then the length that counts itself
    text = comment.encode()
    return jpeg[:header_end] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[header_end:]


def _records(samples: int, pool_names: Sequence[str], random: np.random.Generator) -> Iterator[dict[str, Any]]:
    for start in range(0, samples, CHUNK):
        shapes = draw_shapes(min(CHUNK, samples - start), len(pool_names), random)
        questions = _texts(shapes.questions, random)
        answers = _texts(shapes.answers, random)
        chosen, asked_in = iter(shapes.chosen.tolist()), iter(shapes.asked_in.tolist())
        for pictures, turns in zip(shapes.images.tolist(), shapes.turns.tolist(), strict=True):
            # In order of the exchanges, so the k-th mark is the k-th image whichever file that is.
            marks = [next(asked_in) for _ in range(pictures)]
            conversations = []
            for turn in range(turns):
                question = "<image>" * marks.count(turn) + next(questions)
                conversations.append({"from": "human", "value": question})
                conversations.append({"from": "gpt", "value": next(answers)})
            images = [pool_names[next(chosen)] for _ in range(pictures)]
            yield {"conversations": conversations, "images": images}


def _texts(lengths: NDArray[np.int64], random: np.random.Generator) -> Iterator[str]:
    """One text of so many words for each of ``lengths``; the k-th word of the list is as frequent as 1 / (k + 3)."""
    weights = 1 / (np.arange(len(WORDS)) + 3)
    total = int(lengths.sum())
    words = random.choice(len(WORDS), total, p=weights / weights.sum())
    joints = random.choice(len(JOINTS), total, p=JOINT_SHARES)
    # A word together with what precedes it: a space, a comma, or the end of a sentence.
    pieces = [joint + (word.capitalize() if joint == ". " else word) for joint in JOINTS for word in WORDS]
    drawn = (joints * len(WORDS) + words).tolist()
    start = 0
    for end in np.cumsum(lengths).tolist():
        text = "".join([pieces[place] for place in drawn[start:end]]).lstrip(" ,.")
        yield text[0].upper() + text[1:] + "."
        start = end


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the work of the benchmarks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pixels-small", action="store_true", help="images of an eighth of the sides")
    arguments = parser.parse_args()
    sizes = SMALL_SIZES if arguments.pixels_small else SIZES
    names = write_pool(arguments.out / "images", arguments.files, arguments.seed, sizes)
    path = arguments.out / "train.jsonl"
    write_records(path, arguments.samples, [f"images/{name}" for name in names], arguments.seed)
    print(f"{arguments.samples:,} records over {arguments.files:,} files: {path}")


if __name__ == "__main__":
    main()
