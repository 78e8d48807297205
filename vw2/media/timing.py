"""What the times of a video's frames say: its rate, whether that varies, where nothing happens for long.

A few of them may be missing or wrong (two frames at one time, one far ahead of those that follow): then the rest is
believed. Where more than BAD are wrong, none is alone, only the length of each stretch between set-backs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

JITTER = 0.25  # frames; timestamps within this distance of a regular grid count as constant rate
MAX_GAP = 10.0  # seconds for which a video may show one frame: beyond it times are broken, or it is a slide show
BAD = 0.05  # share of the times that may be missing or wrong before the others are not believed either
APART, STRAY = 0.05, 3.0  # share of the frames, and frames, by which a declared rate may miss the time they take
SET_BACK = 0.5  # seconds; a time that much before the last one is another clock's, as where recordings were joined


def judged(timed: Iterable[tuple[float | None, Item]]) -> Iterator[tuple[float, bool, Item]]:
    """Times that do not decrease, in one pass that looks one frame ahead (our choice).

    A time is wrong if it is missing, not later than the last right one, or later than the next one, which alone would
    be right. In its place stands the middle of the times around it, or the last right one if the next is no help.

    Args:    timed: (seconds or None, anything) in display order.
    Yields:  (seconds, is that the frame's own time?, the thing); nan as long as nothing tells a time.
    """
    last, ahead = math.nan, iter(timed)
    now = next(ahead, None)
    while now is not None:
        then = next(ahead, None)
        seconds, item = now
        after = then[0] if then else None
        helpful = after is not None and not after <= last  # nan compares as False: nothing was right yet
        good = seconds is not None and not seconds <= last and not (helpful and after < seconds)
        if good:
            last = seconds
            yield seconds, True, item
        else:
            middle = after if math.isnan(last) else (last + after) / 2 if helpful else last
            yield math.nan if middle is None else middle, False, item
        now = then


def _right(times: Sequence[float | None]) -> np.ndarray:
    """Numbers of the frames whose times are right; none if too many are wrong."""
    right = np.flatnonzero([good for _, good, _ in judged((each, None) for each in times)])
    return right if len(right) > 1 and len(times) - len(right) <= BAD * len(times) else right[:0]


def frame_rate(times: Sequence[float | None], declared: Sequence[float]) -> tuple[float, bool]:
    """Frame rate of a video from the times of its frames (our choice).

    Args:
        times: seconds, in display order; None where the file says nothing.
        declared: rates the container claims, the most trusted first.
    Returns: (frames per second, False) if all right times lie within a quarter frame of a regular grid at a declared or
        the mean rate; (mean rate, True) if they do not. If too many are wrong, the first declared rate that fits the
        time its stretches take together, else the mean (without any time the first; 0.0 if there is none).
    """
    right = _right(times)
    if not len(right):
        return _rate_of_ends(times, declared), False
    offset = np.asarray([times[each] for each in right], dtype=np.float64) - times[right[0]]
    index = right - right[0]
    mean = index[-1] / offset[-1]
    for rate in (*declared, mean):
        if np.abs(offset * rate - index).max() <= JITTER:
            return float(rate), False
    return float(mean), True


def _rate_of_ends(times: Sequence[float | None], declared: Sequence[float]) -> float:
    """The rate where single times say nothing: that of the ends of each stretch of time, without lone strays."""
    known = [number for number, each in enumerate(times) if each is not None]
    inner = [
        b
        for a, b, c in zip(known, known[1:], known[2:], strict=False)
        if times[c] < times[a] or times[a] <= times[b] <= times[c]
    ]
    known = [*known[:1], *inner, *known[1:][-1:]]
    steps = [(b - a, times[b] - times[a]) for a, b in pairwise(known)]
    steps = [step for step in steps if step[1] > -SET_BACK]  # a clock that was set back begins anew
    frames, seconds = sum(step[0] for step in steps), sum(step[1] for step in steps)
    if seconds <= 0:
        return declared[0] if declared else 0.0
    fits = (rate for rate in declared if abs(rate * seconds - frames) <= max(APART * frames, STRAY))
    return float(next(fits, frames / seconds))


def longest_gap(times: Sequence[float | None], fps: float) -> tuple[float, float]:
    """The longest time that one frame stays, and when it begins (seconds; from 0 for the first frame).

    Args: times, fps: as in `frame_rate`. If too many times are wrong it is 1 / fps.
    """
    right = _right(times)
    if not len(right):
        return 1 / fps, 0.0
    own = np.asarray([times[each] for each in right], dtype=np.float64)
    gaps = np.diff(own)
    at = int(gaps.argmax())
    return float(gaps[at]), float(own[at] - own[0])
