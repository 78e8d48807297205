"""Any tree of video files, with an optional sidecar table.

`videos.csv` or `videos.parquet` in the root of the tree may give, per file, any of task, instruction, split,
environment, licence (column `file`: path relative to the root). What it does not give: task = name of the parent
folder, instruction = the task with spaces for underscores, environment = unknown, licence = ingest.licence, split by
content hash (vw2/data/guards.py keeps environments together). Every file is decoded once from end to end in a worker
process that can be killed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from vw2.console import UserError
from vw2.data.manifest import SPLITS, Entry, Refused, content_hash
from vw2.data.sources.base import (
    READ_ERRORS,
    UNKNOWN,
    IngestConfig,
    inspect_all,
    refuse_pickles,
    source_folder,
    state_of,
    utf8,
    walk,
    why,
)
from vw2.media.decode import MediaError, scan

SUFFIXES = frozenset(
    ".3g2 .3gp .3gpp .apng .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .insv .ivf .lrv .m1v .m2t .m2ts .m2v "
    ".m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpeg4 .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob "
    ".webm .wmv .y4m".split()  # not all can be read, but none is passed over
)
NAMELESS = "has a name that is not UTF-8; rename it"
PREVIEW, SMALL = ".lrv", "is a camera's small preview of another file; rename it to .mp4 if that is lost"
SIDECARS = ("videos.csv", "videos.parquet")
COLUMNS = ("task", "instruction", "split", "environment", "licence")


@dataclass(frozen=True)
class FolderJob:
    """One file to look into."""

    file: str  # openable path
    path: str  # path for the manifest
    id: str
    task: str
    instruction: str
    split: str | None
    environment: str
    licence: str
    min_frames: int
    max_side: int
    time_limit: float


def find_videos(root: Path, shown: str = "", refused: list[Refused] | None = None) -> list[str]:
    """Paths, relative to root, of files that are videos by name, sorted.

    Args: as of `vw2.data.sources.base.walk`; `refused` also takes videos whose names are no UTF-8, and the previews
        that cameras leave beside their recordings (each would come twice, maybe in train and test).
    """
    refused = [] if refused is None else refused
    paths = (Path(folder) / name for folder, names in walk(root, shown, refused) for name in names)
    found = []
    for path in sorted(path.as_posix() for path in paths if path.suffix.lower() in SUFFIXES):
        reason = NAMELESS if utf8(path) != path else SMALL if path.lower().endswith(PREVIEW) else None
        if reason:
            refused.append(Refused(utf8(Path(shown) / path), reason))
        else:
            found.append(path)
    return found


def read_sidecar(root: Path) -> dict[str, dict[str, str | None]]:
    """The sidecar table as file -> {column: value}; empty cells are None. Empty if there is no sidecar.

    Raises: UserError for two sidecars, an unreadable one, unknown columns, splits or repeated files.
    """
    paths = [root / name for name in SIDECARS if (root / name).is_file()]
    if not paths:
        return {}
    if len(paths) > 1:
        raise UserError(f"{root} holds both {SIDECARS[0]} and {SIDECARS[1]}; keep one of them")
    path = paths[0]
    try:
        table = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
        table = table.with_columns(pl.all().cast(pl.String).str.strip_chars())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}; mend or remove it") from error
    unknown = set(table.columns) - {"file", *COLUMNS}
    if "file" not in table.columns or unknown:
        wrong = f"the unknown column {sorted(unknown)[0]!r}" if unknown else "no column 'file'"
        raise UserError(f"{path}: expected the column file and any of {', '.join(COLUMNS)}, got {wrong}; rename it")
    rows: dict[str, dict[str, str | None]] = {}
    for row in table.iter_rows(named=True):
        if not any(row.values()):
            continue  # spreadsheets leave such rows behind
        if not (named := row.pop("file")):
            raise UserError(f"{path}: a row with {next(filter(None, row.values()))!r} names no file; fill it in")
        file = Path(named).as_posix()
        if file in rows:
            raise UserError(f"{path} lists {file!r} twice; keep one row per file")
        if row.get("split") and row["split"] not in SPLITS:
            raise UserError(f"{path}: expected split {', '.join(SPLITS)} or nothing for {file}, got {row['split']!r}")
        rows[file] = {column: row.get(column) or None for column in COLUMNS}
    return rows


def make_ids(files: list[str]) -> dict[str, str]:
    """A unique, readable file-name-safe id per file: its path without suffix, `/` as `__`, long ones shortened."""
    plain = {}
    for file in files:
        stem = Path(file).with_suffix("").as_posix().replace("/", "__")
        plain[file] = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip(".-")[:100] or "video"
    taken = Counter(plain.values())
    ids = {}
    for file, name in plain.items():
        if taken[name] > 1 or len(name) == 100:
            name = f"{name[:90]}-{hashlib.sha256(file.encode()).hexdigest()[:8]}"
        ids[file] = name
    return ids


def inspect(job: FolderJob) -> dict:
    """Decode one file from end to end; {"items": [its Entry, or Refused with the true reason]} as JSON."""
    try:
        info = scan(Path(job.file), max_side=job.max_side, max_seconds=job.time_limit)
        if info.frames < job.min_frames:
            unit = "frame" if info.frames == 1 else "frames"
            raise MediaError(f"holds {info.frames} {unit}, ingest.min_frames is {job.min_frames}")
        digest = content_hash(Path(job.file))
    except READ_ERRORS as error:
        return {"items": [asdict(Refused(job.path, why(error)))]}
    facts = {name: getattr(info, name) for name in ("fps", "frames", "width", "height", "codec", "variable", "sar")}
    given = {name: getattr(job, name) for name in ("id", "path", *COLUMNS)}
    return {"items": [asdict(Entry(source="folder", hash=digest, **given, **facts))]}


def _jobs(config: IngestConfig, root: Path, files: list[str], sidecar: dict) -> dict[str, FolderJob]:
    """One job per file, named by what can change its outcome (so that an edited file is looked at again)."""
    ids, jobs = make_ids(files), {}
    for file in files:
        given = sidecar.get(file, {})
        parent = (root.resolve() / file).parent.name
        task = given.get("task") or parent or UNKNOWN
        job = FolderJob(
            file=str(root / file),
            path=(Path(config.path) / file).as_posix(),
            id=ids[file],
            task=task,
            instruction=given.get("instruction") or task.replace("_", " "),
            split=given.get("split"),
            environment=given.get("environment") or UNKNOWN,
            licence=given.get("licence") or config.licence,
            min_frames=config.min_frames,
            max_side=config.max_side,
            time_limit=config.time_limit,
        )
        name = hashlib.sha256(f"{job}{state_of(root / file)}".encode()).hexdigest()[:32]
        jobs[name] = job
    return jobs


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Look into every video below `config.path`.

    Yields: an Entry or a Refused per file, and a Refused per sidecar row whose file is not there.
    Raises: UserError if the folder is missing, holds no video or has a faulty sidecar.
    """
    root = source_folder(config, "videos")
    refused: list[Refused] = []
    files, sidecar = find_videos(root, config.path, refused), read_sidecar(root)
    if not files and not refused:
        refuse_pickles(config, root)
        raise UserError(f"no video in ingest.path {config.path} (looked for {', '.join(sorted(SUFFIXES))})")
    yield from refused
    told = {each.path for each in refused}
    for file in sorted(set(sidecar) - set(files)):
        path = (Path(config.path) / file).as_posix()
        if path not in told:
            yield Refused(path, "is listed in the sidecar but is not a video in the folder")
    yield from inspect_all(inspect, _jobs(config, root, files, sidecar), config, work, workers)
