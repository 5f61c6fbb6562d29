"""The device that a process computes on, and how attention is computed there."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU; ready for rows of many lengths (`allow_any_length`)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allow_any_length(device)
    return device


def allow_any_length(device: torch.device) -> None:
    """Keep cuDNN out of ``scaled_dot_product_attention`` on CUDA, for the whole process.

    cuDNN builds a plan for every new shape: 0.13 to 0.2 s each, forward and backward, on an H200 with torch 2.11.
    Torch's own flash kernel takes any length, in about 1 ms. Samples and images differ in length from row to row, and a
    growing answer at every token, so plans would cost most of the time.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
