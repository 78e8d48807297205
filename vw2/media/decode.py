"""Video files -> frames. With encode and resize, the only place where files meet uint8 THWC arrays.

Strict: damage that the decoder reports, a broken stream or a file that ends early raises MediaError; nothing is
repeated or blackened in silence. Not all damage can be seen: most videos (H.264, MPEG-4, plain HEVC, VP9, MJPEG) carry
no checksums, and flipped bits that still decode, or that the decoder paints over without a word, are shown; HEVC with
checksums, PNG, FFV1, GIF, Cinepak and Flash Screen Video are checked, and pictures missing from H.264 are told by their
numbers. Only known containers are opened and only local files are read (FFmpeg would follow a playlist named .mp4 to
other files and hosts).
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from vw2.media.h264 import Watch
from vw2.media.picture import MediaError, Picture, mirrored, quarter_turns
from vw2.media.streams import decoder_of, pick_stream
from vw2.media.timing import MAX_GAP, frame_rate, judged, longest_gap
from vw2.media.whole import check_edits, check_whole, declared_duration, packet_end, shared_duration

MAX_SIDE = 8192  # pixels; what the largest cameras record. Beyond it lie decompression bombs
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf,m4v,h264,hevc,ivf"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
MAX_SAR = 16.0  # a pixel more than 16 times as wide as high is a broken header, not an anamorphic lens

BARE = {"h264", "hevc", "m4v"}  # containers that are no more than the stream, for which FFmpeg says 25 frames/s
TELLTALES = ("ffv1", "gif", "cinepak", "flashsv")  # decoders that tell the log only of damage, and show something
# Codecs whose decoders paint on grey where the first key picture is missing (the beginnings of their names).
GREY = ("mpeg4", "msmpeg4", "h263", "flv1", "wmv1", "wmv2")

av.logging.set_level(av.logging.PANIC)  # what goes wrong is raised, FFmpeg need not print it too; errors are counted


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video. Sizes are those of the frames `read_frames` yields: rotated, pixels not yet squared."""

    fps: float  # frames per second; 0.0 if not declared
    frames: int  # declared number (0 if unknown) from `probe`, counted number from `scan`
    width: int  # pixels
    height: int  # pixels
    codec: str
    rotation: int  # degrees counter-clockwise that the metadata asks for: 0, 90, 180, 270
    sar: float  # pixel aspect ratio, width / height of one pixel
    duration: float  # seconds; 0.0 if unknown
    variable: bool = False  # True if frames do not come at a constant rate (known after `scan`)


