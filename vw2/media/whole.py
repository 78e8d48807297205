"""Is a file all there? What its headers promise against what came out: broken downloads, full cards, dead cameras."""

from __future__ import annotations

from pathlib import Path

import av

from vw2.media.boxes import edits, largest_sample, lost_bytes
from vw2.media.gif import chain_breaks
from vw2.media.picture import MediaError

EXACT_COUNT = "mov"  # containers of this family state their number of frames exactly
SHARED = {"flv", "matroska"}  # containers whose header may state one duration for all streams together
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # File Properties Object (ASF specification, sec. 3.2)
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # Matroska's outermost elements (RFC 8794, RFC 9559)


def declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds the header promises for the video stream, 0.0 if it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    for key in ("DURATION", "DURATION-eng"):  # Matroska states it per track as 00:00:03.633000000
        parts = stream.metadata.get(key, "").split(":")
        if len(parts) == 3:
            try:
                return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
            except ValueError:
                pass
    alone = len(container.streams) == 1  # else the container's duration may be that of the sound
    return container.duration / av.time_base if alone and container.duration else 0.0


def shared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds the header promises for the longest stream, where it says no more of the video stream; else 0.0."""
    kinds = set(container.format.name.split(","))
    if not kinds & SHARED or not container.duration or declared_duration(container, stream):
        return 0.0
    return container.duration / av.time_base


def packet_end(packet: av.Packet) -> float:
    """Seconds at which what is in a packet ends; 0.0 if it does not say."""
    start = packet.pts if packet.pts is not None else packet.dts
    return 0.0 if start is None else float((start + (packet.duration or 0)) * packet.time_base)


def check_whole(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: int,
    count: int,
    ends: list[av.VideoFrame],
    others: float,
) -> None:
    """Raise MediaError if the file declares clearly more than it holds.

    Args:
        packets, count: that came out of the video stream, and frames.
        ends: the first and the last frame.
        others: seconds at which the other streams end, where `shared_duration` is all there is.
    """
    (first, last), declared = ends, stream.frames
    exact = EXACT_COUNT in container.format.name.split(",")
    if exact and declared:  # frames that an edit list leaves out are in no entry of the index; one of size 0 is none
        declared = min(declared, sum(each.size > 0 for each in stream.index_entries) or declared)
    expected, end = declared_duration(container, stream), None
    if last.time is not None and first.time is not None:
        # Times below 0 (a transport stream whose clock wrapped) shift the end.
        end = last.time - min(0.0, first.time) + float((last.duration or 0) * (last.time_base or 0))
    if not expected and end is not None:  # sound may be longer than the picture: it is enough if one stream gets there
        expected, end = shared_duration(container, stream), max(end, others)
    short = bool(expected) and end is not None and end < expected - max(0.5, 0.02 * expected)
    if packets < declared - (0 if exact else 2 + declared // 50):
        text = "is cut short" if exact or short else "lacks frames"  # an AVI may leave out what it shows again
        raise MediaError(f"{text}: {count} frames came out of {declared} declared", count)
    if declared == 0 and short:
        raise MediaError(
            f"is cut short: {count} frames came out, up to {end:.2f} s of {expected:.2f} s declared", count
        )
    lost = _lost_bytes(container)
    if lost:
        raise MediaError(f"is cut short: {count} frames came out, and its last {lost} bytes are missing", count)
    path, kind = Path(container.name), container.format.name
    if exact and largest_sample(path, stream.id) > path.stat().st_size:  # FFmpeg leaves it out, and all behind it
        raise MediaError(f"lacks frames: {count} came out, up to one that would be larger than the file", count)
    if kind == "gif" and chain_breaks(path):
        raise MediaError(f"breaks after {count} frames (damaged data between pictures)", count)


def check_edits(container: av.container.InputContainer, stream: av.VideoStream) -> None:
    """Raise MediaError for an MP4 whose edit list FFmpeg would not follow: a picture that stays, a pause in between."""
    if EXACT_COUNT not in container.format.name.split(","):
        return
    for number, (first, rate) in enumerate(edits(Path(container.name), stream.id)):
        if rate == 0 or (number and first < 0):
            raise MediaError("has an edit list that cannot be played (a picture that stays, or a pause in between)")


def _lost_bytes(container: av.container.InputContainer) -> int:
    """How many bytes a file lacks by its own account; 0 if none, or if it does not say."""
    path, kinds = Path(container.name), set(container.format.name.split(","))
    if "matroska" in kinds:
        return _lost_of_segment(path)
    if "asf" in kinds:
        return _lost_of_asf(path)
    return lost_bytes(path) if EXACT_COUNT in kinds else 0


def _lost_of_asf(path: Path) -> int:
    """By how many bytes an ASF file is shorter than its header says, unless it was written for a broadcast."""
    with path.open("rb") as file:
        head = file.read(2**16)
        size = file.seek(0, 2)
    at = head.find(ASF_FILE)
    if at < 0 or at + 92 > len(head) or head[at + 88] & 1:
        return 0
    return max(0, int.from_bytes(head[at + 40 : at + 48], "little") - size)


def _lost_of_segment(path: Path) -> int:
    """By how many bytes the Segment of a Matroska file reaches beyond its end; 0 if it does not, or says no size."""
    with path.open("rb") as file:
        head = file.read(4096)
        size = file.seek(0, 2)
    if not head.startswith(EBML):
        return 0
    length, start = _number(head, len(EBML))
    if length is None or head[start + length : start + length + 4] != SEGMENT:
        return 0
    content, begin = _number(head, start + length + 4)
    return max(0, begin + content - size) if content is not None else 0


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """The size of an element that is written from `at` on (None: unknown), and where its content begins."""
    width = 9 - data[at].bit_length() if at < len(data) and data[at] else 9
    if width > 8 or at + width > len(data):
        return None, at
    value = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return None if value == (1 << 7 * width) - 1 else value, at + width
