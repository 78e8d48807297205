"""Frames -> H.264 files: `write_video` for data, `write_preview` for people."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

DATA_CRF = 4  # x264 quality of stored data: 45 dB on the craft world, a ninth of the raw size
PREVIEW_CRF = 18  # visually lossless
# Same bytes on every run: with B-frames and the fastest code for the CPU at hand, x264 was seen to give two to six
# different files for the same frames, even on one thread.
REPRODUCIBLE = "threads=1:cpu-independent=1:bframes=0"


def _rate(fps: float) -> Fraction:
    """Frames per second as the fraction a container stores; 29.97002997 becomes 30000/1001."""
    if not fps > 0:
        raise ValueError(f"expected a positive frame rate, got {fps}")
    return Fraction(fps).limit_denominator(1001)


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, pixels: str, options: dict[str, str]) -> None:
    """Encode (H, W, 3) uint8 frames to an mp4 file with x264, one thread, no date or version stamp."""
    rgb = pixels == "rgb24"
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"expected at least one frame to write to {path}, got none")
    if first.ndim != 3 or first.shape[2] != 3 or first.dtype != np.uint8:
        raise ValueError(f"expected frames (H, W, 3) uint8, got {first.shape} {first.dtype}")
    muxer = {"movflags": "+faststart", "fflags": "+bitexact"}
    # The format is named, so that a temporary file may have any suffix.
    with av.open(os.path.abspath(path), "w", format="mp4", container_options=muxer) as container:
        stream = container.add_stream(
            "libx264rgb" if rgb else "libx264", rate=_rate(fps), options={"x264-params": REPRODUCIBLE, **options}
        )
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
        context = stream.codec_context
        context.thread_count = 1
        context.flags |= av.codec.context.Flags.bitexact
        # Tagged, so that every player uses the matrix we used (untagged video is guessed by its size).
        context.colorspace, context.color_range = (0, 2) if rgb else (1, 1)  # RGB, full range; BT.709, limited range
        context.color_primaries = context.color_trc = 1  # BT.709
        for picture in chain([first], frames):
            if picture.shape != first.shape:
                raise ValueError(f"expected all frames to be {first.shape}, got {picture.shape}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if not rgb:
                frame = frame.reformat(format=pixels, dst_colorspace="ITU709", dst_color_range="MPEG", threads=1)
            frame.pts = None  # the encoder numbers the frames
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(
    path: Path, frames: Iterable[np.ndarray], fps: float, crf: int = DATA_CRF, lossless: bool = False
) -> None:
    """Write data: H.264 at full colour resolution (yuv444p), near lossless, the same bytes for the same frames.

    Args:
        path: mp4 file, overwritten; wrap in `vw2.scratch.atomic_file`.
        frames: (T, H, W, 3) uint8 RGB or any iterable of (H, W, 3); any size from 1x1, odd ones too.
        fps: frames per second.
        crf: x264 quality, 0 (lossless but for the colour conversion) to 51.
        lossless: store RGB without any loss (two to five times the size); crf is not used then.
    Raises: ValueError for no frames, unequal sizes or another dtype.
    """
    # A keyframe at least every 16 frames: seeking stays cheap, at a few per cent of size.
    if lossless:
        _encode(path, frames, fps, "rgb24", {"qp": "0", "preset": "veryfast", "g": "16"})
        return
    _encode(path, frames, fps, "yuv444p", {"crf": str(crf), "preset": "veryfast", "g": "16"})


def write_preview(path: Path, frames: Iterable[np.ndarray], fps: float, scale: int = 1) -> None:
    """Write a video that any browser plays (yuv420p), enlarged `scale` times without smoothing.

    Args:    frames as for `write_video`; an odd side is extended by one repeated line, which yuv420p needs.
    Raises:  as `write_video`; ValueError if scale < 1.
    """
    if scale < 1:
        raise ValueError(f"expected scale >= 1, got {scale}")

    def enlarged() -> Iterable[np.ndarray]:
        for frame in frames:
            big = frame.repeat(scale, 0).repeat(scale, 1)
            yield np.pad(big, ((0, big.shape[0] % 2), (0, big.shape[1] % 2), (0, 0)), mode="edge")

    _encode(path, enlarged(), fps, "yuv420p", {"crf": str(PREVIEW_CRF), "preset": "medium"})
