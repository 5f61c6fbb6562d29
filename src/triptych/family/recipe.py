"""What learns in a run, layer by layer, decided and refused before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from triptych.errors import ConfigError
from triptych.family.selectors import PARTS, Part, Place, Span, check_nested, narrowest, spans

Train = Literal["full", "lora", "qlora"]
Targets = Literal["all-linear"] | list[str]

# Any model has all parts; where no layer is named, their number does not matter.
ANY_COUNTS: dict[Part, int] = {"vision": 1, "merger": 0, "language": 1}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What learns in a model whose number of layers is known."""

    train: Train
    frozen: tuple[Span, ...]
    full: tuple[Span, ...]
    """Trained in full beside adapters; empty where everything is"""
    targets: tuple[tuple[Span, Targets], ...]
    """Where adapters go, and on which linear layers there"""
    by_part: bool
    """Whether the targets were named part by part"""

    def in_full(self, place: Place) -> bool:
        """Whether the weights there are trained themselves."""
        if self.train == "full":
            return not _within(place, self.frozen)
        return _within(place, self.full)

    def adapted(self, place: Place) -> tuple[Span, Targets] | None:
        """Which linear layers there take adapters, and the selector that says so; None if none do."""
        if self.train == "full" or _within(place, (*self.frozen, *self.full)):
            return None
        span = narrowest((span for span, _ in self.targets), place)
        return next((pair for pair in self.targets if pair[0] is span), None)

    def learns(self, place: Place) -> bool:
        return self.in_full(place) or self.adapted(place) is not None


def make_recipe(
    train: Train,
    freeze: Sequence[str],
    full: Sequence[str],
    targets: Targets | Mapping[str, Targets],
    counts: Mapping[Part, int],
) -> Recipe:
    """Decide what learns.

    Args:
        train: ``model.train``.
        freeze: selectors of ``model.freeze``.
        full: selectors of ``model.full``.
        targets: ``model.lora.targets``.
        counts: layers of every part.

    Raises:
        ConfigError: if the settings contradict each other, or name a layer that is not there.
    """
    frozen, trained = spans(freeze, counts, "model.freeze"), spans(full, counts, "model.full")
    if trained and train == "full":
        raise ConfigError("model.full: `train: full` trains every part that is not frozen; `full` goes with `lora`")
    for span in trained:
        for other in frozen:
            if span.overlaps(other):
                raise ConfigError(f"{span.text} of `full` and {other.text} of `freeze` are partly the same layers")
        if train == "qlora" and span.part == "language":
            raise ConfigError(
                f"model.full: {span.text} is quantised to 4 bits by `train: qlora`, and such weights cannot learn; "
                "take it out of `full`, or use `train: lora`"
            )
    named: Mapping[str, Targets] = targets if isinstance(targets, Mapping) else dict.fromkeys(PARTS, targets)
    adapted = spans(named, counts, "model.lora.targets")
    check_nested(adapted, "model.lora.targets")
    recipe = Recipe(
        train, frozen, trained, tuple(zip(adapted, named.values(), strict=True)), isinstance(targets, Mapping)
    )
    _something_learns(recipe, counts)
    return recipe


def check_rates(recipe: Recipe, rates: Iterable[str], counts: Mapping[Part, int]) -> tuple[Span, ...]:
    """The layers that have a learning rate of their own.

    Raises:
        ConfigError: for a rate of layers in which nothing learns, or rates of which neither decides.
    """
    setting = "train.part_learning_rates"
    found = spans(rates, counts, setting)
    check_nested(found, setting)
    for span in found:
        if not any(recipe.learns(place) for place in _places(span, counts)):
            raise ConfigError(f"{setting}: nothing learns in {span.text}, so a rate for it would do nothing")
    return found


def _something_learns(recipe: Recipe, counts: Mapping[Part, int]) -> None:
    everything = [place for part in PARTS for place in _places(Span(part, part, -1, counts[part] + 1), counts)]
    if recipe.train == "full":
        if not any(recipe.in_full(place) for place in everything):
            raise ConfigError("every part is frozen: nothing would learn; take one out of `freeze`")
        return
    if not any(recipe.adapted(place) is not None for place in everything):
        raise ConfigError(
            f"`train: {recipe.train}` and no layer is left for adapters: all are frozen or trained in full, so "
            "adapters would learn nothing; take one out of `freeze` or `full`, or use `train: full`"
        )
    for span, _ in recipe.targets if recipe.by_part else ():
        if all(recipe.adapted(place) is None for place in _places(span, counts)):
            raise ConfigError(f"model.lora.targets: {span.text} is frozen or trained in full; no adapter fits there")


def _places(span: Span, counts: Mapping[Part, int]) -> Iterator[Place]:
    layers = range(span.start, span.stop) if counts[span.part] else range(1)
    return (Place(span.part, layer) for layer in layers)


def _within(place: Place, found: Iterable[Span]) -> bool:
    return any(span.holds(place) for span in found)
