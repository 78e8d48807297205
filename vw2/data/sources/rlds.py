"""RLDS data sets as Open X-Embodiment publishes them: TFRecord shards, one episode a record (Ramos et al. 2021).

    <ingest.path>/.../<name>-<split>.tfrecord-00000-of-00008    as TFDS names them; any depth, several data sets
                  .../features.json, dataset_info.json          used where present

Every episode is a video and a track. Which features are taken: `vw2.data.sources.rlds_keys`; of the cameras, the first
that shows anything. Splits: train; val,
validation, eval and test become test; others go by content. The frame rate is a control frequency in dataset_info.json
or metadata.json if one is given there (`FPS_KEYS`), else 10 Hz (`FPS`): RLDS itself has no place for it. Task = name of
the data set, environment = unknown. Shards are read without TensorFlow (`vw2.data.tfrecord`), an episode at a time; a
worker holds one episode as stored and one of its pictures unpacked. The index of all episodes takes about 0.5 kB each.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vw2.console import UserError
from vw2.data.manifest import Entry, Refused
from vw2.data.sources.base import (
    SPLITS,
    IngestConfig,
    inspect_all,
    is_given,
    refuse_pickles,
    source_folder,
    utf8,
    walk,
    why,
)
from vw2.data.sources.episodes import Facts, Limits, Track, store
from vw2.data.sources.rlds_keys import IMAGE, choose, is_picture, kinds_of_schema, kinds_of_values, matrix, words
from vw2.data.tfrecord import Record, RecordError, features, index_records, read_record, values
from vw2.media.decode import MediaError

FPS = 10.0  # frames per second where nothing tells
FPS_KEYS = ("control_frequency", "control_freq", "control_hz", "frequency", "fps", "hz")
SHARD = re.compile(r"(?P<name>.+?)(-(?P<split>\w+))?\.tfrecords?(-(?P<number>\d{5,6})-of-(?P<of>\d{5,6}))?")


@dataclass(frozen=True)
class DataSet:
    """What the files beside the shards of one folder tell."""

    name: str
    kinds: tuple[tuple[str, str], ...]  # feature -> kind; empty without features.json
    fps: float
    lengths: dict[str, list[int]]  # split -> episodes per shard


@dataclass(frozen=True)
class RldsJob:
    """One episode to make a video of."""

    shard: str  # openable path
    path: str  # name of the episode in the quarantine
    record: Record
    kinds: tuple[tuple[str, str], ...]
    facts: Facts  # its instruction comes from the episode
    limits: Limits
    work: Path


# ---------------------------------------------------------------- one episode


def _pictures(encoded: list[memoryview], limits: Limits) -> Iterator[np.ndarray]:
    """The frames, unpacked one at a time. Raises: MediaError naming the frame."""
    for number, data in enumerate(encoded):
        if not is_picture(data):
            what = "nothing" if not len(data) else "no colour picture in JPEG or PNG"
            raise MediaError(f"holds {what} in frame {number}")
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as stored:
                if max(stored.size) > limits.max_side:
                    size = f"{stored.width}x{stored.height}"
                    raise MediaError(f"has a frame of {size} pixels, more than {limits.max_side} on a side")
                picture = np.array(stored.convert("RGB"))  # not turned by EXIF: TensorFlow does not either
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise MediaError(f"has a damaged picture in frame {number} ({error})") from error
        yield picture


def _shows(encoded: list[memoryview] | np.ndarray, limits: Limits) -> bool:
    """Is there anything to see? Data sets fill absent cameras up with empty strings or pictures of one colour.

    True where a picture is damaged: the reason for refusing it comes later.
    """
    if isinstance(encoded, np.ndarray) or not encoded:
        return False
    ends = [data for data in (encoded[0], encoded[-1]) if len(data)]
    try:
        return any(picture.min() < picture.max() for picture in _pictures(ends, limits))
    except MediaError:
        return True


def make_video(job: RldsJob) -> dict[str, Any]:
    """Write the video and the track of one episode; {"items": [the Entry, or Refused with the true reason]} as JSON."""
    try:
        with open(job.shard, "rb") as stream:
            found = features(read_record(stream, job.record))
        kinds = dict(job.kinds)
        keys = choose(kinds if IMAGE in kinds.values() else kinds_of_values(found) | kinds)
        cameras = (values(found.get(key, [])) for key in keys.images)
        encoded = next((each for each in cameras if _shows(each, job.limits)), None)
        if encoded is None:
            raise MediaError(f"shows nothing in {', '.join(keys.images)} (no picture, or one flat colour)")
        count = len(encoded)
        said = words(found, keys.instruction, count)
        track = Track(matrix(found, keys.action, count), matrix(found, keys.state, count), said)
        instruction = next((text for text in said if text), "")
        facts = Facts(**{**vars(job.facts), "instruction": instruction})
        item = store(job.work, facts, count, _pictures(encoded, job.limits), lambda: track, job.limits)
    except (RecordError, MediaError, MemoryError) as error:
        item = Refused(job.path, why(error))
    return {"items": [asdict(item)]}


# ---------------------------------------------------------------- files


def find_shards(root: Path, shown: str, refused: list[Refused]) -> dict[Path, list[str]]:
    """Names of TFRecord files by folder, sorted.

    Args: as of `vw2.data.sources.base.walk`; `refused` also takes shards with names that are no UTF-8.
    """
    found = defaultdict(list)
    for folder, files in walk(root, shown, refused):
        for name in filter(SHARD.fullmatch, files):
            if utf8(path := (Path(folder) / name).as_posix()) != path:
                refused.append(Refused(utf8(Path(shown) / path), "has a name that is not UTF-8"))
            else:
                found[root / folder].append(name)
    return dict(found)


def _json(path: Path) -> Any:
    """A JSON file; {} if it is not there. Raises: UserError if it is none."""
    if not is_given(path):
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); mend or remove it") from error


def find_fps(info: Any) -> float | None:
    """A control frequency in the dictionaries of an info file, Hz; None if there is none."""
    if not isinstance(info, dict):
        return None
    for key in FPS_KEYS:
        try:
            rate = float(info[key])
        except (KeyError, TypeError, ValueError):
            continue
        if 0 < rate <= 1000 and not isinstance(info[key], bool):
            return rate
    return next((rate for value in info.values() if (rate := find_fps(value))), None)


def read_info(folder: Path, shards: list[str]) -> DataSet:
    """What features.json, dataset_info.json and metadata.json tell, or the names of the shards.

    Raises: UserError if one of them is faulty or names another file format.
    """
    info, schema = _json(folder / "dataset_info.json"), _json(folder / "features.json")
    info = info if isinstance(info, dict) else {}
    kind = info.get("fileFormat", "tfrecord")
    if kind != "tfrecord":
        raise UserError(f"{folder}: expected TFRecord files, dataset_info.json says {kind}; convert the data set")
    try:
        kinds = kinds_of_schema(schema) if schema else {}
        lengths = {each["name"]: [int(n) for n in each.get("shardLengths", [])] for each in info.get("splits", [])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: features.json or dataset_info.json is faulty ({error}); mend or remove it"
        ) from error
    name = info.get("name") or SHARD.fullmatch(shards[0])["name"]
    fps = find_fps(info) or find_fps(_json(folder / "metadata.json")) or FPS
    return DataSet(str(name), tuple(sorted(kinds.items())), fps, lengths)


def _missing(shards: list[str], path: str) -> Iterator[Refused]:
    """One line for each set of shards (…-of-00008) that is not complete."""
    sets = defaultdict(set)
    for name in shards:
        if (match := SHARD.fullmatch(name))["number"]:
            sets[name[: match.start("number")], match["of"]].add(int(match["number"]))
    for (start, of), there in sorted(sets.items()):
        lost = sorted(set(range(int(of))) - there)
        if lost:
            others = f", nor are {len(lost) - 1} others" if len(lost) > 1 else ""
            first = f"{start}{lost[0]:0{len(of)}d}-of-{of}"
            yield Refused(f"{path}/{first}", f"is not there{others} of {int(of)} shards")


def _faults(match: re.Match, data: DataSet, episodes: int) -> str | None:
    """The reason if a shard that ends well holds another number of episodes than it should."""
    lengths = data.lengths.get(match["split"] or "", [])
    number = int(match["number"] or 0)
    declared = lengths[number] if len(lengths) == int(match["of"] or 1) and number < len(lengths) else None
    if declared is None:
        return None if episodes else "is empty"
    return None if declared == episodes else f"holds {episodes} episodes, dataset_info.json declares {declared}"


def _make_id(name: str) -> str:
    """An id fit for a file name from the path of a shard below the root."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", re.sub(r"\.tfrecords?", "", name).replace("/", "__")).lstrip(".-")
    return short if len(short) <= 90 else f"{short[-80:].lstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _look_up(
    config: IngestConfig, root: Path, found: dict[Path, list[str]], work: Path
) -> Iterator[tuple[str, RldsJob] | Refused]:
    """(name, job) of every episode, named by what can change its outcome; Refused for what is missing or damaged."""
    limits = Limits(config.min_frames, config.max_side, config.time_limit)
    taken: set[str] = set()
    for folder, shards in found.items():
        data = read_info(folder, shards)
        inside = folder.relative_to(root).as_posix()
        here = f"{Path(config.path).as_posix()}/{inside}".removesuffix("/.")
        yield from _missing(shards, here)
        for shard in shards:
            match, path = SHARD.fullmatch(shard), folder / shard
            id_ = _make_id(f"{inside}/{shard}".removeprefix("./"))
            id_ = id_ if id_ not in taken else f"{id_}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
            taken.add(id_)
            split, episodes = SPLITS.get(match["split"] or ""), 0
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise OSError("it is a pipe or device, not a file")
                for record in index_records(path):
                    facts = Facts(
                        f"{id_}_{record.number:05d}", "rlds", split, "unknown", data.name, "", config.licence, data.fps
                    )
                    job = RldsJob(str(path), f"{here}/{shard}#{record.number}", record, data.kinds, facts, limits, work)
                    state = f"{job}{status.st_size}{status.st_mtime_ns}"
                    yield hashlib.sha256(state.encode()).hexdigest()[:32], job
                    episodes += 1
            except RecordError as error:
                yield Refused(f"{here}/{shard}#{episodes}", f"{error} (and with it what follows in the file)")
                continue
            except OSError as error:
                yield Refused(f"{here}/{shard}", f"cannot be read ({error.strerror or error})")
                continue
            if reason := _faults(match, data, episodes):
                yield Refused(f"{here}/{shard}", reason)


def entries(config: IngestConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """Make a video and a track (see `vw2.data.sources.episodes`) of every episode.

    Yields: an Entry or a Refused per episode, named <shard>#<number>, and a Refused per missing or damaged shard and
        folder that cannot be opened.
    Raises: UserError if ingest.path holds no TFRecord file or a file beside them is faulty.
    """
    root = source_folder(config, "TFRecord files")
    refused: list[Refused] = []
    found = find_shards(root, config.path, refused)
    if not found and not refused:
        refuse_pickles(config, root)
        raise UserError(f"no TFRecord file (*.tfrecord*) in ingest.path {config.path}; change ingest.path")
    yield from refused
    jobs: dict[str, RldsJob] = {}
    for item in _look_up(config, root, found, work):
        if isinstance(item, Refused):
            yield item
        else:
            jobs[item[0]] = item[1]
    yield from inspect_all(make_video, jobs, config, work, workers, "unpack RLDS episodes")
