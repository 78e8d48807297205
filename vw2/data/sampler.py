"""Which clips make up the batch of a step: a function of seed and step, without state, so resuming is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


BLOCK = 10_000  # positions in which every source comes as often as its weight says


class Mixture:
    """Items of several sources, drawn by weight; like `batch_indices` a function of seed and step, without state.

    All positions of all steps, laid end to end, are cut into blocks of BLOCK. In each block a source has the same
    number of positions, its share of the weights (to the nearest 1 / BLOCK, at least one), in an order drawn from
    (seed, block). The positions of a source show its items in epochs, each a permutation: within a source no item comes
    twice before all have come once. (Our choice; the authors' Open-X mixture draws a subset in proportion to its
    estimated frames, then a file and a start at random. Weights in proportion to the numbers of clips give the same
    shares.) One source alone is drawn by `batch_indices`, whatever its weight.

    Attributes: groups (items of each source, int64), quota (positions of each source in a block).
    """

    def __init__(self, groups: Sequence[np.ndarray], weights: Sequence[float]) -> None:
        """Raises: ValueError for no source, more than BLOCK, an empty one or a weight that is not above 0."""
        if not 1 <= len(groups) == len(weights) <= BLOCK or min(map(len, groups)) < 1 or not min(weights) > 0:
            sizes = ", ".join(str(len(group)) for group in groups)
            raise ValueError(f"expected 1 to {BLOCK} sources with items and weights above 0, got {sizes} and {weights}")
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups]
        self.quota = _quota(weights)
        self._orders: dict[int, tuple[tuple[int, int], np.ndarray]] = {}  # source -> (seed, epoch), its permutation

    def batch(self, seed: int, step: int, batch: int) -> np.ndarray:
        """Items of the batch at one step: (batch,) int64. Arguments and errors as in `batch_indices`."""
        if len(self.groups) == 1:
            return self.groups[0][batch_indices(seed, step, batch, len(self.groups[0]))]
        if seed < 0 or step < 0 or batch < 1:
            raise ValueError(f"expected seed, step >= 0 and batch >= 1, got {seed}, {step}, {batch}")
        picks = []
        for position in range(step * batch, (step + 1) * batch):
            block, place = divmod(position, BLOCK)
            source, rank = (int(column[place]) for column in _block(seed, block, self.quota))
            picks.append(self._item(seed, source, block * self.quota[source] + rank))
        return np.array(picks, dtype=np.int64)

    def _item(self, seed: int, source: int, draw: int) -> int:
        """The item that a source shows when it is drawn for the `draw`-th time, counted from 0."""
        group = self.groups[source]
        epoch, place = divmod(draw, len(group))
        if self._orders.get(source, (None,))[0] != (seed, epoch):
            # The last word keeps these streams apart from each other and from those of blocks.
            order = np.random.default_rng([seed, epoch, source + 2]).permutation(len(group))
            self._orders[source] = (seed, epoch), order
        return int(group[self._orders[source][1][place]])


def _quota(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of each source in a block: shares of the weights by largest remainder, at least one each."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    quota = np.maximum(np.floor(shares).astype(int), 1)
    while (left := BLOCK - quota.sum()) != 0:  # the source furthest from its share gives or takes one
        off = (shares - quota) * np.sign(left)
        off[(quota == 1) & (left < 0)] = -np.inf
        quota[int(np.argmax(off))] += np.sign(left)
    return tuple(int(number) for number in quota)


@lru_cache(maxsize=4)
def _block(seed: int, block: int, quota: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Per position of a block: the source, and how many positions before it in the block are of that source."""
    sources = np.random.default_rng([seed, block, 1]).permutation(np.repeat(np.arange(len(quota)), quota))
    ranks = np.empty(BLOCK, dtype=np.int64)
    ranks[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(number) for number in quota])
    return sources, ranks


def mixture(sources: Sequence[str], weights: Mapping[str, float]) -> Mixture:
    """How to draw from items of the given sources (a name per item); a source without a weight has 1."""
    names, column = sorted(set(sources)), np.asarray(sources)
    return Mixture([np.flatnonzero(column == name) for name in names], [weights.get(name, 1.0) for name in names])
