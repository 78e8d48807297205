"""Broken and strange videos, made on the spot: `make(folder)` writes them all, a few kilobytes each.

What a muxer would refuse to write is made by patching bytes of a good file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numbered import numbered_frame, write_raw
from PIL import Image

FRAMES = 40


def lock(monkeypatch, name: str) -> None:
    """Let folders of this name be closed to everybody; tests may run as root, whom permissions do not stop."""
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


MAKERS: dict[str, Callable[[Path], object]] = {}
PIXELS = {  # file -> codec, pixel format
    "grey.mkv": ("ffv1", "gray"),
    "grey16.mkv": ("ffv1", "gray16le"),
    "rgb48.mkv": ("ffv1", "rgb48le"),
    "yuv444.mp4": ("libx264", "yuv444p"),
    "yuv422_10.mp4": ("libx264", "yuv422p10le"),
    "yuv410.avi": ("ffv1", "yuv410p"),
    "full_range.mp4": ("libx264", "yuvj420p"),
    "alpha.mov": ("png", "rgba"),
    "alpha16.mov": ("png", "rgba64be"),
    "raw_bgr.avi": ("rawvideo", "bgr24"),
    "mjpeg.avi": ("mjpeg", "yuvj422p"),
}


def maker(name: str) -> Callable:
    """Register the function that writes the file `name`."""

    def register(function: Callable[[Path], object]) -> Callable[[Path], object]:
        MAKERS[name] = function
        return function

    return register


def make(folder: Path) -> None:
    """Write every file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, function in MAKERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        function(folder / name)


def good(path: Path, frames: int = FRAMES, **options) -> bytes:
    """A good file; its bytes."""
    write_raw(path, map(numbered_frame, range(frames)), **options)
    return path.read_bytes()


def poke(path: Path, box: bytes, offset: int, value: bytes) -> None:
    """Overwrite bytes of a file, `offset` after the end of a box's four letters."""
    data = bytearray(path.read_bytes())
    place = data.index(box) + 4 + offset
    data[place : place + len(value)] = value
    path.write_bytes(data)


def remux(path: Path, source: Path, change: Callable[[int, av.Packet], None], container: str | None = None) -> None:
    """Copy packets into another file; `change` may set the times of packet number i (in decoding order)."""
    with av.open(str(source)) as given, av.open(str(path), "w", format=container) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(each for each in given.demux(video=0) if each.size):
            packet.stream = stream
            change(number, packet)
            out.mux(packet)


def aside(path: Path, suffix: str = ".mkv", **options) -> Path:
    """A good file with that suffix beside the videos, hidden."""
    hidden = path.with_name(f".{path.stem}{suffix}")
    good(hidden, **options)
    return hidden


# ---------------------------------------------------------------- sizes


@maker("size_0x0.mp4")
def _(path):
    good(path)
    poke(path, b"stsd", 40, struct.pack(">HH", 0, 0))  # the stream itself says better


@maker("size_65535.mp4")
def _(path):
    good(path)
    poke(path, b"stsd", 40, struct.pack(">HH", 65535, 65535))


@maker("size_0x0.avi")
def _(path):
    good(path, codec="rawvideo", pixels="bgr24")
    poke(path, b"strf", 8, struct.pack("<ii", 0, 0))


@maker("size_giant.avi")
def _(path):
    good(path, codec="rawvideo", pixels="bgr24")
    poke(path, b"strf", 8, struct.pack("<ii", 2**30, 2**30))


@maker("size_8000_lie.avi")
def _(path):
    good(path, codec="rawvideo", pixels="bgr24")
    poke(path, b"strf", 8, struct.pack("<ii", 8000, 8000))


@maker("size_65535.gif")
def _(path):
    Image.new("P", (4, 4)).save(path, save_all=True, append_images=[Image.new("P", (4, 4), 1)] * 3, duration=100)
    data = bytearray(path.read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


@maker("size_changes.h264")
def _(path):
    parts = []
    for height, width in ((48, 96), (96, 192)):
        part = path.with_name(f".part{height}.h264")
        write_raw(part, (numbered_frame(i, height, width) for i in range(20)))
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))


# ---------------------------------------------------------------- counts and boxes


@maker("count_more.avi")
def _(path):
    good(path, codec="mpeg4")
    poke(path, b"strh", 4 + 32, struct.pack("<I", 400))
    poke(path, b"avih", 4 + 16, struct.pack("<I", 400))


@maker("count_less.avi")
def _(path):
    good(path, codec="mpeg4")
    poke(path, b"strh", 4 + 32, struct.pack("<I", 5))
    poke(path, b"avih", 4 + 16, struct.pack("<I", 5))


