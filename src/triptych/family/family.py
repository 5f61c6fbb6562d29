"""How the families differ, in one table, and what a model folder says before any weight is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.family.folders import read_json, why_missing, why_no_model
from triptych.family.image_processor import read_image_processor
from triptych.family.shapes import ModelShapes, read_shapes
from triptych.family.template_check import refused_orders, verify
from triptych.images.geometry import Geometry
from triptych.text.template import Template
from triptych.text.tokens.chat_template import BoxForm, ChatStyle, ChatTemplate, read_chat_template
from triptych.text.tokens.content_tokens import largest_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What Triptych must know of a family beyond what its config files say."""

    name: str
    template: str
    """Chat template of ``assets/chat_templates`` that renders as the released ones do; see ``ModelFiles.replaced``."""
    vision: str = "model.visual"
    """Name of the vision tower inside the model; the merger is inside it."""
    merger: tuple[str, ...] = ("model.visual.merger",)
    """Names of the projector's modules inside the model."""
    recurrent: bool = False
    """Whether some language layers carry a state from token to token, instead of attending."""
    boxes: BoxForm = "relative"
    """How its models write boxes"""
    processor: str = "Qwen3VLProcessor"
    """transformers' class of its processor: by this name, AutoProcessor loads a folder that has no ``config.json``."""


# The mergers of inner tower layers, whose outputs go into the first language layers, beside the last one.
DEEPSTACK = ("model.visual.merger", "model.visual.deepstack_merger_list")
# A new family is a row here, keyed by the `model_type` of its config.json.
FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        name="Qwen2-VL",
        template="qwen2_vl",
        boxes="marked",
        processor="Qwen2VLProcessor",
    ),
    "qwen2_5_vl": Family(
        name="Qwen2.5-VL",
        template="qwen2_vl",
        boxes="absolute",
        processor="Qwen2_5_VLProcessor",
    ),
    "qwen3_vl": Family(name="Qwen3-VL", template="qwen3_vl", merger=DEEPSTACK),
    "qwen3_vl_moe": Family(name="Qwen3-VL-MoE", template="qwen3_vl", merger=DEEPSTACK),
    "qwen3_5": Family(name="Qwen3.5", template="qwen3_5", recurrent=True),
    "qwen3_5_moe": Family(name="Qwen3.5-MoE", template="qwen3_5", recurrent=True),
    "qwen4_exp": Family(name="Qwen4-Exp", template="qwen3_5", recurrent=True),
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model folder, read up to its weights."""

    folder: Path
    family: Family
    geometry: Geometry
    """With the pixel limits that the model was released with."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    config: dict[str, Any]
    """Content of ``config.json``."""
    shapes: ModelShapes
    """Its widths, depths and heads."""
    chat_template: ChatTemplate
    """The one in use: the folder's own, or the family's in its place."""
    replaced: str | None
    """Why the family's template is used, a sentence for people; None if the folder's own is."""

    @property
    def style(self) -> ChatStyle:
        """What its chat template does, and how its family writes boxes."""
        return replace(self.chat_template.style(), boxes=self.family.boxes)

    def template(self) -> Template:
        """How it renders and tokenizes conversations.

        Raises:
            ModelError: if the tokenizer cannot be used or has more tokens than the model, or its chat template does
                what Triptych cannot.
        """
        template = Template.from_file(self.folder / "tokenizer.json", self.style, self.chat_template)
        self._check_vocabulary(largest_id(template.tokenizer))
        verify(template, self.chat_template)
        template.style = replace(template.style, refuses=refused_orders(template, self.chat_template))
        return template

    def _check_vocabulary(self, largest: int) -> None:
        rows = self.shapes.language.vocabulary
        if largest >= rows:
            raise ModelError(
                f"{self.folder}: the tokenizer has ids up to {largest:,}, but the model's embedding has {rows:,} rows; "
                "tokens that were added need rows: model.resize_token_embeddings(len(tokenizer)), then save both"
            )

    def text_hash(self) -> str:
        """Names, in keys of indexes, what decides about ids: the tokenizer and the style of the chat template."""
        digest = hashlib.sha256((self.folder / "tokenizer.json").read_bytes())
        digest.update(repr(self.style).encode())
        return digest.hexdigest()


def read_model_files(path: str) -> ModelFiles:
    """Read the small files of a model folder or hub name; no weights, no torch.

    Raises:
        ModelError: if the folder or a file of it is missing, or the family is not supported.
    """
    folder = _local_folder(path)
    config = read_json(folder, "config.json", path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(f"{path}: model_type {model_type!r} is not supported; these are: {', '.join(FAMILIES)}")
    if not (folder / "tokenizer.json").exists():
        raise ModelError(
            f"{path} has no tokenizer.json; save it with AutoTokenizer.from_pretrained(...).save_pretrained"
        )
    processor = read_image_processor(folder, path)
    try:
        shapes = read_shapes(config)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    geometry = Geometry(
        patch_size=shapes.vision.patch_size,
        merge_size=shapes.vision.merge_size,
        temporal_patch_size=shapes.vision.temporal_patch_size,
        min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels,
    )
    family = FAMILIES[model_type]
    chat_template, replaced = _template_in_use(folder, family, path)
    return ModelFiles(
        folder=folder,
        family=family,
        geometry=geometry,
        image_mean=processor.mean,
        image_std=processor.std,
        config=config,
        shapes=shapes,
        chat_template=chat_template,
        replaced=replaced,
    )


def _template_in_use(folder: Path, family: Family, path: str) -> tuple[ChatTemplate, str | None]:
    """The chat template to use, and why it is not the folder's own."""
    source = read_chat_template(folder)
    why = "has no chat template"
    if source is not None:
        own = ChatTemplate(source, path)
        unusable = own.why_unusable()
        if unusable is None:
            return own, None
        why = f"has a chat template that {unusable}"
    replaced = f"{path} {why}; that of {family.name} is used in its place, and saved with the model"
    return ChatTemplate(family_template(family.template), f"{family.name}'s chat template"), replaced


def family_template(name: str) -> str:
    """A chat template in Jinja, by its name in ``assets/chat_templates``."""
    return (files("triptych") / "assets" / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _local_folder(path: str) -> Path:
    if Path(path).is_dir():
        reason = why_no_model(Path(path))
        if reason is not None:
            raise ModelError(reason)
        return Path(path)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"no model folder {path!r}{why_missing(path)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{path!r} is neither a model folder{why_missing(path)} nor reachable on the hub: {error}"
        ) from error
