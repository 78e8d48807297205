"""What the sources of robot episodes share: one episode -> one video and one table of its track, both by id.

<work>/videos/<id>.mp4       H.264, near lossless
<work>/tracks/<id>.parquet   TRACKS: one row per frame
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vw2.data.manifest import Entry, content_hash, tidy
from vw2.data.sources.base import FOLDER, write_track
from vw2.media.decode import MediaError
from vw2.media.encode import write_video
from vw2.scratch import atomic_file


@dataclass(frozen=True)
class Limits:
    """What is refused (see IngestConfig)."""

    min_frames: int
    max_side: int  # pixels
    time_limit: float  # seconds of computing


@dataclass(frozen=True)
class Facts:
    """What a source knows of an episode without looking at its pictures (columns of the manifest)."""

    id: str
    source: str
    split: str | None
    environment: str
    task: str
    instruction: str
    licence: str
    fps: float


@dataclass(frozen=True)
class Track:
    """Numbers and words beside the T pictures: action (T, A) and state (T, S) float32, A or S = 0 if not given."""

    action: np.ndarray
    state: np.ndarray
    instruction: Sequence[str | None]  # T


def _checked(frames: Iterable[np.ndarray], limits: Limits, size: list[int]) -> Iterator[np.ndarray]:
    """The frames, as long as they keep to one size and to the limits; counts them into size = [T, H, W]."""
    start = time.process_time()
    for frame in frames:
        height, width, _ = frame.shape
        if max(height, width) > limits.max_side:
            raise MediaError(f"has a frame of {width}x{height} pixels, more than {limits.max_side} on a side")
        if size[0] and [height, width] != size[1:]:
            raise MediaError(f"changes its size at frame {size[0]} from {size[2]}x{size[1]} to {width}x{height} pixels")
        size[:] = size[0] + 1, height, width
        yield frame
        if time.process_time() - start > limits.time_limit:
            raise MediaError(f"takes longer than {limits.time_limit:g} s ({size[0]} frames were done)")


def check_length(frames: int, limits: Limits) -> None:
    """Raise MediaError if an episode is shorter than ingest.min_frames."""
    if frames < limits.min_frames:
        unit = "frame" if frames == 1 else "frames"
        raise MediaError(f"holds {frames} {unit}, ingest.min_frames is {limits.min_frames}")


def store(
    work: Path, facts: Facts, count: int, frames: Iterable[np.ndarray], track: Callable[[], Track], limits: Limits
) -> Entry:
    """Write the video and the track of one episode, each whole or not at all.

    Args:
        count: number of frames T.
        frames: T pictures (H, W, 3) uint8 RGB, drawn one at a time.
        track: asked for after the last picture, which a source may have read together with the numbers.
    Raises: MediaError with the reason if the pictures break a limit or a number is not finite, and what `frames` and
        `track` raise.
    """
    check_length(count, limits)
    size = [0, 0, 0]
    file = work / "videos" / f"{facts.id}.mp4"
    with atomic_file(file) as temporary:
        write_video(temporary, _checked(frames, limits, size), facts.fps)
        beside = track()
        lengths = {size[0], len(beside.action), len(beside.state), len(beside.instruction)}
        if lengths != {count}:
            raise ValueError(f"{facts.id}: expected {count} frames, actions, states and instructions, got {lengths}")
        columns = {
            "frame": range(count),
            "action": beside.action.astype(np.float32).tolist(),
            "state": beside.state.astype(np.float32).tolist(),
            "instruction": [text if text is None else tidy(text) for text in beside.instruction],
        }
        write_track(work, facts.id, pl.DataFrame(columns))
    return Entry(
        id=facts.id,
        source=facts.source,
        path=f"{FOLDER}/{facts.id}.mp4",
        split=facts.split,
        environment=facts.environment,
        task=facts.task,
        instruction=facts.instruction,
        fps=facts.fps,
        frames=count,
        width=size[2],
        height=size[1],
        codec="h264",
        hash=content_hash(file),
        licence=facts.licence,
    )
