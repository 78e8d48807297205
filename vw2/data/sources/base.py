"""What every source adapter has in common.

A source is a module with

    def entries(..., work: Path, workers: int) -> Iterator[Entry | Refused]

that yields one item per video, in any order; the stage sorts. `work` is a scratch directory that outlives an
interruption: an adapter that goes through `vw2.data.pool.run_resumable` continues video by video. Files that a source
makes itself (rendered or unpacked videos) go to `work / "videos"`, ground truth to `work / "truth"`, both named by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vw2.data.manifest import Entry, Refused

MEMORY_GIB = 4.0  # what one worker may allocate: an 8192 x 8192 stream with its reference pictures fits


@dataclass(frozen=True)
class IngestConfig:
    """Where videos come from and what is refused (our choice)."""

    source: Literal["craft", "folder"] = "craft"
    path: str | None = None  # folder of videos; not used by craft
    licence: str = "unknown"  # of the videos in path, where a sidecar does not say
    min_frames: int = 2  # shorter videos are refused
    max_side: int = 8192  # pixels
    time_limit: float = 600.0  # seconds of computing to decode one file

    def __post_init__(self) -> None:
        if self.source != "craft" and not self.path:
            raise ValueError(f"ingest.source {self.source} needs ingest.path, got none; set it to a folder of videos")
        if self.min_frames < 1 or self.max_side < 1 or self.time_limit <= 0:
            raise ValueError("ingest.min_frames, ingest.max_side and ingest.time_limit must be positive")


def from_record(record: dict[str, Any]) -> Entry | Refused:
    """The JSON form that `run_resumable` remembers -> Entry or Refused."""
    return Refused(**record) if "reason" in record else Entry(**record)
