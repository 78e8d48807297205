"""LeRobot data sets v2.0, v2.1 and v3.0, read from their own files (no LeRobot needed).

    meta/info.json                              version, frame rate, cameras, where the files lie
    meta/episodes.jsonl, meta/tasks.jsonl       v2: one video and one table per episode
    meta/episodes/**/*.parquet, tasks.parquet   v3: several episodes share a video, told apart by times

ingest.camera names the video feature that is taken (null: the first by name; cameras on the hand, masks and depth maps
after the others). An episode is taken if its video, its table of actions and its metadata agree on the number of frames
and on their times to half a frame; else it is refused with what disagrees. Actions, states and tasks go to the track,
frame by frame.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vw2.data.manifest import Entry, Refused, content_hash
from vw2.data.sources.base import (
    READ_ERRORS,
    UNKNOWN,
    IngestConfig,
    inspect_all,
    source_folder,
    why,
    write_track,
)
from vw2.data.sources.lerobot_meta import (
    TABLE_ERRORS,
    Episode,
    read_episodes,
    read_info,
    read_splits,
    read_tasks,
)
from vw2.media.decode import MediaError, VideoInfo, scan
from vw2.media.segments import scan_spans


@dataclass(frozen=True)
class VideoJob:
    """One video file with the episodes in it."""

    root: str  # openable
    path: str  # of the video, for the manifest
    episodes: tuple[Episode, ...]
    ids: tuple[str, ...]
    splits: tuple[str | None, ...]
    work: Path
    config: IngestConfig


def vectors(table: pl.DataFrame, name: str) -> pl.Series:
    """A column as lists of float32: numbers become lists of one, a missing column or value an empty list."""
    if name not in table.columns:
        return pl.Series(name, [[]] * len(table), dtype=pl.List(pl.Float32))
    column = table[name]
    if not isinstance(column.dtype, pl.List | pl.Array):
        column = table.select(pl.concat_list(pl.col(name).cast(pl.Float32)))[name]
    return column.cast(pl.List(pl.Float32)).fill_null([])


def read_track(file: Path, episode: Episode, tasks: Mapping[int, str]) -> tuple[pl.DataFrame, np.ndarray | None]:
    """Rows of an episode in the columns of TRACKS (but video), and their times in seconds, if the table has them.

    Raises: MediaError with the reason.
    """
    try:
        lazy = pl.scan_parquet(file)
        known = lazy.collect_schema().names()
        wanted = ("frame_index", "timestamp", "task_index", "action", "observation.state")
        if "episode_index" in known:
            lazy = lazy.filter(pl.col("episode_index") == episode.index)
        elif episode.start is not None:
            raise MediaError(f"cannot be used: {episode.data} has no column episode_index")
        table = lazy.select(name for name in wanted if name in known).collect()
        if "frame_index" in known:
            table = table.sort("frame_index")
            if table["frame_index"].to_list() != list(range(len(table))):
                raise MediaError(f"cannot be used: the frames in {episode.data} are not numbered from 0 without gaps")
        numbers = table["task_index"].to_list() if "task_index" in known else [None] * len(table)
        texts = [tasks.get(number, episode.task) for number in numbers]
        track = pl.DataFrame(
            {
                "frame": pl.Series(range(len(table)), dtype=pl.Int64),
                "action": vectors(table, "action"),
                "state": vectors(table, "observation.state"),
                "instruction": pl.Series(texts, dtype=pl.String),
            }
        )
        return track, table["timestamp"].cast(pl.Float64).to_numpy() if "timestamp" in known else None
    except TABLE_ERRORS as error:
        text = why(error) if isinstance(error, OSError | MemoryError) else str(error).splitlines()[0]
        raise MediaError(f"cannot be used: {episode.data} {text}") from error


def kinship(episode: Episode, track: pl.DataFrame) -> str:
    """Digest of what all cameras of an episode share: its number and its rows, so that none strays to another split."""
    digest = hashlib.sha256(f"{episode.index} {len(track)}".encode())
    for name in ("action", "state"):
        digest.update(track[name].explode().to_numpy().tobytes())
    return digest.hexdigest()


def take(job: VideoJob, number: int, info: VideoInfo, seconds: np.ndarray | None, digest: str) -> Entry:
    """The entry of one episode of a video that decodes; leaves its track. Raises MediaError with the reason."""
    episode = job.episodes[number]
    if episode.start is not None and not 0 <= episode.start < episode.stop:
        raise MediaError(f"cannot hold it from {episode.start:g} to {episode.stop:g} s, as the metadata say")
    track, times = read_track(Path(job.root) / episode.data, episode, read_tasks(Path(job.root)))
    frames = info.frames if seconds is None else len(seconds)
    if not frames == len(track) == episode.frames:
        raise MediaError(
            f"holds {frames} frames of it, the metadata say {episode.frames}, its table has {len(track)} rows"
        )
    if frames < job.config.min_frames:
        raise MediaError(f"holds {frames} frames of it, ingest.min_frames is {job.config.min_frames}")
    if times is not None and not info.variable:  # a table that drifts away from its video would fake every action
        shown = np.arange(frames) / info.fps if seconds is None else seconds - seconds[0]
        apart = float(np.abs(times - times[0] - shown).max())
        if not apart <= 0.5 / info.fps:
            raise MediaError(f"and {episode.data} disagree by up to {apart:.3g} s on when the frames are due")
    texts = track["instruction"].drop_nulls()
    instruction = texts[0] if len(texts) else UNKNOWN
    write_track(job.work, job.ids[number], track)
    return Entry(
        id=job.ids[number],
        source="lerobot",
        path=job.path,
        split=job.splits[number],
        environment=UNKNOWN,
        task=re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_")[:80] or UNKNOWN,
        instruction=instruction,
        hash=digest,
        licence=job.config.licence,
        frames=frames,
        start=episode.start,
        stop=episode.stop,
        kin=kinship(episode, track),
        **{name: getattr(info, name) for name in ("fps", "width", "height", "codec", "variable", "sar")},
    )


def inspect(job: VideoJob) -> dict[str, Any]:
    """Decode one video from end to end and take its episodes; the JSON form of Entry and Refused."""
    limits = {"max_side": job.config.max_side, "max_seconds": job.config.time_limit}
    file = Path(job.root) / job.episodes[0].video
    spans = [(each.start, each.stop) for each in job.episodes if each.start is not None and each.stop is not None]
    try:
        info, parts = scan_spans(file, spans, **limits) if spans else (scan(file, **limits), [None])
        digest = content_hash(file)
    except READ_ERRORS as error:
        reason = why(error)
        return {"items": [asdict(Refused(job.path, f"(episode {each.index}) {reason}")) for each in job.episodes]}
    items = []
    for number, (episode, seconds) in enumerate(zip(job.episodes, parts, strict=True)):
        try:
            items.append(asdict(take(job, number, info, seconds, digest)))
        except MediaError as error:
            items.append(asdict(Refused(job.path, f"(episode {episode.index}) {error}")))
    return {"items": items}


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Take every episode of the data set at `config.path`.

    Yields: an Entry or a Refused per episode.
    Raises: UserError if the folder is no LeRobot data set or its metadata are broken.
    """
    root = source_folder(config, "a LeRobot data set")
    info, camera = read_info(config, root)
    splits, name = read_splits(info), re.sub(r"[^A-Za-z0-9._-]+", "_", root.resolve().name).lstrip(".-_")[:60]
    read_tasks(root)  # a broken table is told before any work
    files: dict[str, list[Episode]] = {}
    for episode in read_episodes(root, info, camera):
        missing = [file for file in (episode.video, episode.data) if not (root / file).is_file()]
        if missing:
            path = (Path(config.path) / missing[0]).as_posix()
            yield Refused(path, f"(episode {episode.index}) is named in the metadata but missing")
        else:
            files.setdefault(episode.video, []).append(episode)
    jobs = {}
    for video, episodes in files.items():
        job = VideoJob(
            root=str(root),
            path=(Path(config.path) / video).as_posix(),
            episodes=tuple(episodes),
            ids=tuple(f"{name or 'lerobot'}_episode_{each.index:06d}" for each in episodes),
            splits=tuple(splits.get(each.index) for each in episodes),
            work=work,
            config=config,
        )
        used = (video, *sorted({each.data for each in episodes}), "meta/tasks.parquet", "meta/tasks.jsonl")
        stamps = [(root / file).stat() for file in used if (root / file).is_file()]
        state = "".join(f" {stamp.st_size} {stamp.st_mtime_ns}" for stamp in stamps)
        jobs[hashlib.sha256(f"{job}{state}".encode()).hexdigest()[:32]] = job
    yield from inspect_all(inspect, jobs, config, work, workers, "look into episodes")
