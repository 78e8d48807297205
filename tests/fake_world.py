"""A stand-in for the craft renderer, importable by worker processes: numbered frames, known truth."""

import time
from pathlib import Path

import numpy as np
import polars as pl
from numbered import numbered_frame

from vw2.worlds.craft import TRUTH_SCHEMA, CraftConfig, CraftVideo

FRAMES = 40


def render(config: CraftConfig, split: str, index: int) -> CraftVideo:
    """40 frames of 48 x 96 that carry 40 * index + their number."""
    frames = np.stack([numbered_frame((FRAMES * index + i) % 1024) for i in range(FRAMES)])
    truth = pl.DataFrame(
        {name: [kind == pl.Boolean] * FRAMES for name, kind in TRUTH_SCHEMA.items()}, strict=False
    ).cast(TRUTH_SCHEMA)
    truth = truth.with_columns(frame=pl.int_range(FRAMES, dtype=pl.Int32))
    return CraftVideo(frames, config.fps, "paper_boat", "fold a boat", f"table-{index}", split, truth)


def render_or_fail(config: CraftConfig, split: str, index: int) -> CraftVideo:
    """As `render`, but the third training video breaks."""
    if (split, index) == ("train", 2):
        raise ValueError("out of paper")
    return render(config, split, index)


def odd_jobs(job: str) -> str:
    """What a worker may meet: sleep, crash, raise, or answer."""
    if job == "sleep":
        time.sleep(60)
    if job == "crash":
        import os

        os._exit(3)
    if job == "raise":
        raise KeyError("a bug")
    if job.startswith("killed"):  # "killed FILE": once for every line of the file
        import os
        import signal

        file = Path(job.split()[1])
        left = file.read_text().splitlines()
        if left:
            file.write_text("\n".join(left[1:]))
            os.kill(os.getpid(), signal.SIGKILL)
    if job == "memory":
        try:
            return str(len(np.ones(2**30, np.uint8)))
        except MemoryError:
            return "no memory"
    return job.upper()
