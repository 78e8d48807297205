"""The metadata of LeRobot data sets: which episodes there are and where they lie.

Paths in info.json are a stranger's: they are filled in by a pattern, not by str.format, and must stay below the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from vw2.console import UserError
from vw2.data.manifest import Refused, tidy
from vw2.data.sources.base import SECONDARY, SPLITS, IngestConfig, is_given, refuse_pickles, walk

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO = "meta/info.json"
RANGE, MOST = r"(\d{1,9}):(\d{1,9})", 10**7  # of a split: first episode and the one after the last; most episodes
FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")  # {video_key}, {episode_index:06d}
# GR00T's demo states a pattern by which its own files cannot be found; they lie where LeRobot v2 puts them.
USUAL_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
USUAL_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TABLE_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError)


@dataclass(frozen=True)
class Episode:
    """One episode as the metadata tell it; paths are relative to the root."""

    index: int
    frames: int
    task: str | None  # the first of its tasks
    data: str
    video: str
    start: float | None  # v3: seconds within the video
    stop: float | None


def fill(template: Any, values: Mapping[str, int | str], where: str) -> str:
    """A path from a pattern of info.json.

    Raises: UserError if the pattern is not one of LeRobot's or leads out of the folder.
    """

    def field(match: re.Match) -> str:
        value = values.get(match[1])
        if value is None:
            raise UserError(f"{where} {template!r} asks for {match[1]!r}; expected {', '.join(values)}")
        return value if isinstance(value, str) else f"{value:0{match[2] or 1}d}"

    if not isinstance(template, str) or re.search(r"[{}\\\x00]", FIELD.sub("", template)):
        raise UserError(f"{where}: expected a pattern such as {USUAL_DATA}, got {template!r}; mend {INFO}")
    path = PurePosixPath(FIELD.sub(field, template))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
        raise UserError(f"{where} {template!r} leads out of the data set to {path}; mend {INFO}")
    return path.as_posix()


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a feature says that its video is a depth map (LeRobot; the key of its facts has changed its name)."""
    facts = [feature.get(key) or {} for key in ("info", "video_info")]
    return any(each.get(key) is True for each in facts for key in ("video.is_depth_map", "is_depth_map"))


def rank(camera: str) -> tuple[bool, str]:
    """Sort key of the cameras: those of SECONDARY (on the hand, masks, depth) after the others, then by name."""
    return any(word in camera.rpartition(".")[2].lower() for word in SECONDARY), camera


