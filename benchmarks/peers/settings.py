"""How each tool is run: by its defaults, and by the best that was found for it on two cores without a GPU.

What was tried, by the seconds of a step after the first (tiny model, 50,176 pixels, the same 1,831 tokens; or the
proportioned one, 5,930 tokens), on a quiet machine:

                                                        tiny                       proportioned
                                            LLaMA-Factory   TRL   swift    LLaMA-Factory   TRL   swift
    gradient checkpointing off                        3.5  11.5     3.9                            9.2
    the same, sample by sample (4 accumulated)        2.3   5.8     1.2                            6.6
    the same, two workers for the data                2.5   6.0     1.3              7.2   7.5     6.7

so "best" is sample by sample, which pads nothing; and with workers, since what the middle row leaves out is the waiting
for data: 0.2 to 0.4 s. All three recompute activations unless told not to. What else each offers:

    LLaMA-Factory  neat packing (rows of 4,096, a mask in four dimensions) is kept as a row of its own: other samples
                   share its rows. Sample by sample it averages over samples instead of tokens. Its fused losses need
                   Triton
    TRL            computes the head in chunks of the vocabulary by default, but at every position where there is no
                   Triton; packing and padding-free are refused for images
    ms-swift       computes the head from the first target on by default, and only at targets if the batch is one sample
                   (`use_logits_to_keep`); packing and padding-free are refused without flash attention

Grouping by length is left out: it changes which samples share a step. For the start nothing but preprocessing matters;
with one thread for each of its processes LLaMA-Factory's is about twice as fast, so only that is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a tool."""

    tool: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """In the tool's own names, beside what its driver gives it"""
    environment: dict[str, str] = field(default_factory=dict)
    second_start: bool = False
    """What the run before left in the caches is kept"""
    once: bool = False
    """In the first round only: what takes minutes and is far behind"""


SINGLES: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "dataloader_num_workers": 2,
}

STEPS = (
    Variant("triptych", "default"),
    Variant("triptych", "rows of one sample", {"batch": {"samples": 1}, "train": {"rows_per_step": 4}}),
    Variant("triptych", "no feature cache", {"train": {"feature_cache": "off"}}),
    Variant(
        "llamafactory", "best", {**SINGLES, "disable_gradient_checkpointing": True, "preprocessing_num_workers": 2}
    ),
    Variant(
        "llamafactory",
        "neat packing",
        {
            "neat_packing": True,
            "disable_gradient_checkpointing": True,
            "per_device_train_batch_size": 1,
            "dataloader_num_workers": 2,
            "preprocessing_num_workers": 2,
        },
        once=True,
    ),
    Variant("trl", "best", {**SINGLES, "gradient_checkpointing": False}),
    Variant("swift", "best", {**SINGLES, "gradient_checkpointing": False}),
    Variant("llamafactory", "default", once=True),
    Variant("trl", "default", once=True),
    Variant("swift", "default", once=True),
)

START = (
    Variant("triptych", "empty caches"),
    Variant("triptych", "second start", second_start=True),
    Variant("trl", "default"),
    Variant("swift", "default"),
    Variant("swift", "best", {"dataset_num_proc": 2}),
)
START_LLAMAFACTORY = (Variant("llamafactory", "best", {"preprocessing_num_workers": 2}, {"OMP_NUM_THREADS": "1"}),)

REFUSED = (
    Variant("trl", "packing", {"packing": True}),
    Variant("trl", "padding-free", {"padding_free": True}),
    Variant("swift", "packing", {"packing": True}),
    Variant("swift", "padding-free", {"padding_free": True}),
)
