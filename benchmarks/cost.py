"""Does the cost of ingest and clip grow with the input, and no faster? `python -m benchmarks.cost`.

Runs both stages in fresh processes on four units of an input (mostly the start: imports, worker processes, figures)
and on 1x, 4x and 16x, and lays a line a + b * units through the four costs, by least squares of their relative errors.
CPU seconds (user and system, worker processes included) are what is compared: wall seconds also count what other
programs took.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import typer

from benchmarks.films import make_film
from vw2.console import UserError, run, table
from vw2.params import load

ROOT = Path(__file__).parents[1]
TIMES = (1, 4, 16)
FEW = 4  # units: enough for every worker process to start
STAGES = ("ingest", "clip")


def prepare(folder: Path, source: str, units: int, params: Path) -> None:
    """Parameters and input of a run: `units` craft videos, films, or seconds of one film."""
    folder.mkdir()
    values = load(params)
    values["runtime"] = {"workers": 2}
    if source == "craft":
        values["craft"] |= {"train_videos": units - 3}
        values["craft"] |= {"fail_videos": 1, "test_paper": 1, "test_blocks": 1, "probe_videos": 0}
    else:
        values["ingest"] |= {"source": "folder", "path": "films"}
        (folder / "films").mkdir()
        count, frames = (1, 30 * units) if source == "length" else (units, 60)
        size = (320, 240) if source == "length" else (160, 120)
        for number in range(count):
            make_film(folder / f"films/{number:05d}.mp4", *size, frames, number)
    (folder / "params.yaml").write_text(json.dumps(values), encoding="utf-8")


def cost(folder: Path, stage: str) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a stage."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{stage} failed in {folder}: {done.stderr.splitlines()[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


def main(
    source: str = typer.Option("files", help="craft (videos), files (small films) or length (seconds of one film)."),
    units: int = typer.Option(100, help="1x of the input, in videos or seconds."),
    repeats: int = typer.Option(1, help="Runs of each; the cheapest counts."),
    params: Path = typer.Option(ROOT / "params.yaml", help="Parameter file."),
) -> None:
    """CPU cost of one unit of input at 1x, 4x and 16x of it."""
    if source not in ("craft", "files", "length") or units <= FEW:
        raise UserError(f"expected --source craft, files or length and --units above {FEW}, got {source}, {units}")
    with tempfile.TemporaryDirectory() as temporary:
        sizes = [FEW, *(units * times for times in TIMES)]
        spent: dict[tuple[int, str], tuple[float, float]] = {}
        for size in sizes:
            prepare(Path(temporary) / str(size), source, size, params)
        for _ in range(repeats):
            for size in sizes:
                for stage in STAGES:
                    cpu, wall = cost(Path(temporary) / str(size), stage)
                    least = spent.get((size, stage), (cpu, wall))
                    spent[size, stage] = min(cpu, least[0]), min(wall, least[1])
    rows = []
    for stage in STAGES:
        cpu = np.array([spent[size, stage][0] for size in sizes])
        start, unit = np.linalg.lstsq(np.column_stack([1 / cpu, sizes / cpu]), np.ones(len(cpu)))[0]
        for times, size, seconds in zip(("few", *(f"{each}x" for each in TIMES)), sizes, cpu, strict=True):
            row = {"stage": stage, "input": times, "units": size, "CPU s": f"{seconds:.2f}"}
            row |= {"wall s": f"{spent[size, stage][1]:.1f}", "line, s": f"{start:.2f} + {unit:.4f} n"}
            rows.append(row | {"CPU / line": f"{seconds / (start + unit * size):.3f}"})
    table(f"cost of {source}", rows)


if __name__ == "__main__":
    run(main)
