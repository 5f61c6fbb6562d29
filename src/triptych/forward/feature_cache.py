"""A frozen tower sees each image once: rows are completed with stored features, and what is missing is made and stored.

An image goes through the tower alone and its features are rounded to bfloat16, also when they are new: they depend on
nothing but the image, so a row is the same to the last bit whether they are read, made, or made again elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from triptych.errors import ModelError
from triptych.family.family import Family, ModelFiles
from triptych.forward.batch import Batch, RowFeatures
from triptych.model.loading import PixelNormalizer
from triptych.model.parts import part_of
from triptych.rows.feature_store import FeatureFile, FeatureReader
from triptych.rows.row_images import KNOWN

FORMAT = 3
"""Raised when pixels or features of the same image come to differ: what is stored is then made again."""

QUEUE_BYTES = 512 * 2**20
"""Features that wait to be written; beyond, images are left for a later pass, for training must not wait for a disk."""

ABOUT = "about.json"


def image_features(features: RowFeatures) -> BaseModelOutputWithDeepstackFeatures:
    """The features of a row, all of them known, as a forward of transformers takes ``mm_encoder_outputs["image"]``.

    The class is what Qwen3-VL's tower gives; it is the other families' with DeepStack added, at which they do not look.
    """
    levels = [level.split(features.tokens) for level in features.known]
    return BaseModelOutputWithDeepstackFeatures(pooler_output=levels[0], deepstack_features=levels[1:])


def describe_tower(model: Any, files: ModelFiles, precision: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What besides the weights and the image decides features: pixels, patches, arithmetic and who does it."""
    geometry = asdict(files.geometry)
    # These decide sizes, and the size is in the name of an entry; a first resize is added by the run that has one.
    del geometry["min_pixels"], geometry["max_pixels"], geometry["scaled_first"]
    vision = model.config.vision_config
    on_cuda = device.type == "cuda"
    return {
        "format": FORMAT,
        "family": files.family.name,
        "vision_config": vision.to_dict(),
        "geometry": geometry,
        "image_mean": files.image_mean,
        "image_std": files.image_std,
        "precision": str(precision),
        "float32_products": torch.get_float32_matmul_precision(),
        "attention": vision._attn_implementation,
        "device": torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }


def tower_key(model: nn.Module, family: Family, about: dict[str, Any]) -> str:
    """Name of the store that fits a model: a hash of ``about`` and of every weight of tower and merger.

    Reads them all: about a second per gigabyte.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in sorted(named):
            if part_of(name, family) != "language":
                digest.update(f"{name.removeprefix('base_model.model.')} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]


class FeatureWriter:
    """Stores features from a thread of its own; what it cannot store is counted, and made again when it is needed."""

    def __init__(self, folder: Path, limit: int) -> None:
        """
        Args:
            folder: of the store.
            limit: bytes that may be added.
        """
        self.stored = 0
        """Images"""
        self.left_out = 0
        """Images that found the queue full, the limit reached or the disk failing."""
        self.error: OSError | None = None
        """Why nothing is stored any more."""
        self.folder = folder
        self._file = FeatureFile(folder)
        self._limit = limit
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, entry: bytes, values: torch.Tensor) -> None:
        """Store ``values`` (levels, tokens, hidden) bfloat16 soon; returns at once."""
        size = values.nbytes
        with self._lock:
            if self.error is not None or self._waiting + size > QUEUE_BYTES:
                self.left_out += 1
                return
            self._waiting += size
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="feature-writer", daemon=True)
            self._thread.start()
        self._queue.put(_Waiting(entry, *_to_host(values)))

    def close(self) -> None:
        """Write what waits."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._file.close()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            values = item.values()
            fits = self.error is None and self._file.written + values.nbytes <= self._limit
            stored = False
            if fits:
                try:
                    stored = self._file.add(item.entry, values)
                except OSError as error:
                    self.error, fits = error, False
            with self._lock:
                self._waiting -= values.nbytes
                self.stored += stored
                self.left_out += not fits


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: bytes
    host: torch.Tensor
    ready: torch.cuda.Event | None

    def values(self) -> NDArray[np.uint16]:
        if self.ready is not None:
            self.ready.synchronize()
        values: NDArray[np.uint16] = self.host.view(torch.int16).numpy().view(np.uint16)
        return values


def _to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy on the host that is complete once the event is; the device is not waited for."""
    if values.device.type != "cuda":
        return values.cpu().contiguous(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(values.device))
    return host, ready


class FeatureCache:
    """Completes rows of a run that keeps features."""

    def __init__(
        self,
        model: Any,
        normalizer: PixelNormalizer,
        merge_size: int,
        precision: torch.dtype,
        reader: FeatureReader,
        writer: FeatureWriter,
    ) -> None:
        """
        Args:
            model: the model itself, without the wrappers of adapters or ranks.
            normalizer: bytes to the tower's input.
            merge_size: patches per side of one language token.
            precision: of the arithmetic.
            reader: of the store, for what came into it since the row was built.
            writer: takes what is new.
        """
        self.model = model
        self.normalizer = normalizer
        self.patches_per_token = merge_size**2
        self.shape = reader.shape
        self.reader = reader
        self.precision = precision
        self.writer = writer

    def complete(self, row: Batch) -> Batch:
        """The row with the features of all its images and without pixels; the tower sees what is missing."""
        features = row.features
        if features is None or not features.entries:
            return row
        new = self._make(row, features)
        sized = zip(features.tokens, features.images, strict=True)
        known = iter(torch.split(features.known, [n for n, image in sized if image == KNOWN], dim=1))
        values = [next(known) if image == KNOWN else new[image] for image in features.images]
        complete = RowFeatures(torch.cat(values, dim=1), features.tokens, (KNOWN,) * len(values), ())
        return replace(row, pixels=row.pixels[:0], features=complete)

    def _make(self, row: Batch, features: RowFeatures) -> list[torch.Tensor]:
        self.reader.refresh()  # the row was built some steps ago
        made: list[torch.Tensor] = []
        start = 0
        for entry, image in zip(features.entries, row.decoded, strict=True):
            end = start + features.tokens[image] * self.patches_per_token
            values = self._read(entry, features.tokens[image], row.pixels.device)
            if values is None:
                values = self._run_tower(row.pixels[start:end], row.image_grid_thw[image : image + 1])
                if entry is not None:
                    self.writer.submit(entry, values)
            made.append(values)
            start = end
        return made

    def _read(self, entry: bytes | None, tokens: int, device: torch.device) -> torch.Tensor | None:
        values = np.empty((self.shape.levels, tokens, self.shape.hidden), np.uint16)
        if entry is None or not self.reader.read(entry, values):
            return None
        return torch.from_numpy(values).view(torch.bfloat16).to(device)

    @torch.no_grad()
    def _run_tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """(levels, tokens, hidden) bfloat16 of one image."""
        # Trainer's autocast is around the model's forward, which this is not.
        with torch.autocast(pixels.device.type, self.precision, enabled=self.precision is not torch.float32):
            found = self.model.get_image_features(self.normalizer.repeated(pixels), grid, return_dict=True)
        levels = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
        values = torch.stack([level[0] for level in levels]).to(torch.bfloat16)
        if values.shape[::2] != (self.shape.levels, self.shape.hidden):
            raise ModelError(f"the tower's features are {tuple(values.shape)}, expected {self.shape}")
        return values
