"""Answer the samples of a corpus with a model: in batches of similar length, shared among ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from triptych.corpus.corpus import Corpus
from triptych.errors import DataError, Problem
from triptych.images import pixels
from triptych.inference.generate import Answer, Prompt, answer
from triptych.inference.judging import Judge, make_judge, say_unscored
from triptych.inference.predictions import Prediction
from triptych.inference.sharing import gathered, share
from triptych.model.loading import PixelNormalizer
from triptych.run.prepare import Prepared
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.scoring.texts import Answered
from triptych.sources import readers
from triptych.text.layout import lay_out
from triptych.text.template import Template


class PromptDataset(torch.utils.data.Dataset[Prompt | list[Problem]]):
    """Corpus index -> prompt with decoded pixels, or why there is none."""

    def __init__(
        self, corpus: Corpus, template: Template, indices: Sequence[int], decode: pixels.Decode = "exact"
    ) -> None:
        self.corpus = corpus
        self.decode = decode
        self.indices = indices
        self.prompts = [template.split_answer(corpus.encoded(index))[0] for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Prompt | list[Problem]:
        index, encoded = self.indices[position], self.prompts[position]
        geometry = self.corpus.geometry
        shown = self.corpus.images(index)[: len(encoded.slots)]
        patches, problems = pixels.decode_images(shown, geometry, self.corpus.origin(index), self.decode)
        if problems:
            return problems
        resized = [(image.resized_height, image.resized_width) for image in shown]
        layout = lay_out(encoded, resized, geometry, self.corpus.origin(index))
        return Prompt(index, layout, pixels.join(patches, geometry))


def predict(
    settings: RunSettings, prepared: Prepared, model: PreTrainedModel, out: Reporter, judge: Judge | None = None
) -> list[Prediction]:
    """The model's answer to every eval sample, in corpus order; ranks of a launcher share the work.

    Args:
        settings: of the run.
        prepared: its samples.
        model: who answers, on its device and not training.
        out: where the progress is shown, and what was lost.
        judge: who scores; None for whoever ``eval.scorers`` names.

    Raises:
        ConfigError: if a scorer cannot be used.
        DataError: under ``data.on_error: stop``, if an image that was fine no longer decodes.
    """
    judge = judge or make_judge(settings.eval)
    corpus = prepared.corpora["eval"]
    count = min(len(corpus), settings.eval.limit or len(corpus))
    written = answer_samples(settings, prepared, corpus, range(count), model, out)
    return make_predictions(prepared, corpus, written, judge, out)


def answer_samples(
    settings: RunSettings,
    prepared: Prepared,
    corpus: Corpus,
    samples: Sequence[int],
    model: PreTrainedModel,
    out: Reporter,
) -> dict[int, Answer]:
    """sample -> what the model writes; those whose images no longer decode are left out and said.

    Raises:
        DataError: under ``data.on_error: stop``, for these.
    """
    # Samples of similar length together: little padding.
    numbers = np.asarray(samples, np.int64)
    order = numbers[np.argsort(corpus.lengths.tokens[numbers], kind="stable")].tolist()
    loader = torch.utils.data.DataLoader(
        PromptDataset(corpus, prepared.encoder.template, order[share()], settings.data.decode),
        batch_size=settings.eval.batch_size,
        num_workers=settings.data.workers,
        collate_fn=list,
    )
    normalizer = PixelNormalizer(prepared.files).to(model.device)
    found: dict[int, Answer] = {}
    with out.bar("answering", len(order[share()])) as advance:
        for items in loader:
            problems = [problem for item in items if isinstance(item, list) for problem in item]
            if problems and settings.data.on_error == "stop":
                raise DataError(problems)
            for problem in problems:
                out.line(f"lost during evaluation: {problem}")
            prompts = [item for item in items if isinstance(item, Prompt)]
            if prompts:
                limit = settings.eval.max_new_tokens
                answers = answer(model, prompts, prepared.encoder.template, normalizer, max_new_tokens=limit)
                found |= {prompt.index: written for prompt, written in zip(prompts, answers, strict=True)}
            advance(len(items))
    return gathered(found)


def make_predictions(
    prepared: Prepared, corpus: Corpus, written: Mapping[int, Answer], judge: Judge, out: Reporter
) -> list[Prediction]:
    """Answers with what was expected and their scores, in corpus order.

    Raises:
        ConfigError: if a user's scorer gives what is no score.
    """
    template = prepared.encoder.template
    origins = {index: corpus.origin(index) for index in sorted(written)}
    records = readers.read_again(origins.values()) if judge.reads_records else {}
    predictions = []
    for index, origin in origins.items():
        prompt, recorded = template.split_answer(corpus.encoded(index))
        reference, answered = recorded.tolist(), written[index]
        texts = template.final_text(answered.ids).strip(), template.final_text(reference).strip()
        record = records.get(readers.place(origin), {})
        predictions.append(
            Prediction(
                origin=str(origin),
                task=corpus.task(index),
                prompt=template.readable(prompt),
                images=[image.name for image in corpus.images(index)],
                reference=template.decode(reference),
                prediction=template.decode(answered.ids),
                match=texts[0] == texts[1],
                finished=answered.finished,
                scores=judge.score(corpus.task(index), Answered(*texts, record)),
                fields=judge.grouped(record),
            )
        )
    say_unscored(((item.origin, item.scores) for item in predictions), out)
    return predictions
