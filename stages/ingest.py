"""Collect videos into one manifest: render the craft world, take videos or a robot data set from a folder, or both.

In:  params groups seed, ingest, craft, splits; for all sources but craft the files in ingest.path (not tracked by
     DVC: after changing them run `dvc repro -f ingest`).
Out: data/videos/*.mp4 (what the source made: craft, frames; else empty), data/manifest.parquet (one row per video),
     data/quarantine.parquet (one row per refused file, with the reason), data/truth.parquet (craft only, one row per
     frame, else no rows), data/tracks.parquet (robot data only, actions and states, one row per frame, else no rows),
     metrics/ingest.json, plots/ingest.png (one row per task), plots/ingest_shares.png (durations, share of each task).
Time and memory: 3,840 craft videos of 64x64 in 3 to 5 minutes on two cores, 1 GiB; a folder at its decoding speed.
Interrupted runs continue video by video; under `torchrun` or `accelerate launch` the ranks share the files
(vw2/data/ranks.py). The number of workers or ranks does not change a byte.
Tiny run: python -m stages.preset smoke && python -m stages.ingest
"""

import os
import shutil
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import polars as pl
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, console, refusals, run, table
from vw2.data import guards, manifest
from vw2.data.manifest import Entry, Refused
from vw2.data.overview import summary, write_chart
from vw2.data.pool import worker_count
from vw2.data.ranks import helps
from vw2.data.sources import craft, mixture
from vw2.data.sources.base import TRACKS, IngestConfig
from vw2.files import locate
from vw2.media.decode import MAX_SIDE
from vw2.media.segments import read_span
from vw2.media.sheet import thumbnails, write_sheet
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.worlds.craft import CraftConfig

VIDEOS = Path("data/videos")
MANIFEST = Path("data/manifest.parquet")
QUARANTINE = Path("data/quarantine.parquet")
TRUTH = Path("data/truth.parquet")
TRACK = Path("data/tracks.parquet")
PLOT = Path("plots/ingest.png")
CHART = Path("plots/ingest_shares.png")
ROOT = Path(__file__).parents[1]
ROWS = 2**17  # of a row group, fixed so that the same rows give the same bytes
SHEET_ROWS, SHEET_FRAMES = 24, 2000  # most tasks on the contact sheet; frames of a video decoded for it
SHEET_LOOKS = 100  # so many of those, up to twice as many, are made RGB; all where there are fewer


def sort_out(items: Iterable[Entry | Refused], config: guards.SplitsConfig) -> tuple[list[Entry], list[Refused]]:
    """Videos taken, with their splits, and files refused.

    Raises: UserError if nothing was taken.
    """
    entries, refused = [], []
    for item in items:
        (entries if isinstance(item, Entry) else refused).append(item)
    if not entries:
        first = min(refused, key=lambda each: each.path, default=None)
        reason = f"; the first, {first.path}, {first.reason}" if first else ""
        raise UserError(f"none of {len(refused)} files could be taken{reason}; change ingest.path or the videos in it")
    return manifest.assign_splits(guards.keep_together(entries, config)), sorted(refused, key=lambda each: each.path)


def place_videos(entries: list[Entry], work: Path) -> None:
    """Put the videos that the source made into data/videos, without taking them from the scratch directory."""
    with atomic_dir(VIDEOS) as temporary:
        for entry in entries:
            made = work / "videos" / f"{entry.id}.mp4"
            if made.exists():
                try:
                    os.link(made, temporary / made.name)
                except OSError:  # another file system
                    shutil.copyfile(made, temporary / made.name)


def place_table(target: Path, schema: dict, entries: list[Entry], parts: Path) -> None:
    """One table of the parts <id>.parquet, in the order of the manifest; no rows where the source left none."""
    files = [file for entry in entries if (file := parts / f"{entry.id}.parquet").exists()]
    table = pl.scan_parquet(files, schema=schema) if files else pl.LazyFrame(schema=schema)
    with atomic_file(target) as temporary:
        table.sink_parquet(temporary, row_group_size=ROWS)  # streamed: the tracks of Open-X do not fit in memory


def draw(frame: pl.DataFrame) -> None:
    """A contact sheet with a row for each of the first tasks."""
    rows = []
    share = max(1, SHEET_ROWS // frame["source"].n_unique())  # every source of a mixture is seen
    early = frame.sort("start", maintain_order=True)  # a part near the beginning of its file is reached soon
    # a failed demonstration does not show what a task is: it comes last
    early = early.sort(pl.col("split") == "fail", maintain_order=True)
    shown = early.unique(["source", "task"], keep="first", maintain_order=True)
    shown = shown.group_by("source", maintain_order=True).head(share).head(SHEET_ROWS)
    for row in shown.iter_rows(named=True):
        path, limit = locate(row["path"]), max(MAX_SIDE, row["width"], row["height"])
        timed = read_span(path, row["start"], row["stop"], row["fps"], max_side=limit)
        every = max(1, min(row["frames"], SHEET_FRAMES) // SHEET_LOOKS)
        pictures = (picture.rgb() for _, picture in islice(timed, 0, SHEET_FRAMES, every))
        rows.append((f"{row['task']} ({row['id']})", thumbnails(pictures, 9)))
    write_sheet(PLOT, rows)


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Collect videos: render the craft world, take them from ingest.path, or from every entry of ingest.source."""
    values = parameters.load(params)
    seed, workers = values["seed"], worker_count(values["runtime"])
    config = parameters.build(IngestConfig, values.get("ingest"), "ingest")
    world = parameters.build(CraftConfig, values.get("craft") or {}, "craft", seed=seed)
    splits = parameters.build(guards.SplitsConfig, values.get("splits"), "splits")
    rendered = "craft" in ([part.source for part in mixture.parts(config)] or [config.source])
    used = {"ingest": asdict(config), "seed": seed} | ({"craft": asdict(world)} if rendered else {})
    table("ingest", used)
    work = scratch_dir("ingest", fingerprint(used, [], import_closure(Path(__file__), ROOT)))
    if helps():  # rank 0 writes the outputs
        deque(mixture.entries(config, world, work, workers), maxlen=0)
        return
    start = time.perf_counter()
    with runtime("ingest") as rates:
        entries, refused = sort_out(mixture.entries(config, world, work, workers), splits)
        with refusals():
            frame = manifest.build(entries)
        guards.check_splits(frame, splits)
        place_videos(entries, work)
        place_table(TRUTH, craft.TRUTH, entries, work / "truth")
        place_table(TRACK, TRACKS, entries, work / "tracks")
        manifest.write_quarantine(QUARANTINE, refused)
        manifest.write(MANIFEST, frame)
        draw(frame)
        write_chart(CHART, frame)
        figures = summary(frame, refused)
        rates["frames_per_second"] = figures["frames"] / (time.perf_counter() - start)
    write_metrics("ingest", figures, seed=seed, n=len(frame))
    table("taken", figures)
    if refused:
        console.print(f"{len(refused)} files were refused; the reasons are in {QUARANTINE}", markup=False)
    clear(work)


if __name__ == "__main__":
    run(main)