def read_info(config: IngestConfig, root: Path) -> tuple[dict[str, Any], str]:
    """meta/info.json and the camera to take; UserError if it is missing, broken or of another version."""
    place = f"{config.path}/{INFO}"
    if not (root / INFO).is_file():
        refuse_pickles(config, root)
        raise UserError(f"expected a LeRobot data set at ingest.path {config.path}, got a folder without {INFO}")
    try:
        info = json.loads((root / INFO).read_text(encoding="utf-8"))
        version = info.get("codebase_version")
        videos = {name: each for name, each in info.get("features", {}).items() if each.get("dtype") == "video"}
        colour = [name for name, each in videos.items() if not is_depth(each)]
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{place} cannot be read as LeRobot writes it ({error}); mend it") from error
    if version not in VERSIONS:
        wanted = ", ".join(VERSIONS)
        raise UserError(f"{place}: expected codebase_version {wanted}, got {version!r}; convert it with LeRobot")
    if not videos:
        raise UserError(
            f"{place} names no feature of dtype video; pictures inside the tables are not read, convert them"
        )
    if config.camera not in videos and (config.camera or not colour):
        got = config.camera or "null with depth maps alone"
        raise UserError(f"ingest.camera: expected one of {', '.join(sorted(videos))}, got {got}; change ingest.camera")
    chunk = info.setdefault("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk < 1:
        raise UserError(f"{place}: expected chunks_size to be a whole number from 1 on, got {chunk!r}; mend it")
    return info, config.camera or min(colour, key=rank)


def read_lines(root: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; UserError naming the line that is none."""
    number = 0
    try:
        with (root / name).open(encoding="utf-8") as stream:
            for line in stream:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield row
    except FileNotFoundError as error:
        raise UserError(f"{root / name} does not exist; the data set is incomplete, get it again") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{root / name}, line {number}: cannot be read ({error}); mend or remove it") from error


def _first_task(tasks: Any) -> str | None:
    """The first of an episode's tasks, None if it has none; one text instead of a list counts. Raises: TypeError."""
    first = tasks if isinstance(tasks, str) else (tasks or [None])[0]
    if not isinstance(first, str | None):
        raise TypeError(f"expected texts as tasks, got {str(tasks)[:60]}")
    return first if first is None else tidy(first)


def _episodes_v2(root: Path, info: Mapping[str, Any], camera: str) -> Iterator[Episode]:
    for row in read_lines(root, "meta/episodes.jsonl"):
        index, task = row["episode_index"], _first_task(row.get("tasks"))
        values = {"episode_chunk": int(index) // info["chunks_size"], "episode_index": int(index), "video_key": camera}
        found = {}
        for kind, usual in (("data_path", USUAL_DATA), ("video_path", USUAL_VIDEO)):
            found[kind] = fill(info.get(kind), values, kind)
            plain = fill(usual, values, kind)
            if not (root / found[kind]).is_file() and (root / plain).is_file():
                found[kind] = plain
        yield Episode(int(index), int(row["length"]), task, found["data_path"], found["video_path"], None, None)


def _episodes_v3(root: Path, info: Mapping[str, Any], camera: str) -> Iterator[Episode]:
    refused: list[Refused] = []
    folder = root / "meta/episodes"
    files = [folder / below / name for below, names in walk(folder, str(folder), refused) for name in names]
    files = sorted(file for file in files if file.suffix == ".parquet")
    if refused and folder.is_dir():
        raise UserError(f"{refused[0].path} {refused[0].reason}; change its permissions")
    if not files:
        raise UserError(f"{folder} holds no parquet file; the data set is incomplete, get it again")
    video = f"videos/{camera}"
    places = ["data/chunk_index", "data/file_index", f"{video}/chunk_index", f"{video}/file_index"]
    times = [f"{video}/from_timestamp", f"{video}/to_timestamp"]
    columns = ["episode_index", "length", "tasks", *places, *times]
    for file in files:
        try:
            table = pl.read_parquet(file, columns=columns)
        except TABLE_ERRORS as error:
            text = str(error).splitlines()[0]
            raise UserError(
                f"{file}: expected the columns {', '.join(columns)} ({text}); get the file again"
            ) from error
        for index, length, tasks, *where, start, stop in table.iter_rows():
            data = dict(zip(("chunk_index", "file_index"), where[:2], strict=True))
            film = dict(zip(("chunk_index", "file_index"), where[2:], strict=True)) | {"video_key": camera}
            paths = fill(info.get("data_path"), data, "data_path"), fill(info.get("video_path"), film, "video_path")
            yield Episode(index, length, _first_task(tasks), *paths, float(start), float(stop))


def read_episodes(root: Path, info: Mapping[str, Any], camera: str) -> list[Episode]:
    """All episodes of the metadata; UserError if they are broken or name an episode twice."""
    read = _episodes_v3 if info["codebase_version"] == "v3.0" else _episodes_v2
    try:
        episodes = list(read(root, info, camera))
        faulty = len({each.index for each in episodes}) < len(episodes) or any(each.index < 0 for each in episodes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{root / 'meta'}: the list of episodes is broken ({error!r}); get it again") from error
    if faulty:
        raise UserError(f"{root / 'meta'}: the list names an episode twice or below 0; get it again")
    whole = [each.video for each in episodes if each.start is None]
    if len(set(whole)) < len(whole):
        raise UserError(f"{root / INFO}: video_path {info['video_path']!r} gives one file to two episodes; mend it")
    return episodes


@lru_cache(maxsize=1)
def read_tasks(root: Path) -> dict[int, str]:
    """Number of a task -> its text; empty if the data set has no such table. Raises UserError if it is broken."""
    file = root / "meta/tasks.parquet"
    try:
        if is_given(file):
            table = pl.read_parquet(file)
            texts = [name for name, kind in table.schema.items() if kind == pl.String]  # older: __index_level_0__
            return dict(table.select("task_index", "task" if "task" in texts else texts[0]).iter_rows())
        if is_given(file := root / "meta/tasks.jsonl"):
            return {int(row["task_index"]): tidy(str(row["task"])) for row in read_lines(root, "meta/tasks.jsonl")}
    except (*TABLE_ERRORS, KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{file}: expected a task_index and a text per task ({error!r}); get the file again") from error
    return {}


def read_splits(info: Mapping[str, Any]) -> dict[int, str]:
    """Episode -> train or test, where info.json tells the two apart (val, validation and eval are test too).

    Empty where it names no test: LeRobot writes that all is train. Other names are left to the content.
    Raises: UserError if ranges are none or an episode is in both.
    """
    splits = info.get("splits") or {}
    known = {name: each for name, each in splits.items() if name in SPLITS} if isinstance(splits, Mapping) else None
    ranges = [(SPLITS[name], re.fullmatch(RANGE, str(each))) for name, each in (known or {}).items() if each]
    if known is None or not all(found for _, found in ranges):
        raise UserError(f'{INFO}: expected splits such as {{"train": "0:50", "test": "50:60"}}, got {splits}; mend it')
    if "test" not in dict(ranges):
        return {}
    taken: dict[int, str] = {}
    for split, found in ranges:
        for index in range(int(found[1]), min(int(found[2]), int(found[1]) + MOST)):
            if taken.setdefault(index, split) != split:
                raise UserError(f"{INFO}: episode {index} is in both train and test by the splits {splits}; mend them")
    return taken
