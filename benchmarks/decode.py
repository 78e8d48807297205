"""How fast videos become clips, beside a plain loop over PyAV: `python -m benchmarks.decode`.

The plain loop decodes with one thread and scales the frames that the clips keep, without checks and without writing:
    area       swscale, area averaging with full colour (what `vw2.media.picture` asks for)
    bilinear   swscale, PyAV's default
    resize     to RGB, then `vw2.media.resize.resize_frame`
    area, all  as area, but all frames, also those that 16 fps leave out
Throughput is 1 / seconds; pairs are timed in turns and the median of their ratios counts. CPU time is what one process
used; wall time also counts what other programs took from it.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import typer
from av.video.reformatter import Interpolation, VideoReformatter

from benchmarks.films import FPS, make_film
from vw2.console import UserError, run, table, track
from vw2.data.clips import ClipConfig, cut_file
from vw2.data.frame_rate import source_index
from vw2.data.sources.folder import find_videos
from vw2.media.decode import probe, read_frames, scan
from vw2.media.picture import SHRINK
from vw2.media.resize import resize_frame

CONFIG = ClipConfig(fit="stretch")  # the plain loops know no other
WHOLE = {"start": None, "stop": None, "variable": False, "sar": 1.0, "width": 0, "height": 0}  # a row of the manifest
FLAGS = {"area": SHRINK, "bilinear": Interpolation.BILINEAR, "area, all": SHRINK}
PLAIN = (*FLAGS, "resize")
PAGE = os.sysconf("SC_PAGE_SIZE")


def plain(kind: str, file: Path, fps: float) -> list[np.ndarray]:
    """Decode a file in a plain loop and scale what the clips keep."""
    kept, scaler, wanted = [], VideoReformatter(), 0
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if kind != "area, all" and source_index(wanted, fps, CONFIG.fps) > number:
                continue
            while source_index(wanted, fps, CONFIG.fps) <= number:
                wanted += 1
            if kind == "resize":
                picture = frame.to_ndarray(format="rgb24", threads=1)
                kept.append(resize_frame(picture, CONFIG.height, CONFIG.width, CONFIG.fit))
            else:
                size = {"width": CONFIG.width, "height": CONFIG.height, "interpolation": FLAGS[kind]}
                kept.append(scaler.reformat(frame, format="rgb24", threads=1, **size).to_ndarray())
    return kept


def ours(file: Path, fps: float, folder: Path) -> None:
    """As the stage clip does it, writing included."""
    list(cut_file(file, [{**WHOLE, "id": str(os.getpid()), "fps": fps}], CONFIG, folder))


def cost(work: Callable, *arguments: object) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.process_time() - cpu, time.perf_counter() - wall


def both(crew: ProcessPoolExecutor, work: Callable, *arguments: object) -> tuple[float, float]:
    """As `cost`, for the same call in two processes side by side; the CPU seconds of both."""
    wall = time.perf_counter()
    cpu = sum(job.result()[0] for job in [crew.submit(cost, work, *arguments) for _ in range(2)])
    return cpu, time.perf_counter() - wall


def ratios(measure: Callable, file: Path, fps: float, folder: Path, repeats: int) -> dict[str, str]:
    """Kind of plain loop -> median over the pairs of plain seconds / our seconds, CPU (wall)."""
    pairs: dict[str, list[np.ndarray]] = {kind: [] for kind in PLAIN}
    for repeat in track(range(repeats + 1), file.name):
        for kind in PLAIN:
            if repeat % 2:
                mine, other = measure(ours, file, fps, folder), measure(plain, kind, file, fps)
            else:
                other, mine = measure(plain, kind, file, fps), measure(ours, file, fps, folder)
            if repeat:  # the first round warms the caches
                pairs[kind].append(np.divide(other, mine))
    medians = {kind: np.median(values, axis=0) for kind, values in pairs.items()}
    return {kind: f"{cpu:.2f} ({wall:.2f})" for kind, (cpu, wall) in medians.items()}


def growth(file: Path, opens: int) -> float:
    """MB of resident memory by which this process grows when it opens a video `opens` times, in all ways we do."""
    ways = (probe, lambda path: next(read_frames(path)), scan, lambda path: [None for _ in read_frames(path)])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    for number in range(40):
        ways[number % len(ways)](file)
    before = resident()
    for number in track(range(opens), "open"):
        ways[number % len(ways)](file)
    return (resident() - before) / 1e6


def main(
    folder: Path = typer.Option(None, help="Measure on these videos instead of generated ones."),
    frames: int = typer.Option(400, help="Frames of the generated videos."),
    repeats: int = typer.Option(7, help="Pairs to time."),
    opens: int = typer.Option(0, help="Only open a small video so often and tell how memory grows."),
) -> None:
    """Clip throughput of our path beside plain PyAV loops; 1.00 = as fast, 0.90 is the least we accept."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if opens:
            film = make_film(work / "small.mp4", 96, 64, 12, 0)
            table("memory", {"opens": opens, "growth, MB": growth(film, opens)})
            return
        if folder is None:
            files = [make_film(work / f"{w}x{h}.mp4", w, h, frames, 0) for w, h in ((640, 360), (1280, 720))]
        elif not (files := [folder / name for name in find_videos(folder)]):
            raise UserError(f"no video in {folder}; choose another --folder")
        rows = []
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as crew:
            for file in files:
                info = scan(file)
                fps = info.fps if folder else FPS
                spent = np.median([cost(ours, file, fps, work)[0] for _ in range(repeats)])
                name = {"video": file.name, "CPU ms/frame": 1000 * float(spent) / info.frames}
                rows.append(name | {"workers": 1} | ratios(cost, file, fps, work, repeats))
                side = ratios(lambda *call: both(crew, *call), file, fps, work, repeats)
                rows.append(name | {"workers": 2} | side)
        table("plain seconds / our seconds, CPU (wall)", rows)


if __name__ == "__main__":
    run(main)
