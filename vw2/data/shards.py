"""Clips on disk: a few large raw .npy shards and an index, read through memory maps.

frames-00000.npy   (S, H, W, 3) uint8; a video's frames lie once, in order, its tail padded by repeating the last frame
index.parquet      INDEX: clip i of a video is frames [offset, offset + T) of its shard, the first `valid` of them real
clips.json         T and the other clip parameters, the weights of the sources (vw2/data/sampler.py), and the SHA-256 of
                   the pixels of each shard: index and clips.json together stand for all that is in the folder

Neighbouring clips share one frame: the last of one is the first of the next. A video too long for one shard continues
in the next at a clip border (the shared frame is stored in both).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vw2.console import UserError
from vw2.files import read_json, read_table, write_json

SHARD_BYTES = 256 * 2**20
AT_ONCE = 2**24  # pixels of the clips that go through a model at once, in all frames; one clip may have more
UNKNOWN = "unknown"  # source of videos that no ingest has seen
INDEX = {
    "video": pl.String,
    "source": pl.String,  # as in the manifest
    "clip": pl.Int32,  # number within the video, from 0
    "split": pl.String,
    "task": pl.String,
    "shard": pl.Int32,
    "offset": pl.Int64,  # frames from the start of the shard
    "valid": pl.Int32,  # real frames; the other T - valid repeat the last one
    "segment": pl.Int32,  # 0: of a whole video; k from 1 on: of its part <id>#k (see vw2/data/cutting.py)
    "start": pl.Int64,  # frame of the whole video, at the clip rate, with which the clip begins
}


@dataclass(frozen=True)
class Run:
    """Consecutive clips of one video that lie in one shard."""

    video: str
    first: int  # clip
    clips: int
    offset: int  # frame in the shard


def clip_count(frames: int, clip_frames: int) -> int:
    """Clips that cover F frames when neighbours share one: the last may be padded."""
    return max(1, math.ceil((frames - 1) / (clip_frames - 1)))


def valid_frames(frames: int, clip_frames: int, clip: int) -> int:
    """Real frames in clip number `clip` of a video of F frames; the rest of T is padding."""
    return min(clip_frames, frames - clip * (clip_frames - 1))


def plan_shards(lengths: Mapping[str, int], clip_frames: int, capacity: int) -> list[list[Run]]:
    """Lay videos out in shards of at most `capacity` frames, in the given order.

    Args:
        lengths: video -> number F of frames.
        clip_frames: T.
        capacity: frames per shard; at least T are taken.
    Returns: the runs of each shard.
    """
    step, capacity = clip_frames - 1, max(capacity, clip_frames)
    shards: list[list[Run]] = [[]]
    used = 0
    for video, frames in lengths.items():
        left, first = clip_count(frames, clip_frames), 0
        if used and used + left * step + 1 > capacity:  # a video stays in one shard if it fits in any
            shards.append([])
            used = 0
        while left:
            clips = min(left, (capacity - used - 1) // step)
            shards[-1].append(Run(video, first, clips, used))
            used += clips * step + 1
            left, first = left - clips, first + clips
            if left:
                shards.append([])
                used = 0
    return [shard for shard in shards if shard]


def write_shards(
    folder: Path,
    videos: Sequence[tuple[str, str, str, Path, int]],
    config: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    sources: Mapping[str, str] | None = None,
    segments: Mapping[str, tuple[int, int]] | None = None,
) -> pl.DataFrame:
    """Pack raw frame files into shards and write index.parquet and clips.json beside them.

    Plain writes, not a memory map: a full disk then ends in an error instead of a killed process.

    Args:
        folder: empty directory (use `vw2.scratch.atomic_dir`).
        videos: (id, split, task, raw file, F) in the order to store them.
        config: clip parameters; frames, height and width are needed here.
        sources: id -> name of its source; unknown where it is not given.
        segments: id -> (number from 1 on, first frame in the raw file) of videos that are a part of one.
    Returns: the index, one row per clip.
    """
    clip_frames, shape = config["frames"], (config["height"], config["width"], 3)
    step, size = clip_frames - 1, math.prod(shape)
    sources, segments = sources or {}, segments or {}
    facts = {video: (split, task, file, frames) for video, split, task, file, frames in videos}
    plan = plan_shards({video: row[3] for video, row in facts.items()}, clip_frames, shard_bytes // size)
    rows, sums = [], []
    for number, runs in enumerate(plan):
        total, digest = sum(run.clips * step + 1 for run in runs), hashlib.sha256()
        with (folder / f"frames-{number:05d}.npy").open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": (total, *shape)}
            np.lib.format.write_array_header_1_0(out, header)
            for run in runs:
                split, task, file, frames = facts[run.video]
                source, (segment, begin) = sources.get(run.video, UNKNOWN), segments.get(run.video, (0, 0))
                frame = begin + run.first * step
                _copy_run(out, digest, file, frame, run.clips * step + 1, begin + frames, size)
                for clip in range(run.clips):
                    valid = valid_frames(frames, clip_frames, run.first + clip)
                    offset = run.offset + clip * step
                    start = begin + (run.first + clip) * step
                    place = (number, offset, valid, segment, start)
                    rows.append((run.video, source, run.first + clip, split, task, *place))
        sums.append(digest.hexdigest())
    index = pl.DataFrame(rows, schema=INDEX, orient="row")
    index.write_parquet(folder / "index.parquet")
    write_json(folder / "clips.json", {**config, "sha256": sums})
    return index


def _copy_run(out: Any, digest: Any, file: Path, start: int, count: int, frames: int, size: int) -> None:
    """Append frames [start, start + count) of a raw file, repeating frame `frames` - 1 from there on."""
    with file.open("rb") as stream:
        stream.seek(start * size)
        last = b""
        for number in range(start, start + count):
            if number < frames:
                last = stream.read(size)
                if len(last) != size:
                    raise ValueError(f"{file} holds fewer than its {frames} frames of {size} bytes")
            out.write(last)
            digest.update(last)


def choose_sources(names: Sequence[str] | None, known: Iterable[str], key: str) -> list[str]:
    """The sources that the parameter `key` names among those known, or all of these (None), sorted.

    Raises: UserError if one of them is unknown, or none is named.
    """
    known = sorted(known)
    chosen = known if names is None else sorted(set(names))
    if unknown := [name for name in chosen if name not in known] or ([] if chosen else ["none"]):
        raise UserError(f"{key}: expected some of the sources {', '.join(known)}, got {unknown[0]}; change it")
    return chosen


class ClipStore:
    """Random access to the clips of a folder written by `write_shards`, without copying them into memory.

    Attributes:
        index: polars frame with the columns of INDEX, one row per clip; a "row" below is its number.
        config: the clip parameters; clip_frames (T), fps, height and width are attributes as well.
        weights: source -> how often training draws from it, relative to the others.
    """

    def __init__(self, path: Path = Path("data/clips")) -> None:
        self.path = Path(path)
        for name in ("index.parquet", "clips.json"):
            if not (self.path / name).is_file():
                raise UserError(f"{self.path / name} does not exist; run `dvc repro clip` first")
        self.index = read_table(self.path / "index.parquet")
        if dict(self.index.schema) != INDEX:
            raise UserError(f"{self.path}/index.parquet was written by another version; run `dvc repro clip` again")
        self.config: dict[str, Any] = read_json(self.path / "clips.json")
        self.clip_frames: int = self.config["frames"]
        self.fps: float = self.config["fps"]
        self.height: int = self.config["height"]
        self.width: int = self.config["width"]
        self.weights: dict[str, float] = self.config.get("weights", {})
        self._shard = self.index["shard"].to_numpy()
        self._offset = self.index["offset"].to_numpy()
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_rows"}
        return {**kept, "_maps": {}}  # a memory map would be pickled as all its bytes

    def _map(self, shard: int) -> np.ndarray:
        """The memory map of a shard, opened once."""
        if shard not in self._maps:
            self._maps[shard] = np.load(self.path / f"frames-{shard:05d}.npy", mmap_mode="r")
        return self._maps[shard]

    @cached_property
    def _rows(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of each video: they lie together, in order."""
        ranges = self.index.with_row_index().group_by("video").agg(pl.col("index").min(), pl.len())
        return {video: (first, rows) for video, first, rows in ranges.iter_rows()}

    def frames(self, row: int) -> np.ndarray:
        """The clip in one row of the index: (T, H, W, 3) uint8, a copy."""
        offset = int(self._offset[row])
        return np.array(self._map(int(self._shard[row]))[offset : offset + self.clip_frames])

    def batch(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Several clips: (B, T, H, W, 3) uint8."""
        return np.stack([self.frames(int(row)) for row in rows])

    def _parts(self, video: str) -> list[np.ndarray]:
        """All real frames of a video as views of the memory maps, in order. Raises: KeyError for an unknown id."""
        if video not in self._rows:
            raise KeyError(f"no clip of a video {video!r} in {self.path}")
        clips = self.index.slice(*self._rows[video])
        parts = []
        for shard, offset, valid in clips.select("shard", "offset", "valid").iter_rows():
            start = offset + (1 if parts else 0)  # the first frame is the last of the clip before
            parts.append(self._map(shard)[start : offset + valid])
        return parts

    def video(self, video: str) -> np.ndarray:
        """All real frames of a video, without padding: (F, H, W, 3) uint8, a copy.

        Raises: KeyError for an unknown id.
        """
        return np.concatenate(self._parts(video))

    def spread(self, video: str, count: int) -> np.ndarray:
        """Real frames spread evenly over a video, the first and the last among them: (count, H, W, 3) uint8, a copy.

        Nothing else is read, however long the video is. Raises: KeyError for an unknown id.
        """
        parts = self._parts(video)
        ends = np.cumsum([len(part) for part in parts])
        chosen = np.linspace(0, ends[-1] - 1, count).round().astype(int)
        places = np.searchsorted(ends, chosen, side="right")
        return np.stack([parts[place][frame - ends[place]] for place, frame in zip(places, chosen, strict=True)])

    def whole_length(self, video: str) -> int:
        """Frames of the whole clips that hold a video, padding included. Raises: KeyError for an unknown id."""
        return 1 + self._rows[video][1] * (self.clip_frames - 1)

    @property
    def at_once(self) -> int:
        """Clips that are encoded or rendered together where no parameter says how many (our choice)."""
        return max(1, min(32, AT_ONCE // (self.clip_frames * self.height * self.width)))

    def select(self, **wanted: Any) -> list[int]:
        """Rows whose columns have the wanted values: select(split="train", task=["paper_boat", "paper_airplane"]).

        Raises: ValueError for a column that is not in the index.
        """
        keep = pl.col("offset") >= 0  # every row
        for column, value in wanted.items():
            if column not in INDEX:
                raise ValueError(f"expected a column of {', '.join(INDEX)}, got {column!r}")
            several = isinstance(value, Collection) and not isinstance(value, str)
            keep = keep & (pl.col(column).is_in(list(value)) if several else pl.col(column) == value)
        return self.index.select(pl.arg_where(keep)).to_series().to_list()

    def sources(self, names: Sequence[str] | None, key: str) -> list[str]:
        """The sources that a stage names in its parameter `key`, or all (None), sorted.

        Raises: UserError if one of them is unknown, or none is named.
        """
        return choose_sources(names, self.index["source"].unique(), key)

    def train_rows(self, sources: Sequence[str]) -> list[int]:
        """Rows of split train of some sources. Raises: UserError naming a source that has none."""
        for source in sources:
            if not self.select(split="train", source=source):
                of = f" of the source {source}" if len(sources) > 1 else ""
                raise UserError(f"{self.path} holds no clip of split train{of}; give some videos that split")
        return self.select(split="train", source=sources)

    def videos(self, **wanted: Any) -> list[str]:
        """Ids of the videos that have a selected clip, in the order they are stored."""
        return self.index[self.select(**wanted)]["video"].unique(maintain_order=True).to_list()
