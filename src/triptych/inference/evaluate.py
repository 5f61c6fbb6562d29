"""``triptych eval``: answer held-out samples, compare with the recorded answers, show both beside the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from triptych.corpus.corpus import Corpus
from triptych.errors import DataError, Problem, printable_json
from triptych.images import pixels
from triptych.inference.eval_page import write_page
from triptych.inference.generate import Answer, Prompt, answer
from triptych.inference.predictions import Evaluation, Prediction, score
from triptych.model.device import choose_device
from triptych.model.loading import PixelNormalizer, choose_precision
from triptych.model.trained import load_trained
from triptych.run.prepare import Prepared
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.text.layout import lay_out
from triptych.text.template import Template

PREDICTIONS, SCORES, PAGE = "predictions.jsonl", "scores.json", "index.html"


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


def evaluate(settings: RunSettings, prepared: Prepared, folder: Path, out: Reporter) -> Evaluation:
    """Answer the eval samples with the model in ``folder`` and write the answers, the scores and a page.

    Raises:
        ModelError: if the model cannot be loaded.
        DataError: under ``data.on_error: stop``, if an image that was fine no longer decodes.
    """
    device = choose_device()
    model = load_trained(settings.model, folder, choose_precision(settings.model))
    model.to(device)  # type: ignore[arg-type]  # decorated without its types in transformers
    model.train(False)
    predictions = predict(settings, prepared, model, out)
    scores = score(predictions)
    target = Path(settings.output) / "eval" / folder.name
    target.mkdir(parents=True, exist_ok=True)
    with (target / PREDICTIONS).open("w", encoding="utf-8") as file:
        dumped = (json.dumps(asdict(item), ensure_ascii=False) for item in predictions)
        file.writelines(printable_json(line) + "\n" for line in dumped)
    summary = {name: {**asdict(value), "exact_match": value.exact_match} for name, value in scores.items()}
    (target / SCORES).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    write_page(target / PAGE, f"{folder}", predictions, scores, prepared.corpora["eval"])
    rows = [(name, f"{value.samples:,}", f"{value.exact_match:.1%}") for name, value in scores.items()]
    out.table(f"Exact match of {folder}", ("task", "samples", "exact match"), rows)
    out.line(f"answers: {target / PREDICTIONS}\npage: {target / PAGE}")
    return Evaluation(scores, predictions, target)


def predict(settings: RunSettings, prepared: Prepared, model: PreTrainedModel, out: Reporter) -> list[Prediction]:
    """The model's answer to every eval sample, in corpus order."""
    corpus, template = prepared.corpora["eval"], prepared.encoder.template
    normalizer = PixelNormalizer(prepared.files).to(model.device)
    count = min(len(corpus), settings.eval.limit or len(corpus))
    # Samples of like length together: little padding.
    order = np.argsort(corpus.lengths.tokens[:count], kind="stable").tolist()
    loader = torch.utils.data.DataLoader(
        PromptDataset(corpus, template, order, settings.data.decode),
        batch_size=settings.eval.batch_size,
        num_workers=settings.data.workers,
        collate_fn=list,
    )
    found: dict[int, Prediction] = {}
    with out.bar("answering", count) as advance:
        for items in loader:
            problems = [problem for item in items if isinstance(item, list) for problem in item]
            if problems and settings.data.on_error == "stop":
                raise DataError(problems)
            for problem in problems:
                out.line(f"lost during evaluation: {problem}")
            prompts = [item for item in items if isinstance(item, Prompt)]
            if prompts:
                limit = settings.eval.max_new_tokens
                answers = answer(model, prompts, template, normalizer, max_new_tokens=limit)
                for prompt, written in zip(prompts, answers, strict=True):
                    found[prompt.index] = _prediction(corpus, template, prompt.index, written)
            advance(len(items))
    return [found[index] for index in sorted(found)]


def _prediction(corpus: Corpus, template: Template, index: int, written: Answer) -> Prediction:
    prompt, recorded = template.split_answer(corpus.encoded(index))
    reference = recorded.tolist()
    return Prediction(
        origin=str(corpus.origin(index)),
        task=corpus.task(index),
        prompt=template.readable(prompt),
        images=[image.name for image in corpus.images(index)],
        reference=template.decode(reference),
        prediction=template.decode(written.ids),
        match=template.final_text(written.ids).strip() == template.final_text(reference).strip(),
        finished=written.finished,
    )
