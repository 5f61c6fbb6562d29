"""Settings of the data: sources, and the limits of one sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from triptych.images.geometry import Geometry
from triptych.planning.mixture import Share
from triptych.run.settings.base import Settings, in_pydantic
from triptych.sources.records import ImageLimits, Marks, RoleRule, Source, Supervise
from triptych.text.layout import TooLong
from triptych.text.weights import LEAST, MOST


class ChoiceSettings(Settings):
    """Keys of a multiple-choice record, and how its options are written."""

    question: str = "question"
    """Key of the question's text."""
    options: str | list[str] = "options"
    """Key of the options (a list, or an object of letters), or one key for each: ``[A, B, C, D]``."""
    answer: str = "answer"
    """Key of the answer: a letter, an option's text, or its number from 0."""
    letters: str = "A. "
    """What stands before the first option: ``A. ``, ``(A) ``."""
    instruction: str = ""
    """A last line of the question, for example ``Answer with the letter.``"""


class SourceSettings(Settings):
    """Data files that share an image folder."""

    path: str | list[str]
    """A data file (.json, .jsonl, .parquet, .tar), a saved ``datasets`` folder, a URL, a glob, or a list of them."""
    media_dir: str | None = None
    """Folder, .tar file or URL that relative image paths start from; default: the folder of each data file."""
    confine: bool = False
    """Refuse images outside ``media_dir``."""
    columns: dict[str, str | list[str]] = {}
    """Names of the record's keys where they differ: ``{messages: dialog, images: photos}``; ``images`` may be a list
    of keys or a pattern: ``[left, right]``, ``image_{n}``."""
    tags: dict[str, str] = {}
    """Names inside a turn where they differ, for example ``{role: speaker, content: text, user: U, assistant: A}``."""
    mark: str = "<image>"
    """What stands for an image in the texts; ``{n}`` is its number among the record's images: ``<image_{n}>``."""
    marks: Marks = "inline"
    """Where images belong: at their marks (``inline``), all before the first question (``first``), or ``auto``: there
    where a record has images and no mark."""
    roles: RoleRule = "alternate"
    """Turns of one role in a row: an error (``alternate``), joined by a line break (``merge``), or as they are
    (``keep``)."""
    choice: ChoiceSettings | None = None
    """Read multiple choice: the question with its options becomes the user's turn, the letter the answer."""
    ignore: list[str] = []
    """Keys of records, turns and parts that hold something and are left out on purpose, for example ``[thumbnail]``."""
    min_pixels: PositiveInt | None = None
    """Smallest area of its images as resized, px, instead of ``data.min_pixels``."""
    max_pixels: PositiveInt | None = None
    """Largest area of its images as resized, px, instead of ``data.max_pixels``."""
    loss_weight: Annotated[float, Field(ge=LEAST, le=MOST)] = 1.0
    """How much its targets count in the loss, beside weights in the records; ``weight`` decides how often it is
    drawn."""

    weight: PositiveFloat | None = None
    """Part of an epoch relative to the other sources' weights; give it to all sources or to none."""
    epochs: PositiveFloat = 1.0
    """Passes over this source per epoch of the run; 0.5 takes every sample in every second one."""
    max_samples: PositiveInt | None = None
    """Use at most so many of its samples, chosen at random by the seed."""
    first: PositiveInt | None = None
    """Use only its first so many samples."""

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        in_pydantic(lambda: self.source(None))
        return self

    @model_validator(mode="after")
    def _weight_or_epochs(self) -> Self:
        if self.weight is not None and self.epochs != 1.0:
            raise ValueError("`weight` and `epochs` both say how much of it an epoch holds; give one of them")
        return self

    @model_validator(mode="after")
    def _own_limits_in_order(self) -> Self:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("`min_pixels` is larger than `max_pixels`")
        return self

    def limits(self) -> ImageLimits | None:
        """What it asks of the size of its images."""
        if self.min_pixels is None and self.max_pixels is None:
            return None
        return ImageLimits(self.min_pixels or 0, self.max_pixels or 0)

    def share(self) -> Share:
        return Share(self.weight, self.epochs, self.max_samples)

    def source(self, data: DataSettings | None) -> Source:
        """As ``data``, whose source it is, has it read; None for its own settings alone."""
        path = self.path if isinstance(self.path, str) else tuple(self.path)
        return Source(
            path,
            self.media_dir,
            self.confine,
            self.columns,
            self.tags,
            data is None or data.allow_remote,
            mark=self.mark,
            marks=self.marks,
            roles=self.roles,
            choice=self.choice.model_dump() if self.choice else None,
            ignore=self.ignore,
            supervise="answers" if data is None else data.supervise,
            system=None if data is None else data.system,
            loss_weight=self.loss_weight,
            limits=self.limits(),
            allow_private=data is not None and data.allow_private,
        )


