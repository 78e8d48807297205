"""Which clips a training step sees: every place of a batch walks along a video, clip by clip, then along another one.

So files are read in order; and the frame with which a model ended its drawing of a clip can be carried on to the next,
as a rollout does (vw2/training/carried.py). GROUPS batches walk in turn, so that neighbouring steps see other videos.
A function of (seed, step): resuming needs no state of the reader. Our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np

from vw2.data.sampler import Mixture
from vw2.data.shards import ClipStore
from vw2.streams import Stream

GROUPS = 4  # batches that walk in turn
TURNS = 4  # a video of one clip is walked to and fro so often in all


@dataclass(frozen=True)
class Leg:
    """One clip of a walk."""

    row: int  # of the index
    backwards: bool = False  # played backwards
    follows: bool = False  # begins with the frame with which the leg before ended


@dataclass(frozen=True)
class Walked:
    """The batch of one step."""

    frames: np.ndarray  # (B, T, H, W, 3) uint8
    follows: np.ndarray  # (B,) bool
    walkers: slice  # B of all
    keys: list[tuple[int, int]]  # B: the walker, and which of its stretches of clips that follow each other this is

    def parts(self, size: int | None) -> Iterator[tuple[Walked, float]]:
        """It in parts of at most `size` clips (None: whole), each with its share of them."""
        batch, first = len(self.frames), self.walkers.start
        for low in range(0, batch, size or batch):
            high = min(low + (size or batch), batch)
            walkers = slice(first + low, first + high)
            part = Walked(self.frames[low:high], self.follows[low:high], walkers, self.keys[low:high])
            yield part, (high - low) / batch


def route(store: ClipStore, rows: Sequence[int]) -> list[Leg]:
    """The legs of one video whose clips are `rows`, in order; a single clip is walked to and fro."""
    if len(rows) == 1:
        return [Leg(rows[0], backwards=turn % 2 == 1, follows=turn > 0) for turn in range(TURNS)]
    starts = store.index["start"][list(rows)].to_list()
    joined = [False] + [b - a == store.clip_frames - 1 for a, b in pairwise(starts)]
    return [Leg(row, follows=follows) for row, follows in zip(rows, joined, strict=True)]


class Walks:
    """Batches of training clips, read one step ahead.

    Videos are drawn by the weights of their sources, which hold for clips: a source of longer videos begins fewer.

    Args:
        store: the clips; rows: those to train on, clips of a video together and in order.
        seed; batch: clips of a step.
        rank, ranks: this process, and how many there are; each has walkers of its own.
    Raises: ValueError for no rows, batch < 1 or a rank that is not in [0, ranks).
    """

    def __init__(self, store: ClipStore, rows: Sequence[int], seed: int, batch: int, rank: int = 0, ranks: int = 1):
        if not len(rows) or batch < 1 or not 0 <= rank < ranks:
            got = f"{len(rows)} rows, batch {batch}, rank {rank} of {ranks}"
            raise ValueError(f"expected rows, batch >= 1 and a rank in [0, ranks), got {got}")
        self.store, self.seed, self.batch, self.rank, self.ranks = store, seed, batch, rank, ranks
        chosen = store.index[list(rows)]
        videos = chosen["video"].rle_id().to_numpy()
        borders = [0, *(np.flatnonzero(np.diff(videos)) + 1).tolist(), len(rows)]
        self.routes = [route(store, rows[low:high]) for low, high in pairwise(borders)]
        sources = np.array([chosen["source"][low] for low in borders[:-1]])
        names = sorted(set(sources.tolist()))
        groups = [np.flatnonzero(sources == name) for name in names]
        legs = [np.mean([len(self.routes[video]) for video in group]) for group in groups]
        weights = [store.weights.get(name, 1.0) / mean for name, mean in zip(names, legs, strict=True)]
        self.mixture = Mixture(groups, weights)
        self._restart()
        self._reader = ThreadPoolExecutor(1, "read clips")
        self._ahead: tuple[int, Future] | None = None

    @property
    def walkers(self) -> int:
        """Of this rank."""
        return GROUPS * self.batch

    def _restart(self) -> None:
        first = self.rank * self.walkers
        self._walks = [self._walk(walker) for walker in range(first, first + self.walkers)]
        self._keys = [(walker, 0) for walker in range(first, first + self.walkers)]
        self._step = 0

    def _walk(self, walker: int) -> Iterator[Leg]:
        """All legs of one walker, without end; it sets out somewhere in its first video."""
        for draw in count():
            video = self.mixture.batch(self.seed, draw * self.walkers * self.ranks + walker, 1)[0]
            legs = self.routes[video]
            rng = np.random.default_rng([self.seed, Stream.WALKS, walker])
            start = int(rng.integers(len(legs))) if draw == 0 else 0
            yield Leg(legs[start].row, legs[start].backwards)
            yield from legs[start + 1 :]

    def legs(self, step: int) -> tuple[list[Leg], slice, list[tuple[int, int]]]:
        """The legs of one step, whose they are, and their keys."""
        if step < self._step:
            self._restart()
        while True:
            group = self._step % GROUPS
            walkers = slice(group * self.batch, (group + 1) * self.batch)
            legs = [next(walk) for walk in self._walks[walkers]]
            keys = [(w, n + (not leg.follows)) for (w, n), leg in zip(self._keys[walkers], legs, strict=True)]
            self._keys[walkers] = keys
            self._step += 1
            if self._step > step:
                return legs, walkers, keys

    def _read(self, step: int) -> Walked:
        legs, walkers, keys = self.legs(step)
        clips = [self.store.frames(leg.row)[:: -1 if leg.backwards else 1] for leg in legs]
        return Walked(np.stack(clips), np.array([leg.follows for leg in legs]), walkers, keys)

    def __getitem__(self, step: int) -> Walked:
        """The batch of a step; while it is used, the next one is read."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = step, self._reader.submit(self._read, step)
        walked = self._ahead[1].result()
        self._ahead = step + 1, self._reader.submit(self._read, step + 1)
        return walked
