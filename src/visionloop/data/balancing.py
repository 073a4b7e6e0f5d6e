"""How small classes are made to count more: by drawing their images more often, or by variants that are stored.

With strength s a class of n images counts as n^(1-s) beside the others: 0 leaves the classes as they are, 1 makes them
equal; 0.5 is the square-root sampling of Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining" (ECCV
2018).

Does not cover: weights in the loss, which leave the batches as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def balanced_order(labels: Integers, strength: float, generator: np.random.Generator) -> Integers:
    """An epoch's order int64 [N] of positions in `labels` [N], in which each class has its balanced share.

    Within a class every image comes equally often, give or take once; who comes once more is drawn anew each epoch.
    """
    present, counts = np.unique(labels, return_counts=True)
    weights = counts ** (1 - strength)
    shares = weights / weights.sum() * len(labels)
    quotas = np.floor(shares).astype(np.int64)
    # The images that rounding leaves over go to classes by chance of what each lost.
    left = len(labels) - int(quotas.sum())
    if left:
        lost = shares - quotas
        quotas[generator.choice(len(present), left, replace=False, p=lost / lost.sum())] += 1
    chosen = []
    for label, quota in zip(present, quotas, strict=True):
        positions = np.flatnonzero(labels == label)
        rounds, rest = divmod(int(quota), len(positions))
        chosen += [np.tile(positions, rounds), generator.permutation(positions)[:rest]]
    return generator.permutation(np.concatenate(chosen))


def variant_sources(labels: Integers, strength: float) -> Integers:
    """Of which image each stored variant is made, int64 [V] positions in `labels`, class after class.

    A class of n images is filled up to n^(1-s) * m^s where m is the largest class; its images take turns.
    """
    present, counts = np.unique(labels, return_counts=True)
    largest = counts.max(initial=1)
    chosen = [np.zeros(0, dtype=np.int64)]
    for label, count in zip(present, counts, strict=True):
        goal = round(float(count) ** (1 - strength) * float(largest) ** strength)
        positions = np.flatnonzero(labels == label)
        chosen.append(np.resize(positions, max(0, goal - int(count))))
    return np.concatenate(chosen)