@maker("count_giant.mp4")
def _(path):
    good(path)
    poke(path, b"stsz", 8, struct.pack(">I", 2**31 - 1))


@maker("times_giant.mp4")
def _(path):
    good(path)
    poke(path, b"stts", 4, struct.pack(">I", 2**30))


@maker("box_4gb.mp4")
def _(path):
    data = good(path)
    at = data.index(b"avcC") - 4
    path.write_bytes(data[:at] + struct.pack(">I", 0xFFFFFFF0) + data[at + 4 :])


@maker("codec_unknown.mp4")
def _(path):
    good(path)
    poke(path, b"stsd", 12, b"zzzz")


@maker("samples_outside.mp4")
def _(path):
    good(path)
    poke(path, b"stco", 8, struct.pack(">I", 2**32 - 16))


@maker("no_duration.mkv")
def _(path):
    good(path, container_options={"live": "1"})


@maker("fragments.mp4")
def _(path):
    good(path, options={"g": "10"}, container_options={"movflags": "frag_keyframe+empty_moov"})


@maker("tail_of_zeros.mp4")
def _(path):
    path.write_bytes(good(path) + bytes(5000))


@maker("empty_chunks.avi")
def _(path):
    """An AVI says "show the last picture again" by an empty chunk."""
    data = good(path, codec="mpeg4", options={"g": "1"})
    start = data.index(b"movi") - 8
    size = struct.unpack("<I", data[start + 4 : start + 8])[0]
    at, parts, number = start + 12, [], 0
    while at < start + 8 + size:
        length = struct.unpack("<I", data[at + 4 : at + 8])[0]
        parts.append(data[at : at + 8 + length + length % 2])
        number += 1
        if number % 4 == 0:
            parts.append(b"00dc" + bytes(4))
        at += 8 + length + length % 2
    body = b"".join(parts)
    head = bytearray(data[:start])
    place = head.index(b"strh") + 8 + 32
    head[place : place + 4] = struct.pack("<I", FRAMES * 5 // 4)
    new = bytes(head) + b"LIST" + struct.pack("<I", len(body) + 4) + b"movi" + body
    path.write_bytes(new[:4] + struct.pack("<I", len(new) - 8) + new[8:])


# ---------------------------------------------------------------- times


@maker("times_double.mkv")
def _(path):
    def change(number, packet):
        packet.pts = packet.dts = packet.pts - packet.pts % 100  # several frames at one time

    remux(path, aside(path, options={"bf": "0"}), change)


@maker("times_negative.mkv")
def _(path):
    def change(number, packet):
        packet.pts -= 500
        packet.dts = packet.pts

    remux(path, aside(path, options={"bf": "0"}), change)


@maker("times_wrap.ts")
def _(path):
    data = bytearray(aside(path, ".ts", options={"bf": "0"}).read_bytes())
    path.write_bytes(shift_ts(data, 2**33 - 60_000 - 126_000))  # the muxer begins at 1.4 s


def shift_ts(data: bytearray, by: int) -> bytes:
    """Add to every PTS, DTS and PCR of a transport stream, modulo 2^33."""
    for at in range(0, len(data), 188):
        flags, payload = data[at + 3], at + 4
        if flags & 0x20:  # adaptation field
            length = data[payload]
            if length and data[payload + 1] & 0x10:
                field = int.from_bytes(data[payload + 2 : payload + 8], "big")
                pcr = ((field >> 15) + by) % 2**33
                data[payload + 2 : payload + 8] = (pcr << 15 | field & 0x7FFF).to_bytes(6, "big")
            payload += 1 + length
        if data[at + 1] & 0x40 and flags & 0x10 and data[payload : payload + 3] == b"\0\0\1":
            if data[payload + 3] & 0xF0 == 0xE0:
                stamps = data[payload + 7] >> 6
                for number in range({2: 1, 3: 2}.get(stamps, 0)):
                    place = payload + 9 + 5 * number
                    b = data[place : place + 5]
                    value = (b[0] >> 1 & 7) << 30 | b[1] << 22 | b[2] >> 1 << 15 | b[3] << 7 | b[4] >> 1
                    value = (value + by) % 2**33
                    data[place] = b[0] & 0xF0 | value >> 30 << 1 | 1
                    data[place + 1] = value >> 22 & 255
                    data[place + 2] = (value >> 15 & 127) << 1 | 1
                    data[place + 3] = value >> 7 & 255
                    data[place + 4] = (value & 127) << 1 | 1
    return bytes(data)


@maker("times_gap.mkv")
def _(path):
    good(path, times=[i / 30 + (3600 if i >= 20 else 0) for i in range(FRAMES)])


@maker("times_jump.mkv")
def _(path):
    good(path, times=[i / 30 + (4 if i >= 20 else 0) for i in range(FRAMES)])


@maker("slideshow.mkv")
def _(path):
    good(path, 5, times=[60.0 * i for i in range(5)])


@maker("edit_later.mp4")
def _(path):
    """An edit list that begins with the 11th frame."""
    good(path, options={"bf": "0", "g": "5"})
    data = path.read_bytes()
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    poke(path, b"elst", 12, struct.pack(">i", 10 * scale // 30))


@maker("edit_empty.mp4")
def _(path):
    """Sound begins first: an edit list with two seconds of nothing before the picture."""
    frames = list(map(numbered_frame, range(FRAMES)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.time_base, picture.pts = Fraction(1, 30), 60 + number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


# ---------------------------------------------------------------- streams and pictures


def _streams(path: Path, which: list[tuple[str, str, int, int, int]]) -> None:
    """Several video streams: (codec, pixel format, first number, frames, disposition) each."""
    with av.open(str(path), "w") as container:
        streams = []
        for codec, pixels, _, _, disposition in which:
            stream = container.add_stream(codec, rate=30)
            stream.height, stream.width, stream.pix_fmt = 48, 96, pixels
            stream.disposition = disposition
            streams.append(stream)
        for stream, (_, _, first, frames, _) in zip(streams, which, strict=True):
            for number in range(first, first + frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
            container.mux(stream.encode(None))


@maker("cover_first.mp4")
def _(path):
    cover = ("mjpeg", "yuvj420p", 500, 1, Disposition.attached_pic)
    _streams(path, [cover, ("libx264", "yuv420p", 0, FRAMES, Disposition.default)])


@maker("cover_only.mp4")
def _(path):
    _streams(path, [("mjpeg", "yuvj420p", 500, 1, Disposition.attached_pic)])


@maker("two_streams.mkv")
def _(path):
    other = ("libx264", "yuv420p", 500, FRAMES, Disposition(0))
    _streams(path, [other, ("libx264", "yuv420p", 0, FRAMES, Disposition.default)])


@maker("interlaced.mpg")
def _(path):
    good(path, codec="mpeg2video", rate=25, options={"flags": "+ilme+ildct", "top": "1"})


@maker("long_gop.mp4")
def _(path):
    good(path, 300, options={"g": "100000", "keyint_min": "100000", "sc_threshold": "0"})


@maker("apng.mp4")
def _(path):
    images = [Image.fromarray(numbered_frame(i)) for i in range(5)]
    images[0].save(path, format="PNG", save_all=True, append_images=images[1:])


@maker("webp.mp4")
def _(path):
    images = [Image.fromarray(numbered_frame(i)) for i in range(5)]
    images[0].save(path, format="WEBP", save_all=True, append_images=images[1:], lossless=True)


@maker("animated.gif")
def _(path):
    images = [Image.fromarray(numbered_frame(i)) for i in range(FRAMES)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, loop=0)


@maker("black.mp4")
def _(path):
    write_raw(path, [np.zeros((48, 96, 3), np.uint8)] * FRAMES)


@maker("frozen.mp4")
def _(path):
    write_raw(path, [numbered_frame(7)] * FRAMES)


def _pixels(codec: str, pixels: str) -> Callable[[Path], object]:
    return lambda path: good(path, codec=codec, pixels=pixels)


MAKERS |= {name: _pixels(*kind) for name, kind in PIXELS.items()}

# ---------------------------------------------------------------- names


@maker("-dash.mp4")
def _(path):
    good(path)


@maker("a b\tc.mp4")
def _(path):
    good(path)


@maker("line\nbreak.mp4")
def _(path):
    good(path)


@maker("ünï ☃ 紙.mp4")
def _(path):
    good(path)


@maker("100%d.mp4")
def _(path):
    good(path)


@maker("http:x.mp4")
def _(path):
    good(path)


@maker("folder.mp4/inside.mp4")
def _(path):
    good(path)


@maker("pipe.mp4")
def _(path):
    os.mkfifo(path)


@maker("self.mp4")
def _(path):
    path.symlink_to(path.name)


@maker("dangling.mp4")
def _(path):
    path.symlink_to("nowhere.mp4")


@maker("loop")
def _(path):
    path.symlink_to(".", target_is_directory=True)


@maker(os.fsdecode(b"latin\xe9.mp4"))
def _(path):
    good(path)
