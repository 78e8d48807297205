"""What every source adapter has in common.

A source is a module with

    def entries(..., work: Path, workers: int) -> Iterator[Entry | Refused]

that yields one item per video, in any order; the stage sorts (vw2/data/sources/table.py lists the adapters). `work` is
a scratch directory that outlives an interruption: an adapter that goes through `inspect_all` continues file by file.
Files that a source makes itself (rendered or unpacked videos) go to `work / "videos"`, ground truth to
`work / "truth"`, robot tracks (TRACKS, one row per frame) to `work / "tracks"`, all named by id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from vw2.console import UserError, progress
from vw2.data.manifest import Entry, Refused
from vw2.data.pool import Failure
from vw2.data.ranks import run_shared, share
from vw2.files import locate
from vw2.media.decode import MediaError
from vw2.scratch import atomic_file

FOLDER = "data/videos"  # where the stage puts the videos, relative to the repository
MEMORY_GIB = 4.0  # what one worker may allocate: an 8192 x 8192 stream with its reference pictures fits
UNKNOWN = "unknown"
Source = Literal["craft", "folder", "frames", "videocraft", "lerobot", "rlds", "calvin"]
SPLITS = {"train": "train", "val": "test", "validation": "test", "eval": "test", "test": "test"}  # of robot data sets
SECONDARY = ("wrist", "hand", "gripper", "depth", "mask", "segment")  # cameras and maps taken only if there is no other
READ_ERRORS = (MediaError, OSError, MemoryError)  # what reading a stranger's file may raise; see `why`
TRACKS = {
    "video": pl.String,  # id in the manifest
    "frame": pl.Int64,  # number within the video, from 0
    "action": pl.List(pl.Float32),  # what the robot was told at this frame, in the source's own units; [] without one
    "state": pl.List(pl.Float32),  # of the robot at this frame; [] without one
    "instruction": pl.String,  # null where the source has none
}


@dataclass(frozen=True)
class IngestConfig:
    """Where videos come from and what is refused (our choice)."""

    source: Source | list[dict[str, Any]] = "craft"  # a list: see vw2/data/sources/mixture.py
    path: str | None = None  # folder of the source; not used by craft and by a list
    camera: str | None = None  # lerobot: feature that holds the video; None: the first by name, see SECONDARY
    frames_fps: float = 16.0  # frames: pictures per second
    licence: str = "unknown"  # of the videos in path, where a sidecar does not say
    min_frames: int = 2  # shorter videos are refused
    max_side: int = 8192  # pixels
    time_limit: float = 600.0  # seconds of computing to decode one file

    def __post_init__(self) -> None:
        if isinstance(self.source, list):
            if self.path:
                raise ValueError(f"ingest.path is {self.path} beside a list in ingest.source, whose entries have paths")
        elif self.source == "craft" and self.path:
            raise ValueError(
                f"ingest.path is {self.path} but ingest.source craft renders its own videos; set ingest.source to "
                "folder for videos of your own, or ingest.path to null"
            )
        elif self.source != "craft" and not self.path:
            raise ValueError(f"ingest.source {self.source} needs ingest.path, got none; set it to a folder of videos")
        if not 0 < self.frames_fps <= 240:
            raise ValueError(f"ingest.frames_fps must lie above 0 and up to 240, got {self.frames_fps}")
        if self.min_frames < 1 or self.max_side < 1 or self.time_limit <= 0:
            raise ValueError("ingest.min_frames, ingest.max_side and ingest.time_limit must be positive")


def from_record(record: dict[str, Any]) -> Entry | Refused:
    """The JSON form that `run_shared` remembers -> Entry or Refused."""
    return Refused(**record) if "reason" in record else Entry(**record)


def why(error: BaseException) -> str:
    """One of READ_ERRORS as the reason of a refusal."""
    if isinstance(error, MemoryError):
        return f"needs more than {MEMORY_GIB:g} GiB to decode"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return str(error)


def source_folder(config: IngestConfig, content: str) -> Path:
    """The folder at ingest.path, as it can be opened.

    Args:    content: what it should hold, in words.
    Raises:  UserError if it is not a folder.
    """
    root = locate(config.path or "")
    if not root.is_dir():
        kind = "a file" if root.exists() else "nothing"
        raise UserError(f"expected a folder of {content} at ingest.path {config.path}, got {kind}; change ingest.path")
    return root


def walk(root: Path, shown: str, refused: list[Refused]) -> Iterator[tuple[str, list[str]]]:
    """Folders below `root`, relative to it ("." first), and the names of their files, sorted.

    Hidden files and folders are passed over, links to folders are followed, no folder is entered twice (loops).
    Args: shown: `root` as the quarantine names it; refused: takes folders that cannot be opened.
    """

    def lock(error: OSError) -> None:
        path = Path(shown) / os.path.relpath(error.filename, root)
        refused.append(Refused(utf8(path), f"is a folder that cannot be opened ({error.strerror})"))

    seen: set[str] = set()
    for folder, below, files in os.walk(root, onerror=lock, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        yield Path(folder).relative_to(root).as_posix(), sorted(name for name in files if not name.startswith("."))


def is_given(path: Path) -> bool:
    """Is something there? For what a data set may have or not.

    Raises: UserError for a link to nothing, which would pass for what it has not.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing; mend or remove it")
    return path.exists()


