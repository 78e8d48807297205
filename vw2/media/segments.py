"""Parts of a video file: several videos may lie in one file, each from `start` to `stop` seconds after its first frame.

A frame belongs to a part if it is due in [start, stop), to half a frame: what is written as 8 s may be stored as
7.9997. Nothing is ever sought: seeks land on key frames, trust an index that may be wrong and can lose frames. A file
is decoded from its first frame on, once for all parts that do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from vw2.media.decode import MAX_SIDE, MediaError, VideoInfo, read_pictures, timeline
from vw2.media.picture import Picture

Span = tuple[float, float]  # start and stop, seconds after the first frame of the file
Timed = tuple[float, Picture]


def position(seconds: float, span: Span, fps: float) -> int:
    """Where a frame lies: -1 before the span, 0 in it, 1 behind it."""
    early = seconds + 0.5 / fps
    return -1 if early < span[0] else 0 if early < span[1] else 1


def scan_spans(
    path: Path, spans: Sequence[Span], *, max_side: int = MAX_SIDE, max_seconds: float | None = None
) -> tuple[VideoInfo, list[np.ndarray]]:
    """Decode a whole file once; its facts and, for each span, the times of its frames.

    Args:    as `vw2.media.decode.scan`.
    Returns: facts of the whole file; per span a float64 array of seconds after the first frame of the file.
    Raises:  MediaError with the reason, also if frames carry no times that increase; FileNotFoundError.
    """
    info, times = timeline(path, max_side=max_side, max_seconds=max_seconds)
    if None in times or any(b <= a for a, b in zip(times, times[1:], strict=False)):
        raise MediaError("does not say when its frames are due, so its parts cannot be told apart", len(times))
    seconds = np.asarray(times, dtype=np.float64) - float(times[0])
    early = seconds + 0.5 / info.fps
    return info, [seconds[(early >= start) & (early < stop)] for start, stop in spans]


def read_spans(
    path: Path, spans: Sequence[Span], fps: float, *, max_side: int = MAX_SIDE
) -> Iterator[tuple[int, Iterator[Timed]]]:
    """Decode the parts of a file in order of time, two frames in memory at a time.

    Args:
        path: video file.
        spans: parts, in any order; where they overlap the file is decoded again.
        fps: frames per second of the file, which say what half a frame is.
        max_side: as `read_pictures`.
    Yields: (number of the span, its frames as (seconds since the first frame of the span, picture)); the
        frames must be taken before the next span is asked for.
    Raises: as `read_pictures`.
    """
    for batch in _passes(spans):
        with closing(read_pictures(path, max_side=max_side)) as frames:
            held: list[Timed] = []
            for number in batch:
                part = _take(frames, held, spans[number], fps)
                yield number, part
                for _ in part:  # what the caller left
                    pass


def read_span(
    path: Path, start: float | None, stop: float | None, fps: float, *, max_side: int = MAX_SIDE
) -> Iterator[Timed]:
    """The frames of one row of the manifest, as `read_pictures`: a whole file (start None), or a part of one."""
    if start is None or stop is None:
        yield from read_pictures(path, max_side=max_side)
        return
    for _, part in read_spans(path, [(start, stop)], fps, max_side=max_side):
        yield from part


def _passes(spans: Sequence[Span]) -> list[list[int]]:
    """Numbers of the spans, dealt to passes over the file so that no two of a pass overlap."""
    passes: list[list[int]] = []
    for number in sorted(range(len(spans)), key=lambda each: spans[each]):
        free = (batch for batch in passes if spans[batch[-1]][1] <= spans[number][0])
        batch = next(free, None)
        if batch is None:
            passes.append([number])
        else:
            batch.append(number)
    return passes


def _take(frames: Iterator[Timed], held: list[Timed], span: Span, fps: float) -> Iterator[Timed]:
    """Frames of a span from a stream; the one read too far is left in `held` for the next span."""
    first = None
    while True:
        item = held.pop() if held else next(frames, None)
        if item is None:
            return
        where = position(item[0], span, fps)
        if where > 0:
            held.append(item)
            return
        if where == 0:
            first = item[0] if first is None else first
            yield item[0] - first, item[1]