class DataSettings(Settings):
    """The samples, and what one of them may cost."""

    train: list[SourceSettings]
    """Sources to train on."""
    eval: list[SourceSettings] = []
    """Held-out sources: evaluation loss during training, ``triptych eval`` afterwards."""
    hold_out: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    """Instead of ``eval``: the part (0.1) or number (200) of the samples of ``train`` that are held out; samples that
    share an image stay together."""
    hold_out_by: Literal["images", "rows"] = "images"
    """What is held out together: samples that share an image (``images``), or each for itself (``rows``), drawn as
    ``train_test_split`` of ``datasets`` draws them, and with it LLaMA-Factory."""
    system: str | None = None
    """System prompt of records that have none; default: what the model's chat template does."""
    min_pixels: PositiveInt | None = None
    """Smallest area of a resized image, px; default: the model's own."""
    max_pixels: PositiveInt | None = None
    """Largest area of a resized image, px; default: the model's own."""
    resize: Literal["model", "llamafactory"] = "model"
    """How the limits act: in the model's own rounding (``model``), or in a resize of their own before it, as
    LLaMA-Factory has it: images get its sizes, which may exceed ``max_pixels`` by some per cent, and its pixels."""
    sample_image_tokens: PositiveInt | None = None
    """Tokens that all images of one sample share; larger images shrink first."""
    max_tokens: PositiveInt | None = None
    """Tokens of one sample, images included."""
    supervise: Supervise = "answers"
    """What is learned: every answer (``answers``), a dialogue's last one (``last``), all text (``all``), or
    the tokens of images, too (``everything``)."""
    too_long: TooLong = "shrink"
    """What happens over ``max_tokens``: shrink the images, drop the sample, report an error, or cut text too."""
    on_error: Literal["stop", "skip"] = "stop"
    """Defective samples end the run before a model is loaded, or are left out and listed in ``rejected.jsonl``."""
    allow_remote: bool = False
    """Read data files and images behind URLs (``s3://``, ``gs://``, ``https://``, ...) through fsspec."""
    allow_private: bool = False
    """Let records name URLs of this machine and of private networks; hosts of ``path`` and ``media_dir`` always are."""
    decode: Literal["exact", "fast"] = "exact"
    """``fast``: JPEGs of at least twice the size they are resized to are scaled while they are decoded."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images ahead of training; 0 decodes in the training process."""
    prefetch_mb: PositiveInt = 256
    """Rows that the workers keep ready or have in hand, MB of 2^20 bytes, per rank; at least one row."""
    stall_seconds: PositiveFloat = 120.0
    """Seconds without progress after which a worker is named with its image, ended and replaced."""

    @property
    def evaluates(self) -> bool:
        """Whether there are samples to evaluate on."""
        return bool(self.eval) or self.hold_out is not None

    def geometry(self, own: Geometry) -> Geometry:
        """A model's patch arithmetic with the limits of the run; ``own`` has those of its release."""
        if self.resize == "model":
            return own.limit(min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        return replace(own, scaled_first=(self.min_pixels or 1, self.max_pixels or own.max_pixels))

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if not self.train:
            raise ValueError("`train` names no source")
        if len({source.weight is None for source in self.train}) > 1:
            raise ValueError("some sources of `train` have a `weight` and some have none; give it to all or to none")
        if any(source.weight is not None or source.epochs != 1 for source in self.eval):
            raise ValueError("`weight` and `epochs` belong to sources of `train`; `eval` takes every sample once")
        if self.eval and self.hold_out is not None:
            raise ValueError("`hold_out` takes the samples to evaluate on from `train`; give it or `eval`")
        if any(source.loss_weight != 1 for source in self.eval):
            raise ValueError("`loss_weight` belongs to sources of `train`; the eval loss weighs its sources alike")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("`min_pixels` is larger than `max_pixels`")
        return self
