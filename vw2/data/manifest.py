"""The manifest: one row per video taken, one per file refused, and which split a video belongs to.

data/manifest.parquet    MANIFEST: id, source, path, split, environment, task, instruction, fps, frames, ...
data/quarantine.parquet  QUARANTINE: path, reason
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from vw2.console import UserError
from vw2.files import read_table
from vw2.scratch import atomic_file

SPLITS = ("train", "test", "probe", "fail")  # probe: test appearance, nuisance 0; fail: failed demonstrations
TEST_SHARE = 8  # one video in eight without a given split goes to test (our choice)

MANIFEST = {
    "id": pl.String,  # unique, fit for a file name
    "source": pl.String,  # name of its entry in ingest.source; the adapter (craft, folder, ...) where it is one name
    "path": pl.String,  # as given in params.yaml, or relative to the repository
    "split": pl.String,
    "environment": pl.String,
    "task": pl.String,
    "instruction": pl.String,
    "fps": pl.Float64,  # frames per second, measured
    "frames": pl.Int64,  # counted, from start to stop
    "width": pl.Int32,  # pixels, after rotation
    "height": pl.Int32,
    "codec": pl.String,
    "hash": pl.String,  # SHA-256 of the file
    "licence": pl.String,
    "variable": pl.Boolean,  # frames do not come at a constant rate: clips go by their times
    "sar": pl.Float64,  # width / height of one pixel
    "start": pl.Float64,  # seconds after the first frame of the file; null: the video is the whole file
    "stop": pl.Float64,  # frames from start on and before stop belong to the video (vw2/media/segments.py)
    "weight": pl.Float64,  # of its source in training: how often it is drawn, relative to the others
}
OPTIONAL = ("start", "stop")
QUARANTINE = {"path": pl.String, "reason": pl.String}


@dataclass(frozen=True)
class Entry:
    """A video that was taken: one row of the manifest; `split` is None where its content decides."""

    id: str
    source: str
    path: str
    split: str | None
    environment: str
    task: str
    instruction: str
    fps: float
    frames: int
    width: int
    height: int
    codec: str
    hash: str
    licence: str
    variable: bool = False
    sar: float = 1.0
    start: float | None = None
    stop: float | None = None
    weight: float = 1.0
    # digest shared by videos that may not be parted (cameras of one episode, an environment); not in MANIFEST
    kin: str | None = None


@dataclass(frozen=True)
class Refused:
    """A file that was not taken, and why."""

    path: str
    reason: str


def content_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tidy(text: str) -> str:
    """Text as tables can hold it: half of a surrogate pair, as in JSON or pickles, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _content(entry: Entry) -> str:
    """Hexadecimal digest of what an entry shows."""
    if entry.start is None:
        return entry.hash
    return hashlib.sha256(f"{entry.hash} {entry.start!r} {entry.stop!r}".encode()).hexdigest()


def _families(entries: Iterable[Entry]) -> dict[str, str]:
    """Digest that decides the split, by id: one for all entries linked by equal content or kin, a kin if there is."""
    leader: dict[tuple[bool, str], tuple[bool, str]] = {}

    def find(key: tuple[bool, str]) -> tuple[bool, str]:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    contents = {entry.id: (True, _content(entry)) for entry in entries}
    for entry in entries:
        ends = find(contents[entry.id]), find((False, entry.kin) if entry.kin else contents[entry.id])
        leader[max(ends)] = min(ends)
    return {name: find(content)[1] for name, content in contents.items()}


def assign_splits(entries: Iterable[Entry]) -> list[Entry]:
    """Give every entry without a split one by its content hash: about one in eight is test (our choice).

    Equal content (the same part of the same file) gets equal splits, whatever its name, and so do all of one kin. If
    that leaves train or test without any video, the digest that is smallest (for test) or largest (for train) moves
    over, so that two videos suffice for every stage; a single one is train.
    Returns: entries with a split, sorted by id.
    """
    entries = sorted(entries, key=lambda entry: entry.id)
    digests = _families([entry for entry in entries if entry.split is None])
    split = {each: "train" if int(each[:8], 16) % TEST_SHARE else "test" for each in digests.values()}
    present = {entry.split for entry in entries} | set(split.values())
    if split:
        if "train" not in present:
            split[max(split)] = "train"
        elif "test" not in present and (len(split) > 1 or "train" in {entry.split for entry in entries}):
            split[min(split)] = "test"
    return [entry if entry.split else replace(entry, split=split[digests[entry.id]]) for entry in entries]


