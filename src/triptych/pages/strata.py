"""Choose the samples that a page shows: some of each kind, the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def choose(kinds: Mapping[str, Sequence[int]], everything: int, most: int, seed: int = 0) -> dict[int, list[str]]:
    """At most ``most`` of ``everything`` samples: those of each kind in turn, then others at random.

    Args:
        kinds: name of a kind -> its samples, the most telling ones first.
        everything: number of samples there are.
        most: how many to choose.
        seed: of the random ones.

    Returns:
        sample -> the kinds that it was chosen for, in the order of ``kinds``; ``random`` for the others.
    """
    chosen: dict[int, list[str]] = {}
    waiting = [iter(samples) for samples in kinds.values()]
    while waiting and len(chosen) < most:
        for samples in list(waiting):
            found = next((sample for sample in samples if sample not in chosen), None)
            if found is None:
                waiting.remove(samples)
            elif len(chosen) < most:
                chosen[found] = []
    random = np.random.default_rng(seed)
    if everything <= most:
        rest = list(range(everything))
    else:
        rest = random.permutation(everything)[: most + len(chosen)].tolist()
    for sample in rest:
        if len(chosen) >= most:
            break
        chosen.setdefault(sample, [])
    members = {name: set(samples) for name, samples in kinds.items()}
    for sample in chosen:
        chosen[sample] = [name for name in kinds if sample in members[name]] or ["random"]
    return dict(sorted(chosen.items()))
