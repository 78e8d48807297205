"""CALVIN data sets: one npz file per frame, windows of them annotated with an instruction (Mees et al. 2022).

    <ingest.path>/training/    split train           or ingest.path is one of the two
    <ingest.path>/validation/  split test
        episode_0000000.npz ...           rgb_static (H, W, 3) uint8, rel_actions (7,), robot_obs (15,) float64
        ep_start_end_ids.npy              (E, 2) first and last frame of every recorded episode
        lang_annotations/auto_lang_ann.npy  pickled dict: language.ann, language.task, info.indx (inclusive windows)
        scene_info.npy                    pickled dict: {"calvin_scene_D": [first, last], ...}

Every annotated window is a video with its instruction and task; without annotations the recorded episodes are the
videos, task `play`, no instruction. Windows may overlap. Actions are CALVIN's relative ones (position and angles of
the hand, scaled to [-1, 1]; gripper -1 closed, 1 open), states its robot_obs (metres, radians). The environment is
`calvin_A` to `calvin_D`, by scene_info.npy or else by the folder's name (task_ABC_D: trained in A, B, C, validated in
D); `calvin_ABC` where nothing tells which. Pickles are read by `vw2.data.numpy_files`, which runs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from vw2.console import UserError
from vw2.data.manifest import Entry, Refused
from vw2.data.numpy_files import DataError, plain, read_array, read_npz, read_objects
from vw2.data.sources.base import IngestConfig, inspect_all, is_given, source_folder, why
from vw2.data.sources.episodes import Facts, Limits, Track, store
from vw2.media.decode import MediaError

FPS = 30.0  # the rate at which CALVIN was recorded (control_freq of its configuration)
SPLITS = {"training": "train", "validation": "test"}
CAMERA, ACTION, STATE = "rgb_static", "rel_actions", "robot_obs"
MAX_WINDOW = 2**20  # frames (9.7 hours): a longer window is a broken table
PLAY = "play"


@dataclass(frozen=True)
class Window:
    """Frames first to last, both included, and what was said of them."""

    first: int
    last: int
    task: str
    instruction: str | None


@dataclass(frozen=True)
class CalvinJob:
    """One window to make a video of."""

    folder: str  # openable path of training or validation
    path: str  # name of the window in the quarantine
    digits: int  # in the names of the frame files
    window: Window
    facts: Facts
    limits: Limits
    work: Path

    def file(self, frame: int) -> Path:
        return Path(self.folder) / f"episode_{frame:0{self.digits}d}.npz"


# ---------------------------------------------------------------- tables of a split


def _objects(path: Path) -> dict:
    """The pickled dictionary in a file. Raises: UserError."""
    try:
        value = read_objects(path)
    except DataError as error:
        raise UserError(f"{path} {error}; mend or remove the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a dictionary, got {type(value).__name__}; mend or remove the file")
    return value


def _pairs(values: Any, path: Path, what: str) -> list[tuple[int, int]]:
    """[(first, last)] from nested lists. Raises: UserError naming the row that is none."""
    pairs = []
    for row, pair in enumerate(values):
        pair = plain(pair)
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(each) is int for each in pair)
        if not whole or not 0 <= pair[0] <= pair[1] < pair[0] + MAX_WINDOW:
            raise UserError(f"{path}: expected {what} {row} to be (first, last), got {str(pair)[:60]}; mend the file")
        pairs.append(tuple(pair))
    return pairs


def find_annotations(folder: Path) -> Path | None:
    """The file of annotations: lang_annotations/, else the first of the folders lang_* that has one.

    Raises: UserError for a link to nothing.
    """
    folders = [folder / "lang_annotations", *sorted(folder.glob("lang_*"))]
    files = (each / "auto_lang_ann.npy" for each in folders if is_given(each))
    return next((file for file in files if is_given(file)), None)


def read_annotations(path: Path) -> list[Window]:
    """The annotated windows.

    Raises: UserError if the file is damaged, holds anything but plain data, or its lists differ in length.
    """
    value = _objects(path)
    try:
        words = [plain(value["language"][key]) for key in ("ann", "task")]
        indices = plain(value["info"]["indx"])
        if not all(isinstance(each, list | tuple) for each in (*words, indices)):
            raise TypeError("lists")
    except (KeyError, TypeError, DataError) as error:
        raise UserError(f"{path}: expected language.ann, language.task and info.indx, got no such lists") from error
    sizes = {len(each) for each in (*words, indices)}
    if len(sizes) > 1:
        raise UserError(f"{path}: expected as many texts and tasks as windows, got {sorted(sizes)}; mend the file")
    windows = []
    for said, task, (first, last) in zip(*words, _pairs(indices, path, "info.indx"), strict=True):
        if not isinstance(said, str) or not isinstance(task, str):
            raise UserError(f"{path}: expected words for the window {first}-{last}, got {str(said)[:60]}")
        windows.append(Window(first, last, task.strip() or PLAY, said.strip() or None))
    return windows


def read_windows(folder: Path) -> list[Window]:
    """The windows that become videos: the annotated ones, else the recorded episodes.

    Raises: UserError if neither is there or one is faulty.
    """
    annotations = find_annotations(folder)
    if annotations is not None:
        return read_annotations(annotations)
    path = folder / "ep_start_end_ids.npy"
    if not is_given(path):
        raise UserError(f"{folder} holds neither {path.name} nor lang_annotations/auto_lang_ann.npy; add one of them")
    try:
        spans = read_array(path)
    except DataError as error:
        raise UserError(f"{path} {error}; mend the file") from error
    if spans.ndim != 2 or spans.dtype.kind not in "iu":
        raise UserError(f"{path}: expected whole numbers (episodes, 2), got {spans.dtype} {spans.shape}; mend the file")
    return [Window(first, last, PLAY, None) for first, last in _pairs(spans.tolist(), path, "episode")]


def read_scenes(folder: Path) -> list[tuple[str, int, int]]:
    """(letter, first frame, last frame) of each environment in scene_info.npy; empty without the file."""
    path = folder / "scene_info.npy"
    if not is_given(path):
        return []
    scenes = _objects(path)
    spans = _pairs([plain(span) for span in scenes.values()], path, "scene")
    letters = [str(name).removeprefix("calvin_scene_") for name in scenes]
    return [(letter, *span) for letter, span in zip(letters, spans, strict=True)]


def environment(window: Window, scenes: list[tuple[str, int, int]], folder: Path) -> str:
    """calvin_<letter> of a window (see the module); `calvin` where neither scenes nor names tell."""
    for letter, first, last in scenes:
        if first <= window.first <= last:
            return f"calvin_{letter}"
    match = re.search(r"task_([A-D]+)_([A-D]+)", folder.resolve().parent.name)
    return f"calvin_{match[1 if folder.name == 'training' else 2]}" if match else "calvin"


# ---------------------------------------------------------------- videos


def _read(job: CalvinJob, frame: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of one frame. Raises: MediaError naming the frame."""
    file = job.file(frame)
    try:
        arrays = read_npz(file, names, limit=3 * job.limits.max_side**2 + 1024)
    except FileNotFoundError as error:
        raise MediaError(f"lacks its frame {frame}: {file.name} is not there") from error
    except OSError as error:
        raise MediaError(f"has a frame that cannot be read: {file.name} ({error.strerror or error})") from error
    except DataError as error:
        raise MediaError(f"has a frame that cannot be used: {file.name} {error}") from error
    for name in names:
        if name not in arrays:
            raise MediaError(f"has a frame without {name}: {file.name}")
    return arrays


