"""A folder of folders of pictures: every folder that holds PNG, JPEG, BMP or WebP files is a video.

Pictures go by name in natural order (2 before 10), ingest.frames_fps of them a second, into a lossless H.264 file. A
video with a picture that is broken, animated, too large, of more than 8 bits or of another size than its first is
refused, and so is one whose names tell that pictures are missing or there twice; none is left out or made up. The table
`videos.csv` or `videos.parquet` of the source `folder` may stand in the root; its column `file` names the folder of a
video. Without it: task = name of the folder above, or of the root.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vw2.console import UserError
from vw2.data.manifest import Entry, Refused, content_hash
from vw2.data.sources.base import (
    FOLDER,
    READ_ERRORS,
    UNKNOWN,
    IngestConfig,
    inspect_all,
    refuse_pickles,
    source_folder,
    state_of,
    utf8,
    walk,
    why,
)
from vw2.data.sources.folder import COLUMNS, make_ids, read_sidecar
from vw2.media.decode import MediaError, probe, read_image
from vw2.media.encode import write_video
from vw2.scratch import atomic_file

SUFFIXES = frozenset(".bmp .jpeg .jpg .png .webp".split())
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # by content: a .png that is PostScript would be run, not read


@dataclass(frozen=True)
class FramesJob:
    """One folder of pictures."""

    folder: str  # openable
    path: str  # as given in params.yaml, for the quarantine
    names: tuple[str, ...]  # pictures, in order
    id: str
    task: str
    instruction: str
    split: str | None
    environment: str
    licence: str
    work: Path
    config: IngestConfig


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which img2 comes before img10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)] + [(-1, name)]


def find_folders(root: Path, shown: str = "", refused: list[Refused] | None = None) -> dict[str, tuple[str, ...]]:
    """Folder relative to the root -> its pictures in natural order.

    Args: as of `vw2.data.sources.base.walk`; `refused` also takes folders with names that are no UTF-8.
    """
    found, refused = {}, [] if refused is None else refused
    for folder, files in walk(root, shown, refused):
        names = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
        if any(utf8(each) != each for each in (folder, *names)):
            refused.append(
                Refused(utf8(Path(shown) / folder), "has a name, or a picture with a name, that is not UTF-8")
            )
        elif names:
            found[folder] = tuple(sorted(names, key=natural))
    return dict(sorted(found.items()))


def check_names(names: Sequence[str]) -> None:
    """Raise MediaError where names of pictures in order say that one is there twice or that some between are missing.

    The latter is told by the one number in which all names differ: no step of it may reach 1.5 times another (the
    numbers may be times that jitter). Names of any other kind say nothing.
    """
    stems = [Path(name).stem for name in names]
    for stem, count in Counter(stems).items():
        if count > 1:
            both = " and ".join([name for name in names if Path(name).stem == stem][:2])
            raise MediaError(f"holds one picture twice by its name: {both}; keep one kind")
    parts = [re.split(r"(\d+)", stem) for stem in stems]
    if len({len(each) for each in parts}) > 1:
        return
    columns = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
    if len(columns) != 1 or not all(map(str.isdecimal, columns[0])):
        return
    steps = np.diff(np.array([int(each) for each in columns[0]], dtype=object))
    at, least = int(steps.argmax()), steps.min()
    if steps[at] >= 1.5 * least:
        jump = f"{names[at]} to {names[at + 1]}"
        raise MediaError(
            f"lacks pictures: its numbers go from {jump}, elsewhere in steps of {least}; number them evenly"
        )


def pictures(job: FramesJob) -> Iterator[np.ndarray]:
    """The pictures of a video, one in memory at a time; MediaError naming the one that cannot be used."""
    start, shape = time.process_time(), None
    for number, name in enumerate(job.names):
        try:
            picture = read_image(Path(job.folder) / name, max_side=job.config.max_side, formats=FORMATS)
        except READ_ERRORS as error:
            raise MediaError(f"breaks after {number} pictures: {name} {why(error)}", number) from error
        shape = shape or picture.shape
        if picture.shape != shape:
            size, first = (f"{each[1]}x{each[0]}" for each in (picture.shape, shape))
            raise MediaError(
                f"changes its size after {number} pictures: {name} is {size}, the first is {first}", number
            )
        if time.process_time() - start > job.config.time_limit:
            raise MediaError(
                f"takes longer than {job.config.time_limit:g} s to read ({number} pictures came out)", number
            )
        yield picture


def make_video(job: FramesJob) -> dict[str, Any]:
    """Write <work>/videos/<id>.mp4; {"items": [the Entry, or Refused with the true reason]} as JSON."""
    file = job.work / "videos" / f"{job.id}.mp4"
    try:
        if len(job.names) < job.config.min_frames:
            raise MediaError(f"holds {len(job.names)} pictures, ingest.min_frames is {job.config.min_frames}")
        check_names(job.names)
        with atomic_file(file) as temporary:
            write_video(temporary, pictures(job), job.config.frames_fps, lossless=True)
    except (MediaError, MemoryError) as error:  # a full disk is not the pictures' fault
        return {"items": [asdict(Refused(job.path, why(error)))]}
    info = probe(file, max_side=job.config.max_side)
    if info.frames != len(job.names):
        raise ValueError(f"{file}: expected {len(job.names)} frames, wrote {info.frames}")
    given = {name: getattr(job, name) for name in ("id", *COLUMNS)}
    facts = {name: getattr(info, name) for name in ("fps", "frames", "width", "height", "codec")}
    path = f"{FOLDER}/{job.id}.mp4"
    return {"items": [asdict(Entry(source="frames", path=path, hash=content_hash(file), **given, **facts))]}


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Make a video of every folder of pictures below `config.path`.

    Yields: an Entry or a Refused per folder, and a Refused per sidecar row whose folder holds no picture.
    Raises: UserError if there is no picture or the sidecar is faulty.
    """
    root = source_folder(config, "folders of pictures")
    refused: list[Refused] = []
    folders, sidecar = find_folders(root, config.path, refused), read_sidecar(root)
    if not folders and not refused:
        refuse_pickles(config, root)
        raise UserError(f"no picture in ingest.path {config.path} (looked for {', '.join(sorted(SUFFIXES))})")
    yield from refused
    for folder in sorted(set(sidecar) - set(folders)):
        path = (Path(config.path) / folder).as_posix()
        yield Refused(path, "is listed in the sidecar but is not a folder of pictures")
    name = root.resolve().name
    ids = make_ids([f"{name if folder == '.' else folder}.mp4" for folder in folders])  # make_ids cuts the suffix
    jobs = {}
    for (folder, names), video in zip(folders.items(), ids.values(), strict=True):
        given = sidecar.get(folder, {})
        task = given.get("task") or ((root.resolve() / folder).parent.name if folder != "." else name) or UNKNOWN
        job = FramesJob(
            folder=str(root / folder),
            path=(Path(config.path) / folder).as_posix(),
            names=names,
            id=video,
            task=task,
            instruction=given.get("instruction") or task.replace("_", " "),
            split=given.get("split"),
            environment=given.get("environment") or UNKNOWN,
            licence=given.get("licence") or config.licence,
            work=work,
            config=config,
        )
        digest = hashlib.sha256(str(job).encode())
        for each in names:
            digest.update(state_of(root / folder / each).encode())
        jobs[digest.hexdigest()[:32]] = job
    yield from inspect_all(make_video, jobs, config, work, workers, "make videos")