def utf8(path: Path | str) -> str:
    """A path with slashes, with bytes that are no UTF-8 as \\xNN: what tables can hold."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def state_of(path: Path) -> str:
    """Size and date of a file, for the name of its job; "" if it cannot be asked (its inspection will say why)."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f" {found.st_size} {found.st_mtime_ns}"


def refuse_pickles(config: IngestConfig, root: Path) -> None:
    """For a folder without anything usable: UserError if it holds pickles, which run a stranger's code when loaded."""
    found = next((path for kind in ("pkl", "pickle") for path in root.rglob(f"*.{kind}")), None)
    if found is not None:
        raise UserError(
            f"ingest.path {config.path} holds pickles ({found.name}), which are never loaded since they can run any "
            "code; get the same data as a LeRobot or RLDS data set and set ingest.source to lerobot or rlds"
        )


def write_track(work: Path, video: str, track: pl.DataFrame) -> None:
    """Leave the robot track of a video, with the columns of TRACKS, for the stage.

    Raises: MediaError naming the first frame with an action or state that is not finite as float32.
    """
    track = track.with_columns(video=pl.lit(video)).select(TRACKS.keys()).cast(TRACKS)
    for name in ("action", "state"):
        finite = track[name].list.eval(pl.element().is_finite().fill_null(False)).list.all().fill_null(False)
        if not finite.all():
            raise MediaError(f"holds no finite {name} (nan, infinity, null) in frame {finite.arg_min()}")
    with atomic_file(work / "tracks" / f"{video}.parquet") as temporary:
        track.write_parquet(temporary)


def inspect_all(
    inspect: Callable[[Any], dict[str, Any]],
    jobs: Mapping[str, Any],
    config: IngestConfig,
    work: Path,
    workers: int,
    title: str = "look into videos",
) -> Iterator[Entry | Refused]:
    """Look into files in worker processes that can be killed; an interrupted run goes on file by file.

    Args:
        inspect: job -> {"items": [Entry or Refused as dicts]}; importable by name.
        jobs: name, which stands for all that can change the outcome -> job with an attribute `path` for the quarantine.
    """
    # The worker's own limit, in computing time, comes first and tells how many frames came out; the pool's, in
    # wall-clock time, kills what hangs.
    limits = {"workers": workers, "seconds": 4 * config.time_limit + 60, "memory_gib": MEMORY_GIB}
    with progress(share(len(jobs)), title) as bar:
        for name, record in run_shared(inspect, jobs, work / "entries", **limits):
            if isinstance(record, Failure):
                yield Refused(jobs[name].path, record.reason)
            else:
                yield from map(from_record, record["items"])
            bar.advance()
