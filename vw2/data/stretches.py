"""Hard cuts, still and black stretches of a video, found in one pass while its frames go by, in bounded memory.

A frame is seen as 8 x 8 cells of mean colour, which sensor and encoder noise hardly moves (all rules are our choice):
cut    the middle cell changes by `cut_change` levels beyond what all cells share (light, exposure), `cut_ratio` times
       as much as between any neighbouring frames (so no fast motion, no fade), and none of the WINDOW frames after
       looks like one of the WINDOW before (so no flash). Missed: scenes shorter than WINDOW frames, and two views
       with the same coarse colours.
still  no cell moves more than `still_change` levels away from the first frame of the stretch: slow motion adds up.
black  no cell is brighter than `black_level`.

Legend: n frames, 8 x 8 cells, levels of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Action = Literal["report", "drop"]

GRID = 8  # cells on a side
SAMPLED = 8  # pixels of a cell looked at on a side, at least; of large pictures not every pixel is needed
WINDOW = 4  # frames on each side of a cut that are compared
CHUNK = 256  # frames examined at once


@dataclass(frozen=True)
class StretchConfig:
    """What counts as a cut, a still or a black stretch, and what becomes of it."""

    on_cut: Action = "report"  # drop: no clip straddles it
    cut_change: float = 10.0  # levels
    cut_ratio: float = 3.0
    on_still: Action = "report"  # drop: its frames are left out
    still_change: float = 6.0  # levels
    still_seconds: float = 2.0  # shorter ones do not count
    on_black: Action = "report"  # drop: its frames are left out
    black_level: float = 16.0  # levels
    black_seconds: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cut_change", "still_change", "still_seconds", "black_level", "black_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"clip.{name} must be positive, got {getattr(self, name)}")
        if self.cut_ratio < 1:
            raise ValueError(f"clip.cut_ratio must be at least 1, got {self.cut_ratio}")


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a video; a cut lies before frame start = stop."""

    kind: Literal["cut", "still", "black"]
    start: int
    stop: int


def cells(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (8, 8, 3) uint8, mean colours."""
    rows, columns = (max(1, side // (GRID * SAMPLED)) for side in frame.shape[:2])
    return cv2.resize(frame[::rows, ::columns], (GRID, GRID), interpolation=cv2.INTER_AREA)


def _middle(values: np.ndarray) -> np.ndarray:
    """The (upper) median of the last axis; an order of magnitude faster than `np.median`."""
    return np.sort(values, axis=-1)[..., values.shape[-1] // 2]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Levels by which the middle cell differs beyond the shift that all cells share: (..., 3, 64) -> (...)."""
    change = a - b
    change = change - _middle(change)[..., None]
    return _middle(np.abs(change).sum(-2)) / 3


class StretchFinder:
    """Fed with the frames of one video in order; says at the end what it found."""

    def __init__(self, config: StretchConfig, fps: float) -> None:
        self.config, self.fps = config, fps
        self.found: list[Stretch] = []
        self.frames = 0  # seen so far
        self._cells: list[np.ndarray] = []  # of distinct frames not yet examined
        self._at: list[int] = []  # their numbers
        self._tail = np.empty((0, 3, GRID * GRID), np.float32)  # the last ones examined, for cuts
        self._tail_at: list[int] = []
        self._anchor: np.ndarray | None = None  # first frame of a stretch that may be still
        self._still = self._black = None  # number of the frame at which an open stretch began

    def see(self, frame: np.ndarray) -> None:
        """The next frame, (H, W, 3) uint8."""
        self._cells.append(cells(frame))
        self._at.append(self.frames)
        self.frames += 1
        if len(self._at) == CHUNK:
            self._examine()

    def repeat(self) -> None:
        """The next frame is the last one again (a slow source): it lasts longer, nothing else."""
        self.frames += 1

    def finish(self) -> list[Stretch]:
        """All that was found, in order of time."""
        self._examine(last=True)
        self._close("still", self._still, self.frames, self.config.still_seconds)
        self._close("black", self._black, self.frames, self.config.black_seconds)
        return sorted(self.found, key=lambda each: (each.start, each.stop, each.kind))

    def _examine(self, last: bool = False) -> None:
        if self._at:
            seen = np.stack(self._cells).reshape(-1, GRID * GRID, 3).swapaxes(1, 2).astype(np.float32, order="C")
            self._find_stretches(seen)
            self._tail, self._tail_at = np.concatenate([self._tail, seen]), self._tail_at + self._at
            self._cells, self._at = [], []
        self._find_cuts(last)

    def _find_cuts(self, last: bool) -> None:
        """Look for cuts in the tail; keep what later ones need."""
        seen, n, config = self._tail, len(self._tail), self.config
        first = 1 if n and self._tail_at[0] == 0 else WINDOW
        end = n if last else n - WINDOW + 1
        if n > 1:
            # Twice the mean change is never below that of the middle cell, and cheap.
            bound = 2 * np.abs(seen[1:] - seen[:-1]).mean((1, 2))
            maybe = np.flatnonzero(bound >= config.cut_change) + 1
            maybe = maybe[(maybe >= first) & (maybe < end)]
            sure = maybe[difference(seen[maybe], seen[maybe - 1]) >= config.cut_change]
            cuts = [self._tail_at[j] for j in sure if self._is_cut(seen[max(0, j - WINDOW) : j], seen[j : j + WINDOW])]
            self.found += [Stretch("cut", at, at) for at in cuts]
        if not last and n >= 2 * WINDOW:
            self._tail, self._tail_at = seen[1 - 2 * WINDOW :], self._tail_at[1 - 2 * WINDOW :]

    def _is_cut(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Is there a cut between these (up to WINDOW, 3, 64) frames?"""
        change = difference(after[0], before[-1])
        near = [difference(side[1:], side[:-1]).max(initial=0.0) for side in (before, after)]
        if change < self.config.cut_ratio * max(1.0, *near):
            return False
        return bool(difference(before[:, None], after[None]).min() >= self.config.cut_change)

    def _find_stretches(self, seen: np.ndarray) -> None:
        """Open and close black and still stretches; black frames are not counted as still."""
        black = (seen.max((1, 2)) < self.config.black_level).tolist()
        grey = seen.mean(1)  # (n, 64)
        limit = self.config.still_change
        for number, dark, now in zip(self._at, black, grey, strict=True):
            if dark:
                self._black = number if self._black is None else self._black
                self._close("still", self._still, number, self.config.still_seconds)
                self._still = self._anchor = None
                continue
            if self._black is not None:
                self._close("black", self._black, number, self.config.black_seconds)
                self._black = None
            if self._anchor is None or np.abs(now - self._anchor).max() >= limit:
                self._close("still", self._still, number, self.config.still_seconds)
                self._still, self._anchor = number, now

    def _close(self, kind: Literal["still", "black"], start: int | None, stop: int, least: float) -> None:
        """Note the frames [start, stop) if they last long enough."""
        if start is not None and stop - start >= least * self.fps:
            self.found.append(Stretch(kind, start, stop))


def segments(frames: int, found: Sequence[Stretch], config: StretchConfig) -> list[tuple[int, int]]:
    """What is left of a video of F frames once the stretches to drop are out: [start, stop) of each unbroken part."""
    action = {"cut": config.on_cut, "still": config.on_still, "black": config.on_black}
    parts, start = [], 0
    for each in sorted((each for each in found if action[each.kind] == "drop"), key=lambda each: each.start):
        parts.append((start, each.start))
        start = max(start, each.stop)
    return [(start, stop) for start, stop in [*parts, (start, frames)] if start < stop]
