"""A page that shows held-out answers beside their images: one file, no scripts, opens anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from triptych.corpus.corpus import Corpus
from triptych.images.geometry import SizedImage
from triptych.images.measure import ImageError
from triptych.images.pixels import load_rgb
from triptych.inference.predictions import Prediction, Score

SHOWN_PER_TASK = 12
THUMBNAIL_PX = 160


def write_page(
    path: Path, title: str, predictions: Sequence[Prediction], scores: Mapping[str, Score], corpus: Corpus
) -> None:
    """Write the page: scores, then up to ``SHOWN_PER_TASK`` samples of each task, wrong answers first."""
    numbers = {str(corpus.origin(index)): index for index in range(len(corpus))}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for prediction in sorted(predictions, key=lambda item: item.match):
        shown = tasks.setdefault(prediction.task or "samples", [])
        if len(shown) < SHOWN_PER_TASK:
            pictures = [_thumbnail(image) for image in corpus.images(numbers[prediction.origin])]
            shown.append({"prediction": prediction, "images": pictures})
    environment = Environment(autoescape=True)
    template = environment.from_string(files("triptych").joinpath("assets/eval.html.j2").read_text(encoding="utf-8"))
    page = template.render(title=title, scores=scores, tasks=dict(sorted(tasks.items())), per_task=SHOWN_PER_TASK)
    path.write_text(page, encoding="utf-8")


def _thumbnail(image: SizedImage) -> str | None:
    """A small data URI of the image; None if it no longer decodes."""
    try:
        picture = load_rgb(image.location)
    except ImageError:
        return None  # shown as missing
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
