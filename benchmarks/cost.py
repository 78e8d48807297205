"""Does the cost of ingest and clip grow with the input, and no faster? `python -m benchmarks.cost`.

Runs both stages in fresh processes on 1x, 4x and 16x of an input and on a single video, whose cost (start of Python,
imports, worker processes, figures) is what no input costs. CPU seconds (user and system, worker processes included) are
what is compared: wall seconds also count what other programs took.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from benchmarks.films import make_film
from vw2.console import UserError, run, table
from vw2.params import load

ROOT = Path(__file__).parents[1]
TIMES = (1, 4, 16)
STAGES = ("ingest", "clip")


def prepare(folder: Path, source: str, units: int, params: Path) -> None:
    """Parameters and input of a run: `units` craft videos, films, or seconds of one film."""
    folder.mkdir()
    values = load(params)
    values["runtime"] = {"workers": 2}
    if source == "craft":
        values["craft"] |= {"train_videos": max(1, units - 4)}
        values["craft"] |= dict.fromkeys(("fail_videos", "test_paper", "test_blocks", "probe_videos"), int(units > 4))
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
    units: int = typer.Option(60, help="1x of the input, in videos or seconds."),
    repeats: int = typer.Option(3, help="Runs of each; the cheapest counts."),
    params: Path = typer.Option(ROOT / "params.yaml", help="Parameter file."),
) -> None:
    """CPU cost of one unit of input at 1x, 4x and 16x of it."""
    if source not in ("craft", "files", "length"):
        raise UserError(f"--source: expected craft, files or length, got {source}")
    with tempfile.TemporaryDirectory() as temporary:
        sizes = [1, *(units * times for times in TIMES)]
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
        fixed = spent[1, stage][0]
        each = {size: (spent[size, stage][0] - fixed) / (size - 1) for size in sizes[1:]}
        for times, size in zip(TIMES, sizes[1:], strict=True):
            cpu, wall = spent[size, stage]
            row = {"stage": stage, "input": f"{times}x", "units": size, "CPU s": cpu, "wall s": wall}
            row |= {"CPU s of one unit": fixed, "CPU ms per further unit": 1000 * each[size]}
            rows.append(row | {"against 1x": f"{each[size] / each[units]:.3f}"})
    table(f"cost of {source}", rows)


if __name__ == "__main__":
    run(main)
