"""Video-CraftBench as its authors lay it out: a folder of `<video id>_<clip>.mp4`, such as paper_boat_30_2.mp4.

The name without its last number is the video, as in the authors' loader; that number orders its clips. Each clip stays
a video of its own: joining them would encode them anew and assume that neighbours share a frame, which only the
authors' roll-out script suggests. All clips of a video get the same split, drawn from its name, and the same
environment, its id. Task: the id without number and marks (supp, complex) (paper_boat_supp_3 is paper_boat).

Whole recordings, `<video id>.mp4` (one number, paper_boat_30.mp4), are taken as they are, or cut as `keyframes.csv` in
the root says. The format of the authors' key-frame annotations is not public; this one is ours:

    file,clip,start,stop,instruction
    paper_boat_30.mp4,0,0.0,7.5,fold it in half
    paper_boat_30.mp4,1,7.5,14.0,

start and stop are seconds after the first frame; the frame due at stop belongs to the next clip. The column instruction
may be left out. A whole recording whose clips are there too is refused: it would be the same video twice.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vw2.console import UserError
from vw2.data.manifest import TEST_SHARE, Entry, Refused, content_hash
from vw2.data.sources.base import (
    READ_ERRORS,
    IngestConfig,
    inspect_all,
    refuse_pickles,
    source_folder,
    state_of,
    why,
)
from vw2.data.sources.folder import find_videos, make_ids
from vw2.media.decode import scan
from vw2.media.segments import scan_spans

KEYFRAMES = "keyframes.csv"
CLIP = re.compile(r"(?P<video>(?P<name>.+?)_\d+)_(?P<clip>\d+)")
WHOLE = re.compile(r"(?P<video>(?P<name>.+?)_\d+)")
MARKS = re.compile(r"(_supp|_complex)+$")


@dataclass(frozen=True)
class Part:
    """One clip: a whole file, or a row of the key frames."""

    id: str
    instruction: str
    start: float | None = None
    stop: float | None = None


@dataclass(frozen=True)
class CraftFile:
    """One file to look into."""

    file: str  # openable
    path: str  # for the manifest
    video: str  # the group
    task: str
    split: str
    parts: tuple[Part, ...]
    config: IngestConfig


def parse(stem: str) -> tuple[str, str, int | None] | None:
    """File name without suffix -> (video id, task, clip number; None for a whole recording); None if it is neither."""
    match = CLIP.fullmatch(stem) or WHOLE.fullmatch(stem)
    if not match:
        return None
    clip = match.groupdict().get("clip")
    return match["video"], MARKS.sub("", match["name"]), None if clip is None else int(clip)


def read_names(files: Iterable[str], keyframes: Container[str]) -> dict[str, tuple[str, str, int | None] | None]:
    """File -> what `parse` says of it, or that it is a whole recording, whose name has two numbers.

    Such are those that clips are named after, and those with key frames if no other clip is of their video (or one
    recording would be on both sides of a split).
    """
    named = {file: parse(Path(file).stem) for file in files}
    clips = Counter(found[0] for found in named.values() if found and found[2] is not None)
    for file, found in named.items():
        stem = Path(file).stem
        if found and (stem in clips or file in keyframes and clips[found[0]] == 1):
            named[file] = (stem, found[1], None)
    return named


def read_keyframes(root: Path) -> dict[str, list[tuple[int, float, float, str | None]]]:
    """Rows of keyframes.csv by file: (clip, start, stop, instruction), in order; UserError if the table is faulty."""
    path = root / KEYFRAMES
    if not path.is_file():
        return {}
    needed = ["file", "clip", "start", "stop"]
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}; mend or remove it") from error
    if set(needed) - set(table.columns) or set(table.columns) - {*needed, "instruction"}:
        got = ", ".join(table.columns)
        raise UserError(
            f"{path}: expected the columns {', '.join(needed)} and maybe instruction, got {got}; rename them"
        )
    rows: dict[str, list[tuple[int, float, float, str | None]]] = {}
    for line, row in enumerate(table.iter_rows(named=True), start=2):
        try:
            clip, start, stop = int(row["clip"]), float(row["start"]), float(row["stop"])
            if not (row["file"] and clip >= 0 and 0 <= start < stop < math.inf):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {line}: expected a file, a clip from 0 on and 0 <= start < stop") from error
        text = (row.get("instruction") or "").strip() or None
        listed = rows.setdefault(Path(row["file"].strip()).as_posix(), [])
        if clip in (each[0] for each in listed):
            raise UserError(f"{path}, line {line}: clip {clip} of {row['file']} is listed twice; number it anew")
        listed.append((clip, start, stop, text))
    return {file: sorted(listed) for file, listed in rows.items()}


def assign(videos: set[str]) -> dict[str, str]:
    """Video id -> train or test, about one in eight test, by its name; both occur if there are two videos."""
    keys = {hashlib.sha256(video.encode()).hexdigest(): video for video in videos}
    split = {video: "train" if int(key[:8], 16) % TEST_SHARE else "test" for key, video in keys.items()}
    if len(split) > 1 and "test" not in split.values():
        split[keys[min(keys)]] = "test"
    elif len(split) > 1 and "train" not in split.values():
        split[keys[max(keys)]] = "train"
    return split


def inspect(job: CraftFile) -> dict[str, Any]:
    """Decode one file from end to end; the JSON form of the Entry or Refused of each of its clips."""
    limits = {"max_side": job.config.max_side, "max_seconds": job.config.time_limit}
    spans = [(part.start, part.stop) for part in job.parts if part.start is not None and part.stop is not None]
    try:
        info, times = scan_spans(Path(job.file), spans, **limits) if spans else (scan(Path(job.file), **limits), [])
        digest = content_hash(Path(job.file))
    except READ_ERRORS as error:
        return {"items": [asdict(Refused(job.path, why(error)))]}
    items = []
    facts = {name: getattr(info, name) for name in ("fps", "width", "height", "codec", "variable", "sar")}
    for part, frames in zip(job.parts, [len(each) for each in times] or [info.frames], strict=True):
        about = "" if part.start is None else f"(part {part.id}) "
        if part.stop is not None and part.stop > (info.frames + 0.5) / info.fps and not info.variable:
            end = info.frames / info.fps
            items.append(Refused(job.path, f"ends at {end:.3f} s, {KEYFRAMES} has {part.id} up to {part.stop:.3f} s"))
        elif frames < job.config.min_frames:
            items.append(
                Refused(job.path, f"{about}holds {frames} frames, ingest.min_frames is {job.config.min_frames}")
            )
        else:
            given = {"id": part.id, "instruction": part.instruction, "start": part.start, "stop": part.stop}
            group = {"environment": job.video, "task": job.task, "split": job.split, "licence": job.config.licence}
            entry = Entry(source="videocraft", path=job.path, frames=frames, hash=digest, **given, **group, **facts)
            items.append(entry)
    return {"items": [asdict(item) for item in items]}


def _parts(file: str, name: str, task: str, keyframes: Mapping[str, list]) -> tuple[Part, ...]:
    """The clips of a file."""
    text = task.replace("_", " ")
    rows = keyframes.get(file)
    if not rows:
        return (Part(name, text),)
    return tuple(Part(f"{name}_{clip}", told or text, start, stop) for clip, start, stop, told in rows)


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Take the clips below `config.path`.

    Yields: an Entry or a Refused per clip, and a Refused per file whose name says no video.
    Raises: UserError if there is no video or keyframes.csv is faulty.
    """
    root = source_folder(config, "Video-CraftBench clips")
    refused: list[Refused] = []
    files, keyframes = find_videos(root, config.path, refused), read_keyframes(root)
    if not files and not refused:
        refuse_pickles(config, root)
        raise UserError(f"no video in ingest.path {config.path}; expected files such as paper_boat_30_2.mp4")
    yield from refused
    for file in sorted(set(keyframes) - set(files)):
        yield Refused((Path(config.path) / file).as_posix(), f"is listed in {KEYFRAMES} but is not there")
    named = read_names(files, keyframes)
    clipped = {found[0] for found in named.values() if found and found[2] is not None}
    split = assign({found[0] for found in named.values() if found})
    ids, jobs = make_ids(files), {}
    for file, found in named.items():
        path = (Path(config.path) / file).as_posix()
        if not found:
            yield Refused(
                path, "is not named <video id>_<clip>, such as paper_boat_30_2; ingest.source folder takes any name"
            )
        elif found[2] is None and found[0] in clipped:
            yield Refused(path, f"is the whole of the video {found[0]}, whose clips are taken already")
        else:
            video, task, _ = found
            parts = _parts(file, ids[file], task, keyframes)
            job = CraftFile(str(root / file), path, video, task, split[video], parts, config)
            digest = hashlib.sha256(f"{job}{state_of(root / file)}".encode()).hexdigest()
            jobs[digest[:32]] = job
    yield from inspect_all(inspect, jobs, config, work, workers)
