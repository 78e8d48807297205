"""Which clips make up the batch of a step: a function of seed and step, without state, so resuming is exact."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)  # a batch touches one epoch, or two where it straddles their border
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """Items of the batch at one step; every epoch visits each of n items once, in an order of its own (our choice).

    The epochs, each a permutation drawn from (seed, epoch), are laid end to end and cut into batches: no item is
    dropped at the end of an epoch, and a batch may straddle two.

    Args:    seed >= 0; step >= 0, counted from 0; batch >= 1; n >= 1 items.
    Returns: (batch,) int64 in [0, n).
    Raises:  ValueError outside these ranges.
    """
    if seed < 0 or step < 0 or batch < 1 or n < 1:
        raise ValueError(f"expected seed, step >= 0 and batch, n >= 1, got {seed}, {step}, {batch}, {n}")
    position = step * batch + np.arange(batch, dtype=np.int64)
    epochs = position // n
    picks = np.empty(batch, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        picks[inside] = _order(seed, epoch, n)[position[inside] % n]
    return picks
