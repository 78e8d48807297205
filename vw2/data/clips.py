"""Cut videos into clips: frame rate, size, T = 1 + 4m frames, neighbours sharing one frame.

Legend: F frames of a video at the clip rate, T frames of a clip, H W pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vw2.data.frame_rate import source_index
from vw2.data.stretches import Stretch, StretchConfig, StretchFinder
from vw2.media.decode import MAX_SIDE, read_pictures
from vw2.media.picture import Picture, resize_picture
from vw2.media.resize import Fit
from vw2.media.segments import read_spans

Frame = TypeVar("Frame")

STRIDE = 4  # frames per latent frame (VideoWorld 2, sec. 3: temporal stride of the tokenizer)
DUE = 1e-3  # seconds; Matroska rounds times to a millisecond


@dataclass(frozen=True)
class ClipConfig(StretchConfig):
    """Shape of the clips (VideoWorld 2, sec. 5.1: 93 frames at 16 fps; the miniature is our choice), and cuts."""

    frames: int = 17  # T = 1 + 4m, or 2 (one step without temporal compression)
    fps: float = 16.0  # frames per second
    height: int = 64  # pixels
    width: int = 64
    fit: Fit = "cover"
    min_frames: int = 17  # videos shorter than this at the clip rate are refused

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames != 2 and (self.frames < 1 + STRIDE or self.frames % STRIDE != 1):
            near = max(1, round((self.frames - 1) / STRIDE)) * STRIDE + 1
            raise ValueError(f"clip.frames must be 1 + 4m (or 2), got {self.frames}; the nearest is {near}")
        if not 0 < self.fps <= 240:
            raise ValueError(f"clip.fps must lie above 0 and up to 240, got {self.fps}")
        if min(self.height, self.width) < 1:
            raise ValueError(f"clip.height and clip.width must be positive, got {self.height} and {self.width}")
        if self.min_frames < 2:
            raise ValueError(f"clip.min_frames must be at least 2 (one frame shows no motion), got {self.min_frames}")


@dataclass(frozen=True)
class Written:
    """A video cut into raw frames: how many, and the cuts, still and black stretches among them."""

    frames: int
    found: list[Stretch]


def resample(
    frames: Iterable[tuple[float, Frame]], source_fps: float, fps: float, variable: bool = False
) -> Iterator[Frame]:
    """Frames at another rate, by choice and repetition, never by blending.

    Constant rate: output frame j is source frame `source_index(j)`, whatever its time stamp. Variable rate: output
    frame j is the last source frame due at j / fps seconds (to a millisecond); the final frame lasts 1 / source_fps.

    Args:
        frames: (seconds since the first frame, frame) in display order.
        source_fps: frames per second, the mean for variable rate.
        fps: frames per second wanted.
    Yields: the frames of the output, the same object again where it repeats.
    """
    j = 0
    if not variable:
        for number, (_, frame) in enumerate(frames):
            while source_index(j, source_fps, fps) <= number:
                yield frame
                j += 1
        return
    shown, due = None, 0.0
    for seconds, frame in frames:
        due = due if math.isnan(seconds) else seconds
        while shown is not None and j / fps < due - DUE:
            yield shown
            j += 1
        shown = frame
    while shown is not None and j / fps < due + 1 / source_fps - DUE:
        yield shown
        j += 1


def cut_file(
    path: Path, rows: Sequence[Mapping[str, Any]], config: ClipConfig, folder: Path
) -> Iterator[tuple[str, Written]]:
    """Resample and resize the videos of one file into raw uint8 files of F x H x W x 3 bytes, each whole or not at all.

    The file is decoded once if its videos do not overlap.

    Args:
        path: video file.
        rows: its rows of the manifest; start None for the whole file.
        config: the clips' rate and size.
        folder: takes a raw file <id>.u8 for each row.
    Yields: (id, what was written), the parts of the file in order of time.
    Raises: MediaError if the video breaks.
    """
    whole = [row for row in rows if row["start"] is None]
    parts = [row for row in rows if row["start"] is not None]
    limit = max(MAX_SIDE, rows[0]["width"], rows[0]["height"])  # what ingest.max_side let pass is not refused here
    streams = [(row, read_pictures(path, max_side=limit)) for row in whole]
    spans = [(row["start"], row["stop"]) for row in parts]
    found = ((parts[number], frames) for number, frames in read_spans(path, spans, rows[0]["fps"], max_side=limit))
    for row, frames in chain(streams, found):
        target = folder / f"{row['id']}.u8"
        yield row["id"], _write(frames, config, row["fps"], row["variable"], row["sar"], target)


def _write(
    frames: Iterable[tuple[float, Picture]],
    config: ClipConfig,
    source_fps: float,
    variable: bool,
    sar: float,
    target: Path,
) -> Written:
    """Resample and resize frames into a raw file."""
    temporary = target.with_name(f".{target.name}.partial")
    last, scaled, finder = None, None, StretchFinder(config, config.fps)
    try:
        with temporary.open("wb", buffering=2**20) as stream:
            for frame in resample(frames, source_fps, config.fps, variable):
                if frame is not last:
                    last = frame
                    scaled = resize_picture(frame, config.height, config.width, config.fit, sar)
                    scaled = np.ascontiguousarray(scaled)
                    finder.see(scaled)
                else:
                    finder.repeat()
                stream.write(scaled.data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(finder.frames, finder.finish())
