"""Files as torch.save writes them: those of others read without running anything that is in them, and ours for them."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from vw2.console import UserError

# What may stand in a file beside tensors and Python's own types: arrays of numbers (codes, histories of losses) and
# single ones, under the names that NumPy 1 and 2 give them, and buffers of bytes (the _extra_state of Transformer
# Engine).
NUMBERS = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
HARMLESS = [
    np.ndarray,
    np.dtype,
    *sorted({type(np.dtype(code)) for code in NUMBERS}, key=lambda kind: kind.__name__),
    *[(np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
    *[(np.int64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    io.BytesIO,
]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
UNSUPPORTED = re.compile(r"[Uu]nsupported .+?(?= was not | whose |\. |\n|$)")  # the heart of torch's advice


def read_plain(path: Path, kind: str, wanted: str) -> Any:
    """What a .pt or .pth file holds, tensors on the CPU.

    Args:
        kind: of file, such as "weights", for messages.
        wanted: what to have instead, for messages.
    Raises: UserError if the file is missing, broken, or holds anything that only running its code could load.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    try:
        with safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a broken pickle makes its reader fail in any way
        raise UserError(f"{path} is no file of plain {kind} ({reason(error)}); {wanted}") from None


def write_plain(tree: Any, path: Path) -> None:
    """Write a .pt file. Raises: OSError if the disk is full, which torch hides where it opens the file itself."""
    with path.open("wb") as stream:
        torch.save(tree, stream)


def reason(error: Exception) -> str:
    """What an error says first; of torch's long advice on files that it refuses, what it refuses."""
    text = ESCAPES.sub("", str(error)).rpartition("WeightsUnpickler error:")[2]
    found = UNSUPPORTED.search(text)
    return found[0] if found else text.strip().partition("\n")[0] or type(error).__name__


def oddity(tensor: Tensor) -> str | None:
    """What keeps a tensor from being plain values, one after the other, in a word; None if nothing does."""
    for kind in ("meta", "nested", "quantized"):
        if getattr(tensor, f"is_{kind}"):
            return kind
    return None if tensor.layout == torch.strided else str(tensor.layout)[6:]
