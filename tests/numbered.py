"""Videos whose frames carry their own number in the picture, for tests of frame-exactness."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
BLOCK = 8  # pixels a bit is wide and high: survives lossy coding and chroma subsampling


def numbered_frame(number: int, height: int = 48, width: int = 96) -> np.ndarray:
    """A grey picture with `number` as ten black or white blocks in its top rows and a bright corner below."""
    frame = np.full((height, width, 3), 90, np.uint8)
    for bit in range(BITS):
        frame[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    frame[-8:, -8:] = (200, 40, 40)
    return frame


def noisy_frame(number: int) -> np.ndarray:
    """As `numbered_frame`, with noise below the number: such a file consists of pictures, not of headers."""
    frame = numbered_frame(number)
    frame[16:40] = np.random.default_rng(number).integers(0, 256, (24, 96, 3), dtype=np.uint8)
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number in a picture made by `numbered_frame`."""
    middle = BLOCK // 2
    return sum(1 << bit for bit in range(BITS) if frame[middle, bit * BLOCK + middle].mean() > 127)


def write_raw(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction | int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[float] | None = None,
    rotation: int = 0,
    sar: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode with full control of what tests vary; `times` in seconds makes the frame rate variable."""
    frames = list(frames)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.time_base, picture.pts = Fraction(1, 1000), round(times[number] * 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
