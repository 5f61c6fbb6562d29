"""Answers of a model that is being trained: the same samples again and again, and nothing of training is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from triptych.corpus.corpus import Corpus
from triptych.forward.attention import MASKED_SDPA, Attention
from triptych.images import pixels
from triptych.images.geometry import SizedImage
from triptych.inference.generate import Answer, Prompt, answer
from triptych.inference.judging import Judge
from triptych.model.loading import PixelNormalizer
from triptych.pages.strata import choose
from triptych.reports.answers import Matter, ShownAnswer
from triptych.run.prepare import Prepared
from triptych.scoring.scorers import is_right
from triptych.scoring.texts import Answered
from triptych.sources import readers
from triptych.text.layout import lay_out
from triptych.text.template import Template

if TYPE_CHECKING:
    from peft import PeftModel

GREY = 128
MOST_OTHERS = 200
"""Samples in which another image is looked for."""
TOGETHER = 8
"""Prompts that are answered in one batch."""
Images = Sequence[SizedImage]


@contextmanager
def answering(
    model: PreTrainedModel | PeftModel, attention: Attention, precision: torch.dtype
) -> Iterator[PreTrainedModel]:
    """The model ready to generate; afterwards it is as it was, and so is every generator of random numbers.

    Args:
        model: that is trained, not sharded and not compiled.
        attention: that it trains with.
        precision: of the arithmetic.
    """
    found: Any = model
    base: PreTrainedModel = found if isinstance(found, PreTrainedModel) else found.get_base_model()
    modes = [(module, module.training) for module in found.modules()]
    deltas = [(module, module.rope_deltas) for module in found.modules() if hasattr(module, "rope_deltas")]
    device = base.device
    MASKED_SDPA.install(base)
    found.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices),
            torch.autocast(device.type, precision, enabled=precision is not torch.float32),
        ):
            yield found
    finally:
        attention.install(base)
        for module, training in modes:
            module.training = training
        for module, value in deltas:
            module.rope_deltas = value


def choose_samples(corpus: Corpus, most: int, seed: int) -> list[int]:
    """Some samples of every task, the same ones for the same seed."""
    order = np.random.default_rng(seed).permutation(len(corpus)).tolist()
    kinds: dict[str, list[int]] = {}
    for index in order[: 50 * most]:  # of millions, a look at some is enough
        kinds.setdefault(corpus.task(index) or "", []).append(index)
    return list(choose(dict(sorted(kinds.items())), len(corpus), most, seed))


@dataclass(slots=True)
class Shower:
    """Answers some samples whenever it is asked to."""

    corpus: Corpus
    prepared: Prepared
    samples: list[int]
    judge: Judge
    max_new_tokens: int
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of the samples, where a scorer reads them"""

    def __post_init__(self) -> None:
        if self.judge.reads_records:
            found = readers.read_again(map(self.corpus.origin, self.samples))
            self.records = {index: found.get(readers.place(self.corpus.origin(index)), {}) for index in self.samples}

    def answers(self, model: PreTrainedModel) -> list[ShownAnswer]:
        """The samples' answers; an image that no longer decodes is shown as an answer that says so.

        Args:
            model: within ``answering``.
        """
        prompts = [self._prompt(index, self.corpus.images(index)) for index in self.samples]
        written = self._written(model, prompts)
        return [self._shown(index, found) for index, found in zip(self.samples, written, strict=True)]

    def matter(self, model: PreTrainedModel, most: int) -> list[Matter]:
        """Whether answers change with the images: in reverse order, all grey, one exchanged for another sample's.

        Args:
            model: within ``answering``.
            most: samples that are tried.
        """
        counts = self.corpus.image_counts
        shown = [*self.samples, *choose_samples(self.corpus, most, 1)]
        tried = [index for index in dict.fromkeys(shown) if counts[index]][:most]
        if not tried:
            return []
        natural = self._written(model, [self._prompt(index, self.corpus.images(index)) for index in tried])
        changes: list[tuple[str, Callable[[int], Images | None], bool]] = [
            ("their order is reversed", self._reversed, False),
            ("all of them are grey", self.corpus.images, True),
            ("one is another sample's", self._exchanged, False),
        ]
        result = []
        for words, change, grey in changes:
            pairs = [(place, change(index)) for place, index in enumerate(tried)]
            asked = [(place, images) for place, images in pairs if images is not None]
            prompts = [self._prompt(tried[place], images, grey=grey) for place, images in asked]
            written = self._written(model, prompts)
            changed = sum(
                one is not None and natural[place] is not None and one.ids != natural[place].ids  # type: ignore[union-attr]
                for (place, _), one in zip(asked, written, strict=True)
            )
            result.append(Matter(words, len(asked), changed))
        return result

    def _reversed(self, index: int) -> Images | None:
        """None where that changes nothing."""
        images = self._asked(index)
        return images[::-1] if len({image.location for image in images}) > 1 else None

    def _exchanged(self, index: int) -> Images | None:
        """The sample's images, the first one replaced by another sample's at the same size."""
        images = self._asked(index)
        own = {image.location for image in images}
        for other in range(1, min(len(self.corpus), MOST_OTHERS) if images else 1):
            for image in self.corpus.images((index + other) % len(self.corpus))[:1]:
                if image.location not in own:
                    first = images[0]
                    fitted = replace(image, resized_height=first.resized_height, resized_width=first.resized_width)
                    return [fitted, *images[1:]]
        return None

    def _asked(self, index: int) -> list[SizedImage]:
        prompt, _ = self._template.split_answer(self.corpus.encoded(index))
        return self.corpus.images(index)[: len(prompt.slots)]

    @property
    def _template(self) -> Template:
        return self.prepared.encoder.template

    def _prompt(self, index: int, images: Images, *, grey: bool = False) -> Prompt | None:
        """None if an image does not decode."""
        encoded, _ = self._template.split_answer(self.corpus.encoded(index))
        origin, geometry = self.corpus.origin(index), self.corpus.geometry
        shown = images[: len(encoded.slots)]
        patches, problems = pixels.decode_images(shown, geometry, origin)
        if problems:
            return None
        resized = [(image.resized_height, image.resized_width) for image in shown]
        joined = pixels.join(patches, geometry)
        return Prompt(
            index, lay_out(encoded, resized, geometry, origin), np.full_like(joined, GREY) if grey else joined
        )

    def _written(self, model: PreTrainedModel, prompts: Sequence[Prompt | None]) -> list[Answer | None]:
        good = [prompt for prompt in prompts if prompt is not None]
        normalizer = PixelNormalizer(self.prepared.files).to(model.device)
        found: list[Answer] = []
        for start in range(0, len(good), TOGETHER):
            batch = good[start : start + TOGETHER]
            found += answer(model, batch, self._template, normalizer, max_new_tokens=self.max_new_tokens)
        answers = iter(found)
        return [None if prompt is None else next(answers) for prompt in prompts]

    def _shown(self, index: int, written: Answer | None) -> ShownAnswer:
        if written is None:
            return ShownAnswer("(an image no longer decodes)", right=False, finished=True)
        text = self._template.final_text(written.ids).strip()
        answered = Answered(text, self.reference(index), self.records.get(index, {}))
        scores = self.judge.score(self.corpus.task(index), answered)
        first = next(iter(scores.values()))
        return ShownAnswer(self._template.decode(written.ids), is_right(first), written.finished)

    def reference(self, index: int) -> str:
        """What the sample should be answered with, thinking left out."""
        _, recorded = self._template.split_answer(self.corpus.encoded(index))
        return self._template.final_text(recorded.tolist()).strip()