@contextmanager
def _open(path: Path, max_side: int, threads: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and make its video stream ready to decode; every FFmpeg error becomes a MediaError."""
    _check_file(Path(path))
    try:
        # An absolute path, since FFmpeg would read "a:b.mp4" as a protocol named a.
        container = av.open(os.path.abspath(path), container_options=OPTIONS, metadata_errors="replace")
    except MemoryError as error:
        raise MediaError("asks for more memory than it may have (broken headers?)") from error
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(f"is not a video in a known container ({_words(error)})") from error
    with container:
        stream = pick_stream(container)
        if stream.codec_context is None:
            raise MediaError("uses a codec this build of FFmpeg does not know")
        if max(stream.width, stream.height) > max_side:
            raise MediaError(f"declares {stream.width}x{stream.height} pixels, more than {max_side} on a side")
        stream.thread_count = threads
        stream.thread_type = "AUTO" if threads != 1 else "NONE"
        # Report damage instead of painting over it, checksums included; the stream may lie about its size as well.
        stream.codec_context.options = {"err_detect": "explode+crccheck", "max_pixels": str(max_side**2)}
        check_edits(container, stream)
        yield container, stream


def _check_file(path: Path) -> None:
    """Raise MediaError or OSError unless this is a file with something in it that may be read. A pipe would hang."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"is a {'folder' if stat.S_ISDIR(found.st_mode) else 'pipe or device'}, not a file")
    if found.st_size == 0:
        raise MediaError("is empty (0 bytes)")
    with path.open("rb"):  # FFmpeg would not tell a lack of permission from a lack of sense
        pass


def _words(error: BaseException) -> str:
    """An FFmpeg error without errno and file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, max_side: int, max_seconds: float | None
) -> Iterator[av.VideoFrame]:
    """All pictures of a stream in display order; MediaError on damage, at the time limit or if the file ends early."""
    start = time.process_time()
    packets = count = 0
    first = last = None
    others = 0.0  # seconds; watched only where nothing else tells a file that was cut
    watched = list(container.streams) if shared_duration(container, stream) else [stream]
    codec, decoder = stream.codec_context.codec.canonical_name, decoder_of(stream)
    telltale = decoder.name in TELLTALES
    watch = Watch(decoder.extradata) if codec == "h264" else None
    try:
        for packet in container.demux(watched):
            if packet.stream.index != stream.index:  # (stream_index is 0 in the packets that empty the decoders)
                others = max(others, packet_end(packet))
                continue
            packets += packet.size > 0
            if not packet.size and packet.dts is not None:
                continue  # a frame that was left out; the packet that empties the decoder has no time
            if packet.is_corrupt:
                raise MediaError(f"breaks after {count} frames (damaged or cut data)", count)
            if watch and packet.size:
                if watch.leaps(packet):
                    raise MediaError(f"breaks after {count} frames (frames before the next are missing)", count)
                if watch.leads(packet):
                    continue
            errors, _ = av.logging.get_last_error() if telltale else (0, None)
            frames = decoder.decode(packet)
            if telltale and _complained(decoder.name, errors):
                raise MediaError(f"breaks after {count} frames (damaged picture)", count)
            for frame in frames:
                if max(frame.width, frame.height) > max_side:
                    raise MediaError(f"turns to {frame.width}x{frame.height} pixels after {count} frames", count)
                if frame.is_corrupt:
                    raise MediaError(f"breaks after {count} frames (damaged picture)", count)
                if first is None and codec.startswith(GREY) and not frame.key_frame:
                    raise MediaError("begins in the middle: its first picture is no key picture")
                first = first or frame
                if (frame.width, frame.height) != (first.width, first.height):
                    sizes = [f"{each.width}x{each.height}" for each in (first, frame)]
                    raise MediaError(f"changes its size after {count} frames from {sizes[0]} to {sizes[1]}", count)
                yield frame
                count += 1
                last = frame
            if max_seconds is not None and time.process_time() - start > max_seconds:
                raise MediaError(f"takes longer than {max_seconds:g} s to decode ({count} frames came out)", count)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(f"breaks after {count} frames ({_words(error)})", count) from error
    if last is None:
        promise = f" ({stream.frames} declared)" if stream.frames else ""
        raise MediaError(f"holds no frame that can be decoded{promise}")
    check_whole(container, stream, packets, count, [first, last], others)


def _complained(codec: str, errors: int) -> bool:
    """Did a decoder log an error after the first `errors` of this process? Another thread's would count as well."""
    now, last = av.logging.get_last_error()
    return now > errors and last is not None and last[1] == codec


def _info(container: av.container.InputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> VideoInfo:
    """Facts from the headers and the first picture."""
    turns = quarter_turns(frame)
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    sar = float(stream.sample_aspect_ratio or 1)
    sar = sar if 1 / MAX_SAR <= sar <= MAX_SAR else 1.0
    return VideoInfo(
        fps=next(iter(_rates(container, stream)), float(stream.guessed_rate or 0)),
        frames=stream.frames,
        width=width,
        height=height,
        codec=stream.codec_context.codec.canonical_name,
        rotation=90 * turns,
        sar=1 / sar if turns % 2 else sar,
        duration=declared_duration(container, stream),
    )


def _rates(container: av.container.InputContainer, stream: av.VideoStream) -> list[float]:
    """The frame rates that a file declares, the most trusted first."""
    own = stream.codec_context.framerate if container.format.name in BARE else None
    return [float(rate) for rate in ((own,) if own else (stream.average_rate, stream.base_rate)) if rate]


def probe(path: Path, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """Read headers and the first picture of a video; the declared numbers may be wrong, `scan` counts.

    Raises: MediaError with the reason if no picture can be decoded; FileNotFoundError.
    """
    with _open(path, max_side, 1) as (container, stream):
        for frame in _decode(container, stream, max_side, None):
            return _info(container, stream, frame)
    raise MediaError("holds no frame that can be decoded")  # unreachable: _decode yields or raises


def scan(path: Path, *, threads: int = 1, max_side: int = MAX_SIDE, max_seconds: float | None = None) -> VideoInfo:
    """Decode a whole video without keeping it: the counted frames, the true rate, whether it varies.

    Args:    as `read_frames`.
    Raises:  MediaError with the reason if any of it is damaged or missing; FileNotFoundError.
    """
    return timeline(path, threads=threads, max_side=max_side, max_seconds=max_seconds)[0]


def timeline(
    path: Path, *, threads: int = 1, max_side: int = MAX_SIDE, max_seconds: float | None = None
) -> tuple[VideoInfo, list[float | None]]:
    """As `scan`, with the time of every frame (seconds in the file's own clock; None where it says nothing)."""
    info, times = None, []
    with _open(path, max_side, threads) as (container, stream):
        for frame in _decode(container, stream, max_side, max_seconds):
            info = info or _info(container, stream, frame)
            times.append(frame.time)
        declared = _rates(container, stream)
    fps, variable = frame_rate(times, declared)
    if not fps:
        raise MediaError(f"states neither a frame rate nor usable times for its {len(times)} frames", len(times))
    gap, begin = longest_gap(times, fps)
    if gap > MAX_GAP:
        raise MediaError(f"shows one frame for {gap:.0f} s from {begin:.1f} s on (broken times or slides)", len(times))
    return replace(info, fps=fps, variable=variable, frames=len(times), duration=len(times) / fps), times


def read_pictures(
    path: Path, *, threads: int = 1, max_side: int = MAX_SIDE, max_seconds: float | None = None
) -> Iterator[tuple[float, Picture]]:
    """Decode a video in display order, two frames in memory at a time, whose pixels are made when asked for.

    Args:
        path: video file.
        threads: decoder threads; 1 leaves parallelism to the caller.
        max_side: pixels; a larger picture, declared or decoded, is refused before it is allocated.
        max_seconds: limit of this process's computing time for the file (not wall-clock time, so that a busy machine
            refuses no more than an idle one), checked between packets; None for no limit.
    Yields: (seconds since the first frame, picture). A few wrong times are put right (`vw2.media.timing.judged`); where
        the file gives no time it is nan.
    Raises: MediaError with the reason and the number of frames that came out; FileNotFoundError.
    """
    with _open(path, max_side, threads) as (container, stream):
        first, mirror, scaler = math.nan, False, VideoReformatter()
        timed = ((each.time, each) for each in _decode(container, stream, max_side, max_seconds))
        for count, (seconds, _, frame) in enumerate(judged(timed)):
            first = seconds if math.isnan(first) else first
            mirror = mirrored(frame) if count == 0 else mirror
            yield seconds - first, Picture(frame, count, scaler, mirror)


def read_frames(path: Path, **limits: Any) -> Iterator[tuple[float, np.ndarray]]:
    """As `read_pictures`, with pixels: (seconds since the first frame, (H, W, 3) uint8 RGB).

    Rotated as the metadata asks; pixels may be oblong (`VideoInfo.sar`, squared by `vw2.media.resize`).
    """
    for seconds, picture in read_pictures(path, **limits):
        yield seconds, picture.rgb()


def read_video(path: Path) -> np.ndarray:
    """A video whole, all frames (T, H, W, 3) uint8 RGB. Raises: as `read_pictures`."""
    return np.stack([frame for _, frame in read_frames(path)])


def read_image(path: Path, *, max_side: int = MAX_SIDE, formats: Sequence[str] | None = None) -> np.ndarray:
    """A still picture (JPEG, PNG, WebP, ...) as (H, W, 3) uint8 RGB, turned as its EXIF asks, transparency on white.

    Raises: MediaError with the reason; FileNotFoundError.
    """
    _check_file(Path(path))
    try:
        with Image.open(path, formats=formats) as picture:
            if max(picture.size) > max_side:
                raise MediaError(f"is {picture.width}x{picture.height} pixels, more than {max_side} on a side")
            count = getattr(picture, "n_frames", 1)
            if count > 1 and picture.format != "MPO":  # a phone's JPEG with previews behind it
                raise MediaError(f"is animated: it holds {count} pictures, expected one")
            if picture.mode[:1] in "IF":
                raise MediaError("has pixels of more than 8 bits in one channel (a depth map?)")
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except (MediaError, MemoryError):
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise MediaError(f"is not a picture in a known format ({error})") from error
    except Exception as error:  # what reads a format, if the file is damaged, can fail in any way
        raise MediaError(f"is damaged ({error})") from error
    canvas = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    canvas.alpha_composite(picture)
    return np.array(canvas.convert("RGB"))
