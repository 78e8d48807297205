"""Which frame of a source stands where, at the rate of the clips: the rule for constant rates (our choice)."""

import math

NUDGE = 1e-9  # keeps j * src / dst from falling just below a whole number


def source_index(j: int, source_fps: float, fps: float) -> int:
    """Source frame shown by output frame j at constant rate: floor(j * source_fps / fps + 1e-9) (our choice)."""
    return math.floor(j * source_fps / fps + NUDGE)
