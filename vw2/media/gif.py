"""The blocks of a GIF file (GIF89a, appendix B): FFmpeg takes one that breaks the chain for the end of the film."""

from __future__ import annotations

from pathlib import Path

IMAGE, EXTENSION, TRAILER = b"\x2c", b"\x21", b"\x3b"  # first bytes of blocks


def _table(flags: int) -> int:
    """Bytes of the colour table that the flags of a screen or an image announce."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def chain_breaks(path: Path) -> bool:
    """Does something other than a block begin where one should, or does a block reach beyond the end of the file?

    Some programs leave the trailer out, or zeros behind the last block: both pass.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(10)
        at = 13 + _table(file.read(1)[0])
        while at < size:
            file.seek(at)
            block = file.read(10)
            if not block.startswith((EXTENSION, IMAGE)):
                file.seek(at)
                rest = file.read().lstrip(b"\0")
                return bool(rest) and not rest.startswith(TRAILER)
            at += 2 if block.startswith(EXTENSION) else 11 + _table(block[-1])
            length = 1
            while length and at < size:  # pieces of data, each behind its length; one of length 0 ends the block
                file.seek(at)
                length = file.read(1)[0]
                at += 1 + length
            if length:
                return True
        return at > size