def build(entries: Sequence[Entry]) -> pl.DataFrame:
    """Validated manifest with one row per entry, sorted by id.

    Raises: ValueError naming the video that breaks a rule.
    """
    rows = ({name: getattr(entry, name) for name in MANIFEST} for entry in entries)
    tidied = [{name: tidy(each) if isinstance(each, str) else each for name, each in row.items()} for row in rows]
    frame = pl.DataFrame(tidied, schema=MANIFEST, orient="row").sort("id")
    validate(frame)
    return frame


def validate(frame: pl.DataFrame) -> None:
    """Raise ValueError, naming the video, if a manifest breaks its schema or a rule."""
    if dict(frame.schema) != MANIFEST:
        found = ", ".join(f"{name} {kind}" for name, kind in frame.schema.items())
        raise ValueError(f"expected the manifest columns {', '.join(MANIFEST)}, got {found}")
    rules = {
        "a value is missing": pl.any_horizontal(pl.exclude(OPTIONAL).is_null()),
        "the id is not unique": pl.col("id").is_duplicated(),
        "the id is no file name": ~pl.col("id").str.contains(r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"),
        f"the split is not one of {', '.join(SPLITS)}": ~pl.col("split").is_in(SPLITS),
        "the size or length is not positive": pl.min_horizontal("frames", "width", "height") < 1,
        "it needs both start and stop, or none": pl.col("start").is_null() != pl.col("stop").is_null(),
        "it does not run from a start of at least 0 to a later stop": (pl.col("start") < 0)
        | ~(pl.col("start") < pl.col("stop")),
        "the frame rate or pixel shape is not positive": ~((pl.col("fps") > 0) & (pl.col("sar") > 0)),
        "the weight is not positive": ~((pl.col("weight") > 0) & pl.col("weight").is_finite()),
        "its source has two weights": pl.col("weight").n_unique().over("source") > 1,
    }
    for text, broken in rules.items():
        bad = frame.filter(broken)
        if len(bad):
            raise ValueError(f"manifest, video {bad['id'][0]!r}: {text}")


def source_weights(frame: pl.DataFrame, taken: Collection[str]) -> dict[str, float]:
    """Weight of each source of a manifest.

    Args:    taken: ids of the videos that gave clips.
    Raises:  UserError if a source gave none: its share of the mixture would go to the others in silence.
    """
    for source, ids in frame.group_by("source", maintain_order=True).agg("id").iter_rows():
        if not set(ids) & set(taken):
            raise UserError(f"no video of the source {source} gives a clip; take it out of ingest.source, or change it")
    return dict(frame.select("source", "weight").unique().sort("source").iter_rows())


def write(path: Path, frame: pl.DataFrame) -> None:
    """Write a manifest whole or not at all, after checking it."""
    validate(frame)
    with atomic_file(path) as temporary:
        frame.write_parquet(temporary)


def source_of(video: str) -> str:
    """Id of the video that <id>#k is a part of (see stage clip); a whole video is its own."""
    return video.partition("#")[0]


def read(path: Path, videos: Sequence[str] | None = None) -> pl.DataFrame:
    """Read and check a manifest.

    Args: videos: ids, as in a ClipStore, to give a row each; a part <id>#k gets the row of its video.
    Raises: UserError if it is missing or was written by another version.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; run `dvc repro ingest` first")
    frame = read_table(path)
    try:
        validate(frame)
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; run `dvc repro ingest` again") from error
    if videos is None:
        return frame
    parts = pl.DataFrame({"part": list(videos)}, schema={"part": pl.String})
    parts = parts.with_columns(id=pl.col("part").map_elements(source_of, return_dtype=pl.String))
    return parts.join(frame, on="id", maintain_order="left").with_columns(id="part").select(*MANIFEST)


def write_quarantine(path: Path, refused: Iterable[Refused]) -> None:
    """Write the refused files, sorted by path, whole or not at all."""
    rows = sorted((tidy(each.path), tidy(each.reason)) for each in refused)
    with atomic_file(path) as temporary:
        pl.DataFrame(rows, schema=QUARANTINE, orient="row").write_parquet(temporary)
