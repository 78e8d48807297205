"""Pictures that H.264 streams lack (ITU-T H.264, sec. 7.3 and 7.4.3): decoders paint over most without a word.

Every picture carries frame_num, which grows by one, modulo 2^bits, after each picture that others refer to. Where it
leaps, pictures are missing. Where a parameter set is not read in full, or several disagree, nothing is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import av

SLICE, KEY_SLICE, PARAMETERS = 1, 5, 7  # nal_unit_type
RICH = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}  # profiles that tell their chroma format
HEAD = 64  # bytes of a unit that are read: more than what is needed of a slice's header or of a parameter set


class Bits:
    """Bits of a unit, whose emulation prevention bytes are taken out. Raises: IndexError at the end."""

    def __init__(self, unit: bytes) -> None:
        data = unit[:HEAD].replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next `count` bits, u(n)."""
        self._left -= count
        if self._left < 0:
            raise IndexError("a unit ends early")
        return self._value >> self._left & (1 << count) - 1

    def number(self) -> int:
        """The next Exp-Golomb number, ue(v) (sec. 9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


class Watch:
    """Watches one stream, packet after packet in decoding order."""

    def __init__(self, extradata: bytes | None) -> None:
        self._last: int | None = None  # frame_num of the last picture that others refer to
        self._kind, self._key = 0, None  # nal_unit_type of this picture; time of the first one
        self._open: bool | None = None  # may pictures come that lead the first one?
        self._begin(extradata or b"")

    def _begin(self, head: bytes) -> None:
        """Read the header of the stream, or of the one that goes on in it (an encoder that was started anew)."""
        self._length = (head[4] & 3) + 1 if len(head) > 6 and head[0] == 1 else 0  # bytes of a size; 0: start codes
        self._known: dict[int, tuple[int, bool, bool] | None] = {}  # parameter sets that were seen, by their number
        if self._length:
            at = 6
            for _ in range(head[5] & 31):
                size = int.from_bytes(head[at : at + 2], "big")
                self._learn(head[at + 2 : at + 2 + size])
                at += 2 + size
        else:
            self._first_slice(head)

    def leaps(self, packet: av.Packet) -> bool:
        """Are pictures missing before this one? To be asked for every packet."""
        if packet.has_sidedata("new_extradata"):
            self._begin(bytes(packet.get_sidedata("new_extradata")))
        unit, known = self._first_slice(bytes(packet)), set(self._known.values())
        self._kind = unit[0] & 31 if unit else 0
        if not unit or len(known) != 1 or None in known:
            self._last = None
            return False
        bits, gaps, planes = known.pop()
        header = Bits(unit)
        try:
            refers = header.take(8) >> 5 & 3
            for _ in range(3):  # first macroblock, slice type, picture parameter set
                header.number()
            header.take(2 if planes else 0)
            number = header.take(bits)
        except IndexError:
            return False  # the decoder will tell
        anew = packet.is_keyframe or self._kind == KEY_SLICE or self._last is None
        leap = not anew and not gaps and number not in (0, self._last, (self._last + 1) % (1 << bits))
        if refers or anew:
            self._last = number
        return leap

    def leads(self, packet: av.Packet) -> bool:
        """Is this one of the pictures that a recording, cut open at a key picture, shows before that?

        They come right behind the key picture, and what they refer to is not there. To be asked after `leaps`.
        """
        if self._open is None:  # the first packet
            self._open = packet.is_keyframe and self._kind == SLICE and packet.pts is not None
            self._key = packet.pts
            return False
        early = packet.pts is not None and self._key is not None and packet.pts < self._key
        self._open = self._open and early and not packet.is_keyframe
        return self._open

    def _first_slice(self, packet: bytes) -> bytes:
        """The first slice of a picture, empty if there is none; parameter sets before it are kept."""
        for unit in self._units(packet):
            kind = unit[0] & 31
            if kind in (SLICE, KEY_SLICE):
                return unit
            if kind == PARAMETERS:
                self._learn(unit)
        return b""

    def _units(self, packet: bytes) -> Iterator[bytes]:
        """The heads of the NAL units of a packet: behind their sizes, or behind start codes (annex B)."""
        at = 0
        while self._length and at + self._length < len(packet):
            begin = at + self._length
            at = begin + int.from_bytes(packet[at:begin], "big")
            yield packet[begin : min(at, begin + HEAD)] or b"\0"
        while not self._length and (at := packet.find(b"\0\0\1", at) + 3) > 2 and at < len(packet):
            yield packet[at : at + HEAD]

    def _learn(self, unit: bytes) -> None:
        """Keep (bits of frame_num, gaps allowed?, separate colour planes?) of a sequence parameter set."""
        bits = Bits(unit)
        try:
            bits.take(8)
            profile, _, name = bits.take(8), bits.take(16), bits.number()
            self._known[name] = None
            planes = False
            if profile in RICH:
                planes = bits.number() == 3 and bool(bits.take(1))
                bits.number(), bits.number()  # bit depths
                bits.take(1)
                if bits.take(1):  # scaling matrices
                    return
            width, order = bits.number() + 4, bits.number()
            if order == 1:
                return
            if order == 0:
                bits.number()
            bits.number()  # reference frames
            self._known[name] = width, bool(bits.take(1)), planes
        except IndexError:
            return
