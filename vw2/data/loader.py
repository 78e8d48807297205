"""Clips for training that do not fit in memory: read in file order, shuffled by a bounded buffer.

An epoch lays the chosen clips end to end, shard after shard; (seed, epoch) shuffles the shards. Part p of P takes the
p-th stretch of that line: parts are disjoint, together they are everything, and none reads a shard it does not need.
A part reads its stretch forwards only, into a buffer from which each step draws at random (our choice, as is usual for
data that stream). Order is a function of seed, part and number of draws: where a run stands is a small plain dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np

from vw2.data.shards import ClipStore

Item = tuple[np.ndarray, ...]
AHEAD = 2  # batches a worker prepares ahead of the training step


@dataclass(frozen=True)
class LoaderConfig:
    """How clips are streamed. Both change the order, so they are no runtime knobs."""

    buffer: int = 256  # clips that each worker draws from
    workers: int = 2  # threads per rank

    def __post_init__(self) -> None:
        if self.buffer < 1 or self.workers < 1:
            raise ValueError(f"loader: expected buffer and workers >= 1, got {self.buffer} and {self.workers}")


class Order:
    """In which order one part reads its clips and hands them out; knows rows of the index, no frames.

    Args:
        shards: rows of each shard, in file order; seed; part p of parts P; buffer: rows to draw from.
    Raises: ValueError if there are fewer rows than parts.
    """

    def __init__(self, shards: Sequence[Sequence[int]], seed: int, part: int, parts: int, buffer: int) -> None:
        total = sum(map(len, shards))
        if total < parts:
            raise ValueError(f"expected a clip for each of {parts} parts (ranks x workers), got {total}; use fewer")
        self.shards, self.seed, self.part, self.parts, self.size = shards, seed, part, parts, buffer
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        """Lay out an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        line = [row for shard in order for row in self.shards[shard]]
        low, high = (len(line) * p // self.parts for p in (self.part, self.part + 1))
        self.mine = line[low:high]
        self._luck = np.random.default_rng([self.seed, epoch, self.part, self.parts]).random(len(self.mine))
        self.epoch, self.read, self.drawn = epoch, 0, 0
        self.buffer: list[int] = []

    def fill(self) -> list[int]:
        """Rows to read now, in file order, so that the buffer is full; the next epoch begins where one is used up."""
        if self.drawn == len(self.mine):
            self._begin(self.epoch + 1)
        new = self.mine[self.read : self.read + self.size - len(self.buffer)]
        self.read += len(new)
        self.buffer += new
        return new

    def draw(self) -> int:
        """Take a row out of the buffer (after `fill`)."""
        pick = int(self._luck[self.drawn] * len(self.buffer))
        self.drawn += 1
        self.buffer[pick], self.buffer[-1] = self.buffer[-1], self.buffer[pick]
        return self.buffer.pop()

    def restart(self) -> None:
        """Go back to where all began."""
        self._begin(0)

    def skip(self, draws: int) -> None:
        """As if so many rows had been drawn."""
        for _ in range(draws):
            self.fill()
            self.draw()

    def state_dict(self) -> dict[str, Any]:
        """Position: epoch, rows read and drawn in it, content of the buffer."""
        return {"epoch": self.epoch, "read": self.read, "drawn": self.drawn, "buffer": list(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position of the same clips, seed, part and buffer."""
        self._begin(state["epoch"])
        self.read, self.drawn, self.buffer = state["read"], state["drawn"], list(state["buffer"])


class _Forward:
    """One shard, read forwards: neighbouring clips share a frame, which is not read again."""

    def __init__(self, store: ClipStore, shard: int) -> None:
        self.shard, self.frames = shard, store.clip_frames
        self.file = (store.path / f"frames-{shard:05d}.npy").open("rb")
        np.lib.format.read_magic(self.file)
        self.shape = np.lib.format.read_array_header_1_0(self.file)[0][1:]
        self.next, self.last = 0, np.empty(self.shape, np.uint8)  # number of the next frame; the one before it

    def clip(self, offset: int) -> np.ndarray:
        """(T, H, W, 3) uint8 from frame `offset` on, at most one frame behind what was read."""
        clip = np.empty((self.frames, *self.shape), np.uint8)
        known = self.next - offset
        if known == 1:
            clip[0] = self.last
        else:
            self.file.seek(-known * math.prod(self.shape), 1)  # forwards, over clips that are not ours
            known = 0
        rest = clip[known:].reshape(-1)
        if self.file.readinto(rest.data) != rest.size:
            raise ValueError(f"{self.file.name} ends early; run `dvc repro -f clip`")
        self.next, self.last = offset + self.frames, clip[-1].copy()
        return clip

    def close(self) -> None:
        self.file.close()


class ClipReader:
    """Endless clips of one part: (row, what `prepare` makes of its frames (T, H, W, 3) uint8)."""

    def __init__(self, store: ClipStore, order: Order, prepare: Callable[[np.ndarray], Item]) -> None:
        self.store, self.order, self.prepare = store, order, prepare
        self._place = store.index.select("shard", "offset").rows()
        self._open: _Forward | None = None
        # Only after a resume is the buffer not empty: its clips were passed already and are looked up.
        self._held = {row: prepare(store.frames(row)) for row in order.buffer}

    def __iter__(self) -> ClipReader:
        return self

    def __next__(self) -> tuple[int, Item]:
        for row in self.order.fill():
            self._held[row] = self.prepare(self._read(row))
        row = self.order.draw()
        return row, self._held.pop(row)

    def _read(self, row: int) -> np.ndarray:
        shard, offset = self._place[row]
        if self._open is None or self._open.shard != shard or offset < self._open.next - 1:  # the last: a new epoch
            self.close()
            self._open = _Forward(self.store, shard)
        return self._open.clip(offset)

    def close(self) -> None:
        """Close the shard that is being read."""
        if self._open is not None:
            self._open.close()
            self._open = None


class ClipLoader:
    """Endless batches for one rank, prepared by threads (reading and resizing do not hold Python's lock).

    Batch b comes from worker b mod M; rank r of R and worker w read part r M + w of R M.

    Args:
        store: the clips; rows: those to load (all by default).
        config: buffer and workers; batch: clips of a batch; seed: of every order.
        prepare: frames (T, H, W, 3) uint8 -> arrays to keep, say shrunk ones; called in the workers.
        rank, ranks: this process, and how many there are.
    Yields: (rows (B,) int64, each array of `prepare` stacked (B, ...)).
    """

    def __init__(
        self,
        store: ClipStore,
        config: LoaderConfig,
        batch: int,
        seed: int,
        rows: Sequence[int] | None = None,
        prepare: Callable[[np.ndarray], Item] = lambda frames: (frames,),
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch < 1 or not 0 <= rank < ranks:
            raise ValueError(f"expected batch >= 1 and rank in [0, ranks), got {batch}, {rank} of {ranks}")
        index = store.index[list(range(len(store)) if rows is None else rows)].select("shard", "offset")
        chosen = index.with_columns(row=np.arange(len(store)) if rows is None else np.asarray(rows, np.int64))
        parts = chosen.sort("shard", "offset").partition_by("shard", maintain_order=True)
        shards = [part["row"].to_list() for part in parts]
        self.store, self.config, self.batch, self.prepare = store, config, batch, prepare
        self.facts = {"seed": seed, "batch": batch, "ranks": ranks, "clips": len(chosen)}
        self.facts |= {"workers": config.workers, "buffer": config.buffer}
        self.rank, self.batches = rank, 0
        first, total = rank * config.workers, ranks * config.workers
        self._orders = [Order(shards, seed, first + w, total, config.buffer) for w in range(config.workers)]
        self._states = [order.state_dict() for order in self._orders]
        self._queues: list[Queue] = []
        self._threads: list[Thread] = []
        self._stop = Event()

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return self

    def __next__(self) -> tuple[np.ndarray, ...]:
        if not self._queues:
            self._queues = [Queue(AHEAD) for _ in self._orders]
            pairs = zip(self._orders, self._queues, strict=True)
            self._threads = [Thread(target=self._work, args=(*pair, self._stop), daemon=True) for pair in pairs]
            for thread in self._threads:
                thread.start()
        turn = self.batches % self.config.workers
        answer = self._queues[turn].get()
        if isinstance(answer, BaseException):
            raise answer
        batch, self._states[turn] = answer
        self.batches += 1
        return batch

    def _work(self, order: Order, queue: Queue, stop: Event) -> None:
        """Life of a worker: batches with the position after each, until told to stop."""
        try:
            reader = ClipReader(self.store, order, self.prepare)
            while not stop.is_set():
                rows, items = zip(*(next(reader) for _ in range(self.batch)), strict=True)
                batch = (np.asarray(rows, np.int64), *map(np.stack, zip(*items, strict=True)))
                _put(queue, (batch, order.state_dict()), stop)
            reader.close()
        except BaseException as error:
            _put(queue, error, stop)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch that was taken, whatever was prepared ahead: plain numbers, lists and dicts."""
        return {**self.facts, "rank": self.rank, "batches": self.batches, "parts": list(self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; the next batches are those that would have come. That of another rank serves as well.

        Raises: ValueError if it belongs to other clips or another way of loading them.
        """
        odd = {key: state.get(key) for key, value in self.facts.items() if state.get(key) != value}
        if odd:
            raise ValueError(f"expected the position of a loader with {self.facts}, got one with {odd}; start anew")
        self.close()
        self.batches = state["batches"]
        for w, order in enumerate(self._orders):
            if state["rank"] == self.rank:
                order.load_state_dict(state["parts"][w])
            else:  # all ranks stand at the same batch, and the order needs no frames
                order.restart()
                order.skip(self.batch * len(range(w, self.batches, self.config.workers)))
        self._states = [order.state_dict() for order in self._orders]

    def close(self) -> None:
        """End the workers; the position stays."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._stop, self._queues, self._threads = Event(), [], []
        for order, state in zip(self._orders, self._states, strict=True):
            order.load_state_dict(state)


def _put(queue: Queue, item: Any, stop: Event) -> None:
    """Queue an item unless nobody wants it any more."""
    while not stop.is_set():
        try:
            return queue.put(item, timeout=0.1)
        except Full:
            continue
