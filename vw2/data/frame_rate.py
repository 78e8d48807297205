"""Which frame of a source stands where, at the rate of the clips: the rule for constant rates (our choice)."""

import math

NUDGE = 1e-9  # keeps j * src / dst from falling just below a whole number


def source_index(j: int, source_fps: float, fps: float) -> int:
    """Source frame shown by output frame j at constant rate: floor(j * source_fps / fps + 1e-9) (our choice)."""
    return math.floor(j * source_fps / fps + NUDGE)


def resampled_length(frames: int, source_fps: float, fps: float) -> int:
    """Number F of output frames that a constant-rate video of `frames` source frames gives."""
    count = math.ceil(frames * fps / source_fps)  # off by one at most; the rule itself decides
    while count > 0 and source_index(count - 1, source_fps, fps) >= frames:
        count -= 1
    while source_index(count, source_fps, fps) < frames:
        count += 1
    return count
