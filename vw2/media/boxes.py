"""The boxes of an MP4 or MOV file (ISO/IEC 14496-12), as far as FFmpeg does not tell what is in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

MOST = 100_000  # boxes in one box or entries of a list that are looked at: hours of fragments of a second


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
        size = file.seek(0, 2)

        def inside(place: tuple[int, int], *kinds: bytes) -> Iterator[tuple[int, int]]:
            """Begin and end of the boxes that lie along a path of kinds."""
            for kind, begin, end in islice(_boxes(file, *place), MOST):
                if kind == kinds[0]:
                    yield from inside((begin, end), *kinds[1:]) if kinds[1:] else [(begin, end)]

        for place in inside((0, size), b"moov", b"trak"):
            if track in (_number(file, begin) for begin, _ in inside(place, b"tkhd")):
                return [edit for found in inside(place, b"edts", b"elst") for edit in _entries(file, *found)]
    return []


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
    count = min(int.from_bytes(head[4:], "big"), (end - begin - 8) // entry.size, MOST)
    data = file.read(count * entry.size)
    for _, first, rate in entry.iter_unpack(data[: len(data) // entry.size * entry.size]):
        yield first, rate / 2**16
