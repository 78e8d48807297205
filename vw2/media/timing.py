"""What the times of a video's frames say: its rate, whether that varies, where nothing happens for long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

JITTER = 0.25  # frames; timestamps within this distance of a regular grid count as constant rate
MAX_GAP = 10.0  # seconds for which a video may show one frame: beyond it times are broken, or it is a slide show


def frame_rate(times: Sequence[float | None], declared: Sequence[float]) -> tuple[float, bool]:
    """Frame rate of a video from the times of its frames (our choice).

    Args:
        times: seconds, in display order; None where the file says nothing.
        declared: rates the container claims, the most trusted first.
    Returns: (frames per second, False) if all times lie within a quarter frame of a regular grid at a declared or the
        mean rate; (mean rate, True) if they do not. Times that are missing or do not increase say nothing: then the
        first declared rate holds (0.0 if there is none).
    """
    if len(times) < 2 or None in times or any(b <= a for a, b in zip(times, times[1:], strict=False)):
        return (declared[0] if declared else 0.0), False
    offset = np.asarray(times, dtype=np.float64) - times[0]
    mean = (len(times) - 1) / offset[-1]
    index = np.arange(len(times))
    for rate in (*declared, mean):
        if np.abs(offset * rate - index).max() <= JITTER:
            return float(rate), False
    return float(mean), True


def longest_gap(times: Sequence[float | None], fps: float) -> tuple[float, float]:
    """The longest time that one frame stays, and when it begins (seconds; from 0 for the first frame).

    Args: times, fps: as in `frame_rate`. Times that are missing or do not increase say nothing: then it is 1 / fps.
    """
    if len(times) < 2 or None in times or any(b <= a for a, b in zip(times, times[1:], strict=False)):
        return 1 / fps, 0.0
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    at = int(gaps.argmax())
    return float(gaps[at]), float(times[at] - times[0])
