"""Cut all videos into clips of T frames at one rate and size.

In:  data/manifest.parquet and the videos it names; params groups clip, splits (and seed, for the record).
Out: data/clips: frames-*.npy (uint8 (S, H, W, 3) shards of up to 256 MiB), index.parquet (one row per clip; see
     vw2/data/shards.py), clips.json (the parameters), stretches.parquet (cuts, still and black stretches of the videos,
     seconds), quarantine.parquet (videos too short for a clip); metrics/clip.json, plots/clip.png (the first clip of
     each task).
Rate: output frame j is source frame floor(j * source_fps / clip.fps + 1e-9); by time stamps where the rate varies.
A part of a file (start, stop) is cut from it to the frame, without seeking.
Neighbouring clips share one frame; the tail of a video is padded by its last frame and marked in the index. Where cuts
or stretches are dropped, each unbroken part of a video becomes a video of its own, <id>#1, <id>#2, ...
Time and memory: 3,840 videos of 64x64 in a minute on two cores, 2 GiB. Interrupted runs continue file by file;
under `torchrun` or `accelerate launch` the ranks share the files (vw2/data/ranks.py).
Tiny run: python -m stages.preset smoke && python -m stages.ingest && python -m stages.clip
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import UserError, console, progress, run, table
from vw2.data import guards, manifest
from vw2.data.clips import ClipConfig
from vw2.data.cutting import CutJob, Part, cut, stretch_figures, stretch_table
from vw2.data.manifest import Refused
from vw2.data.overview import histogram, kind, taken
from vw2.data.pool import Failure, worker_count
from vw2.data.ranks import helps, run_shared, share
from vw2.data.shards import ClipStore, write_shards
from vw2.media.sheet import write_sheet
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir

VIDEOS = Path("data/videos")
MANIFEST = Path("data/manifest.parquet")
CLIPS = Path("data/clips")
PLOT = Path("plots/clip.png")
ROOT = Path(__file__).parents[1]
SHEET_ROWS = 24  # most tasks on the contact sheet


def cut_all(frame: pl.DataFrame, config: ClipConfig, work: Path, workers: int) -> dict[str, dict[str, Any]]:
    """The result of `cut` for every video id."""
    raw = work / "raw"
    raw.mkdir(exist_ok=True)
    groups = frame.partition_by("path", maintain_order=True)  # a file that holds several videos is decoded once
    jobs = {group["id"][0]: CutJob(group.to_dicts(), config, raw) for group in groups}
    results = {}
    with progress(share(len(jobs)), "cut files") as bar:
        for name, result in run_shared(cut, jobs, work / "records", workers=workers):
            if isinstance(result, Failure):
                result = {row["id"]: asdict(Refused(row["path"], result.reason)) for row in jobs[name].rows}
            results |= result
            bar.advance()
    return results


def parts(result: dict[str, Any]) -> list[Part]:
    """What is kept of a video."""
    return [Part(*part) for part in result.get("parts", [])]


def summary(frame: pl.DataFrame, index: pl.DataFrame, config: ClipConfig, results: dict) -> dict[str, float]:
    """Numbers for metrics/clip.json; fps.* and size.* count the videos cut, as they were before."""
    kept = {name: result for name, result in results.items() if "frames" in result}
    frames = sum(part.frames for result in kept.values() for part in parts(result))
    videos = frame.filter(pl.col("id").is_in(list(kept)))
    values = {
        "videos": len(kept),
        "segments": index.filter(pl.col("segment") > 0)["video"].n_unique(),
        "refused": len(results) - len(kept),
        "clips": len(index),
        "padded_clips": len(index.filter(pl.col("valid") < config.frames)),
        "frames": frames,
        "hours": frames / config.fps / 3600,
        "dropped_seconds": (sum(result["frames"] for result in kept.values()) - frames) / config.fps,
        "upsampled_videos": len(videos.filter(pl.col("fps") < config.fps)),  # slower than clip.fps: their frames repeat
        "bytes": sum(file.stat().st_size for file in CLIPS.glob("*.npy")),
    }
    values |= stretch_figures(pl.read_parquet(CLIPS / "stretches.parquet")) | taken(videos)
    reasons = histogram(kind(result["reason"]) for result in results.values() if "reason" in result)
    values |= {f"refused_for.{reason}": count for reason, count in reasons.items()}
    return values | {f"split.{split}": count for split, count in index["split"].value_counts().iter_rows()}


def draw(store: ClipStore) -> None:
    """A contact sheet with the first clip of each of the first tasks."""
    rows = []
    for task in store.index["task"].unique(maintain_order=True).head(SHEET_ROWS):
        row = min(store.select(task=task), key=lambda row: store.index["split"][row] == "fail")  # what it should be
        rows.append((f"{task} ({store.index['video'][row]})", store.frames(row)))
    write_sheet(PLOT, rows)


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Cut the videos of the manifest into clips that share one frame with their neighbours."""
    values = parameters.load(params)
    workers = worker_count(values["runtime"])
    config = parameters.build(ClipConfig, values.get("clip"), "clip")
    shared = parameters.build(guards.SplitsConfig, values.get("splits"), "splits")
    frame = manifest.read(MANIFEST)
    table("clip", asdict(config) | {"seconds per clip": (config.frames - 1) / config.fps, "videos": len(frame)})
    # The manifest holds the hash of every video, so it stands for all of them.
    work = scratch_dir("clip", fingerprint(asdict(config), [MANIFEST], import_closure(Path(__file__), ROOT)))
    if helps():  # rank 0 writes the outputs
        cut_all(frame, config, work, workers)
        return
    start = time.perf_counter()
    with runtime("clip") as rates:
        results = cut_all(frame, config, work, workers)
        refused = [Refused(**result) for result in results.values() if "reason" in result]
        videos, segments, sources = [], {}, {}
        for name, split, task, source in frame.select("id", "split", "task", "source").iter_rows():
            for part in parts(results[name]):
                sources[part.id] = source
                videos.append((part.id, split, task, work / "raw" / f"{name}.u8", part.frames))
                if part.segment:
                    segments[part.id] = (part.segment, part.start)
        if not videos:
            first = min(refused, key=lambda each: each.path)
            raise UserError(f"none of {len(frame)} videos gives a clip; the first, {first.path}, {first.reason}")
        weights = manifest.source_weights(frame, [manifest.source_of(part) for part in sources])
        with atomic_dir(CLIPS) as temporary:
            index = write_shards(
                temporary, videos, asdict(config) | {"weights": weights}, sources=sources, segments=segments
            )
            stretch_table(results, config.fps).write_parquet(temporary / "stretches.parquet")
            if not shared.near_duplicates:
                guards.check_duplicates(ClipStore(temporary))
            manifest.write_quarantine(temporary / "quarantine.parquet", refused)
        draw(ClipStore(CLIPS))
        figures = summary(frame, index, config, results)
        rates["frames_per_second"] = figures["frames"] / (time.perf_counter() - start)
    write_metrics("clip", figures, seed=values["seed"], n=int(figures["videos"]))
    table("cut", figures)
    if refused:
        console.print(f"{len(refused)} videos gave no clip; see {CLIPS / 'quarantine.parquet'}", markup=False)
    clear(work)


if __name__ == "__main__":
    run(main)
