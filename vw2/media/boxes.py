"""The boxes of an MP4 or MOV file (ISO/IEC 14496-12), as far as FFmpeg does not tell what is in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

MOST = 100_000  # boxes in one box or entries of a list that are looked at: hours of fragments of a second

Place = tuple[int, int]  # begin and end of a box's content in the file


def _boxes(file: BinaryIO, at: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin of its content, end) of each box between two places of a file; an end may lie beyond `stop`."""
    while at + 8 <= stop:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        begin = at + 8
        if size == 1:  # it is told in 64 bits
            size, begin = int.from_bytes(file.read(8), "big"), at + 16
        end = at + size if size else stop  # 0: up to the end
        if end < begin:
            return
        yield kind, begin, end
        at = end


def lost_bytes(path: Path) -> int:
    """By how many bytes a file of fragments ends too early; others state their number of frames."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        found = list(islice(_boxes(file, 0, size), MOST))
    fragments = any(kind == b"moof" for kind, *_ in found)
    return max(0, found[-1][2] - size) if fragments else 0


def edits(path: Path, track: int) -> list[tuple[int, float]]:
    """The edit list of a track: (first time that is shown, in the track's ticks, or -1 for nothing; rate) each."""
    with path.open("rb") as file:
        found = _inside(file, _track(file, track), b"edts", b"elst")
        return [edit for place in found for edit in _entries(file, *place)]


def largest_sample(path: Path, track: int) -> int:
    """Bytes of the largest sample (an encoded picture) that the index of a track tells of; 0 if it tells of none."""
    with path.open("rb") as file:
        found = _inside(file, _track(file, track), b"mdia", b"minf", b"stbl", b"stsz")
        return max((_largest(file, *place) for place in found), default=0)


def _inside(file: BinaryIO, place: Place, *kinds: bytes) -> Iterator[Place]:
    """Begin and end of the boxes that lie along a path of kinds; they end with the file, whatever they declare."""
    size = file.seek(0, 2)
    for kind, begin, end in islice(_boxes(file, place[0], min(place[1], size)), MOST):
        if kind == kinds[0]:
            yield from _inside(file, (begin, end), *kinds[1:]) if kinds[1:] else [(begin, min(end, size))]


def _track(file: BinaryIO, track: int) -> Place:
    """Where a track is described; an empty place if it is not."""
    for place in _inside(file, (0, file.seek(0, 2)), b"moov", b"trak"):
        if track in (_number(file, begin) for begin, _ in _inside(file, place, b"tkhd")):
            return place
    return 0, 0


def _number(file: BinaryIO, begin: int) -> int:
    """The number of a track, of its header that begins there."""
    file.seek(begin)
    data = file.read(24)
    at = 20 if data[:1] == b"\1" else 12
    return int.from_bytes(data[at : at + 4], "big")


def _entries(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, float]]:
    """(first time, rate) of each entry of an edit list."""
    file.seek(begin)
    head = file.read(8)
    entry = struct.Struct(">Qqi" if head[:1] == b"\1" else ">Iii")
    count = max(0, min(int.from_bytes(head[4:], "big"), (end - begin - 8) // entry.size, MOST))
    data = file.read(count * entry.size)
    for _, first, rate in entry.iter_unpack(data[: len(data) // entry.size * entry.size]):
        yield first, rate / 2**16


def _largest(file: BinaryIO, begin: int, end: int) -> int:
    """The largest size in a list of sizes; one that all samples share is told once, in its head."""
    file.seek(begin)
    head = file.read(12)
    count = max(0, min(int.from_bytes(head[8:], "big"), (end - begin - 12) // 4))
    shared = int.from_bytes(head[4:8], "big")
    sizes = np.frombuffer(file.read(0 if shared else 4 * count), ">u4")
    return max(shared, int(sizes.max(initial=0)))
