"""Cut one file in a worker process: its raw frames, what was found among them, and the parts of them to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from vw2.console import UserError
from vw2.data import manifest
from vw2.data.clips import ClipConfig, Written, cut_file
from vw2.data.manifest import Refused
from vw2.data.stretches import Stretch, segments
from vw2.files import locate
from vw2.media.decode import MediaError

# Sources never taken apart: the ground truth of their videos counts frames (the name is reserved, see mixture.py).
WHOLE = ("craft",)
STRETCHES = {
    "video": pl.String,
    "kind": pl.String,  # cut, still, black
    "start": pl.Float64,  # seconds from the first frame of the video
    "stop": pl.Float64,  # a cut lies between two frames: start = stop
}


@dataclass(frozen=True)
class CutJob:
    """One file to cut: its rows of the manifest, the clip parameters and the folder for raw frames."""

    rows: Sequence[Mapping[str, Any]]
    config: ClipConfig
    raw: Path


@dataclass(frozen=True)
class Part:
    """Frames [start, start + frames) of a video, kept under an id of their own; segment 0 is the whole video."""

    id: str
    segment: int
    start: int
    frames: int


def cut(job: CutJob) -> dict[str, Any]:
    """Write the raw frames <id>.u8 of a file's videos.

    Returns: id -> {"frames": F, "found": stretches, "parts": parts} as plain lists, or {"path", "reason"} if the video
        gives no clip.
    Raises: UserError if the file is not the one that was ingested.
    """
    path = locate(job.rows[0]["path"])
    if not path.is_file() or manifest.content_hash(path) != job.rows[0]["hash"]:
        raise UserError(f"{path} is not the file that was ingested any more; run `dvc repro -f ingest`")
    try:
        written = dict(cut_file(path, job.rows, job.config, job.raw))
    except MediaError as error:
        return {row["id"]: asdict(Refused(row["path"], str(error))) for row in job.rows}
    results = {row["id"]: _result(row, written[row["id"]], job.config) for row in job.rows}
    for name, result in results.items():
        if "reason" in result:
            (job.raw / f"{name}.u8").unlink()
    return results


def parts_of(video: str, written: Written, config: ClipConfig) -> list[Part]:
    """What is kept of a video: all of it, or those of <id>#1, <id>#2, ... that are at least `min_frames` long."""
    spans = segments(written.frames, written.found, config)
    if len(spans) == 1 and spans[0] == (0, written.frames):
        whole = Part(video, 0, 0, written.frames)
        return [whole] if written.frames >= config.min_frames else []
    parts = [Part(f"{video}#{k}", k, start, stop - start) for k, (start, stop) in enumerate(spans, start=1)]
    return [part for part in parts if part.frames >= config.min_frames]


def _result(row: Mapping[str, Any], written: Written, config: ClipConfig) -> dict[str, Any]:
    """What `cut` says of one video."""
    if row["source"] in WHOLE:
        config = replace(config, on_cut="report", on_still="report", on_black="report")
    parts = parts_of(row["id"], written, config)
    found = [astuple(each) for each in written.found]
    if parts:
        return {"frames": written.frames, "found": found, "parts": [astuple(part) for part in parts]}
    name = "" if row["start"] is None else f"(part {row['id']}) "
    needed = f"{written.frames} frames at {config.fps:g} fps, {config.min_frames} needed"
    if written.frames < config.min_frames:
        return asdict(Refused(row["path"], f"{name}is too short for a clip: {needed}"))
    reason = f"has no stretch long enough for a clip without cut, still or black frames: {needed}"
    return asdict(Refused(row["path"], name + reason))


def stretch_table(results: Mapping[str, Mapping[str, Any]], fps: float) -> pl.DataFrame:
    """Cuts, still and black stretches of all videos that gave clips, in seconds: columns of STRETCHES."""
    rows = []
    for video, result in sorted(results.items()):
        for each in result.get("found", []):
            stretch = Stretch(*each)
            rows.append((video, stretch.kind, stretch.start / fps, stretch.stop / fps))
    return pl.DataFrame(rows, schema=STRETCHES, orient="row")


def stretch_figures(table: pl.DataFrame) -> dict[str, float]:
    """cuts, still, still_seconds, black, black_seconds: how many, and how long together."""
    figures: dict[str, float] = {"cuts": len(table.filter(pl.col("kind") == "cut"))}
    for kind in ("still", "black"):
        rows = table.filter(pl.col("kind") == kind)
        figures |= {kind: len(rows), f"{kind}_seconds": float((rows["stop"] - rows["start"]).sum())}
    return figures