def _pictures(job: CalvinJob, rows: list[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """The pictures of a window; action and state of each frame are put into rows on the way."""
    for frame in range(job.window.first, job.window.last + 1):
        arrays = _read(job, frame, (CAMERA, ACTION, STATE))
        picture, numbers = arrays[CAMERA], {name: arrays[name] for name in (ACTION, STATE)}
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
            shape = f"{picture.dtype} {picture.shape}"
            raise MediaError(f"has a picture that is no (H, W, 3) uint8 but {shape}: {job.file(frame).name}")
        for name, row in numbers.items():
            if row.ndim != 1 or row.dtype.kind not in "fiu" or (rows and row.shape != rows[0][name].shape):
                raise MediaError(f"has a frame whose {name} is {row.dtype} {row.shape}: {job.file(frame).name}")
        rows.append({name: row.astype(np.float32) for name, row in numbers.items()})
        yield picture


def make_video(job: CalvinJob) -> dict[str, Any]:
    """Write the video and the track of one window; {"items": [the Entry, or Refused with the true reason]} as JSON."""
    length = job.window.last - job.window.first + 1
    try:
        rows: list[dict[str, np.ndarray]] = []

        def track() -> Track:
            columns = [np.stack([row[name] for row in rows]) for name in (ACTION, STATE)]
            return Track(*columns, [job.window.instruction] * length)

        item = store(job.work, job.facts, length, _pictures(job, rows), track, job.limits)
    except (MediaError, MemoryError) as error:
        item = Refused(job.path, why(error))
    return {"items": [asdict(item)]}


def _digits(folder: Path) -> int:
    """How many digits the names of the frame files have. Raises: UserError if there is no such file."""
    with os.scandir(folder) as files:
        for file in files:
            if match := re.fullmatch(r"episode_(\d+)\.npz", file.name):
                return len(match[1])
    raise UserError(f"expected frames episode_0000000.npz, ... in {folder}, got none; change ingest.path")


def _state(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _jobs(config: IngestConfig, root: Path, folder: Path, work: Path) -> Iterator[tuple[str, CalvinJob]]:
    """One job per window of a split, named by what can change its outcome, the frame files' dates included."""
    scenes, digits, taken = read_scenes(folder), _digits(folder), set()
    limits = Limits(config.min_frames, config.max_side, config.time_limit)
    name = folder.resolve().name
    inside = "" if folder == root else f"/{folder.name}"
    for window in read_windows(folder):
        span = f"{window.first:0{digits}d}-{window.last:0{digits}d}"
        plain_id = f"{name}_{span}_{re.sub(r'[^A-Za-z0-9._-]+', '_', window.task)[:60]}".lstrip(".-")
        # A window may be annotated twice.
        id_ = next(each for number in count(1) if (each := plain_id + f"-{number}" * (number > 1)) not in taken)
        taken.add(id_)
        where = environment(window, scenes, folder)
        said = window.instruction or ""
        facts = Facts(id_, "calvin", SPLITS.get(name), where, window.task, said, config.licence, FPS)
        path = f"{Path(config.path).as_posix()}{inside}#{span}"
        job = CalvinJob(str(folder), path, digits, window, facts, limits, work)
        states = [_state(job.file(frame)) for frame in range(window.first, window.last + 1)]
        yield hashlib.sha256(f"{job}{states}".encode()).hexdigest()[:32], job


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Make a video and a track (see `vw2.data.sources.episodes`) of every window.

    Yields: an Entry or a Refused per window; a refused window is named <folder>#<first>-<last>.
    Raises: UserError if ingest.path holds no CALVIN data set or a table in it is faulty.
    """
    root = source_folder(config, "CALVIN frames")
    folders = [root / name for name in SPLITS if is_given(root / name)] or [root]
    jobs = dict(job for folder in folders for job in _jobs(config, root, folder, work))
    yield from inspect_all(make_video, jobs, config, work, workers, "unpack CALVIN windows")
