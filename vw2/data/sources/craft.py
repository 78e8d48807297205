"""The procedural craft world as a source: renders its videos, writes them as mp4, keeps the ground truth beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vw2.console import progress
from vw2.data.manifest import Entry, Refused, content_hash
from vw2.data.pool import Failure
from vw2.data.ranks import run_shared, share
from vw2.data.sources.base import FOLDER, from_record
from vw2.media.encode import write_video
from vw2.scratch import atomic_file
from vw2.worlds import craft
from vw2.worlds.craft import CraftConfig, CraftVideo

LICENCE = "Apache-2.0"  # rendered by this project
TRUTH = {"video": pl.String, **craft.TRUTH_SCHEMA}

Renderer = Callable[[CraftConfig, str, int], CraftVideo]


@dataclass(frozen=True)
class CraftJob:
    """One video to render."""

    config: CraftConfig
    split: str
    index: int
    work: Path
    render: Renderer


def make_video(job: CraftJob) -> dict[str, Any]:
    """Render one video; writes <work>/videos/<id>.mp4 and <work>/truth/<id>.parquet; the JSON form of its Entry."""
    video = job.render(job.config, job.split, job.index)
    name = f"{job.split}_{job.index:05d}_{video.task}"
    file = job.work / "videos" / f"{name}.mp4"
    with atomic_file(file) as temporary:
        write_video(temporary, video.frames, video.fps)
    truth = video.truth.with_columns(video=pl.lit(name)).select(TRUTH.keys()).cast(TRUTH)
    if len(truth) != len(video.frames):
        raise ValueError(f"{name}: expected a row of truth per frame, got {len(truth)} for {len(video.frames)} frames")
    with atomic_file(job.work / "truth" / f"{name}.parquet") as temporary:
        truth.write_parquet(temporary)
    frames, height, width, _ = video.frames.shape
    entry = Entry(
        id=name,
        source="craft",
        path=f"{FOLDER}/{name}.mp4",
        split=video.split,
        environment=video.environment,
        task=video.task,
        instruction=video.instruction,
        fps=float(video.fps),
        frames=frames,
        width=width,
        height=height,
        codec="h264",
        hash=content_hash(file),
        licence=LICENCE,
    )
    return asdict(entry)


def entries(
    config: CraftConfig, work: Path, workers: int, render: Renderer = craft.render_video
) -> Iterator[Entry | Refused]:
    """Render every video of the world's plan.

    Args:
        config: the world.
        work: scratch directory; videos and truth are left in its folders `videos` and `truth`.
        workers: processes; the files are the same for any number.
        render: an importable function (tests put a faster one here).
    Raises: what the renderer raises; UserError if a worker dies (twice, if it was killed).
    """
    jobs = {f"{split}_{index:05d}": CraftJob(config, split, index, work, render) for split, index in craft.plan(config)}
    with progress(share(len(jobs)), "render videos") as bar:
        for name, record in run_shared(make_video, jobs, work / "entries", workers=workers):
            if isinstance(record, Failure):
                raise record.error(f"rendering {name}")
            yield from_record(record)
            bar.advance()
