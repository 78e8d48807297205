"""NumPy files of strangers (npy, npz, pickled object arrays), read so that nothing in them is ever run.

Plain arrays are taken from their bytes: their size must agree with what the header declares, so a header that lies
allocates nothing. Object arrays are pickles. `read_objects` walks those with an unpickler that knows a handful of
numpy's own names and gives, for each, not numpy's function but a stand-in of ours that checks what it is told: no
foreign state reaches numpy's C code. Any other name ends the reading with one sentence.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MAX_PICKLE = 2**30  # bytes; the annotations of all of CALVIN with their embeddings are 35 MB
KINDS = re.compile(r"[<>|=]?([biufcSU]\d{1,9}|\?)")  # dtypes without objects, fields or code
MAX_SCALAR = 4096  # bytes; for a sentence of 1,000 letters


class DataError(ValueError):
    """A file that cannot be used; the message completes "the file ..."."""


# ---------------------------------------------------------------- plain arrays


def _check_file(path: Path) -> None:
    """Raise DataError unless this is a file (a pipe would hang); OSError."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise DataError("is a folder, pipe or device, not a file")


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order?, dtype) of an npy file; the stream stands behind its header then.

    Raises: DataError if it is no npy file.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)
    except Exception as error:  # the header is an expression that can be wrong in any way
        raise DataError(f"is not a NumPy file ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _build(data: bytes | memoryview, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> np.ndarray:
    """The array (its own memory) that data holds; DataError if data is not as large as shape and dtype ask."""
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise DataError(f"declares an array of the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        raise DataError(f"declares an array of {size} bytes ({shape} {dtype}), but holds {len(data)}")
    try:
        flat = np.frombuffer(data, dtype) if size else np.zeros(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C").copy()
    except ValueError as error:  # numpy has its own limits to shapes
        raise DataError(f"declares an array that cannot be ({_first_line(error)[:80]})") from error


def parse_array(data: bytes) -> np.ndarray:
    """The array in the bytes of an npy file.

    Raises: DataError if they are none, hold objects, or hold less or more than their header declares.
    """
    stream = io.BytesIO(data)
    shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise DataError("holds pickled Python objects where an array of numbers is expected; they are not loaded")
    return _build(memoryview(data)[stream.tell() :], shape, fortran, dtype)


def read_array(path: Path) -> np.ndarray:
    """The array in an npy file. Raises: DataError as `parse_array`; OSError."""
    _check_file(path)
    return parse_array(Path(path).read_bytes())


def read_npz(path: Path, names: tuple[str, ...], limit: int) -> dict[str, np.ndarray]:
    """Those of the named arrays of an npz file that it holds.

    Args:    limit: bytes an array may have when unpacked, so that a small file cannot fill the memory.
    Raises:  DataError with the reason; OSError.
    """
    _check_file(path)
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            for name in names:
                if f"{name}.npy" in there:
                    size = archive.getinfo(f"{name}.npy").file_size
                    if size > limit:
                        raise DataError(f"declares {size} bytes for {name}, more than {limit}")
                    with archive.open(f"{name}.npy") as stream:
                        found[name] = parse_array(stream.read(size + 1))  # a bare read() may unpack 2 GiB at once
    except (DataError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a broken zip file can fail in any way
        raise DataError(f"is damaged or not an npz file ({_first_line(error)})") from error
    return found


# ---------------------------------------------------------------- pickled object arrays


class _Dtype:
    """Stands in for numpy.dtype(kind, ...): remembers the kind, takes the byte order from the state."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if kind not in ("O", "O8", "|O") and not (isinstance(kind, str) and KINDS.fullmatch(kind)):
            raise DataError(f"holds an array of an unusual type ({str(kind)[:40]!r})")
        self.kind, self.order = kind.lstrip("<>|="), "=" if kind[0] not in "<>" else kind[0]

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order if order in ("<", ">") else "="

    @property
    def objects(self) -> bool:
        return self.kind.startswith("O")

    def real(self) -> np.dtype:
        if self.objects:
            raise DataError("holds objects where numbers or words are expected")
        return np.dtype(self.order + self.kind)


class _Array:
    """Stands in for an array under construction; built by `plain`, so that repeating one costs no memory."""

    def __init__(self, *_: Any) -> None:  # numpy gives a first shape and type here that the state replaces
        self.parts: tuple[Any, ...] = ((0,), _Dtype("f4"), False, b"")  # shape, dtype, Fortran order?, data

    def __setstate__(self, state: Any) -> None:
        self.parts = tuple(state)[1:]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stands in for numpy.core.numeric._frombuffer."""
    array = _Array()
    array.parts = (shape, dtype, order == "F", data)
    return array


def _scalar(dtype: Any, data: Any = None) -> Any:
    """Stands in for numpy.core.multiarray.scalar: a plain Python number, truth value or string."""
    if len(data) > MAX_SCALAR:
        raise DataError(f"holds a number or word of {len(data)} bytes")
    return _build(data, (), False, dtype.real()).item()


class _Admitted:
    """A stand-in as the pickle sees it: it can be called and nothing else, least of all changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise DataError("tries to change what reads it")

    def __setstate__(self, state: Any) -> None:
        raise DataError("tries to change what reads it")


ADMITTED = {"numpy.ndarray": _Admitted(_Array), "numpy.dtype": _Admitted(_Dtype)}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ADMITTED[f"{_core}.multiarray._reconstruct"] = _Admitted(_Array)
    ADMITTED[f"{_core}.multiarray.scalar"] = _Admitted(_scalar)
    ADMITTED[f"{_core}.numeric._frombuffer"] = _Admitted(_from_buffer)


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C allocates what a file asks for
    """Admits what `ADMITTED` names."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            asked = repr(f"{module}.{name}"[:80])
            raise DataError(f"asks for {asked}, but only arrays and plain containers are loaded; nothing of it was run")
        return ADMITTED[f"{module}.{name}"]


def read_objects(path: Path) -> Any:
    """What a one-element object array (`np.save` of a dict) holds: plain containers, numbers and strings.

    Arrays inside it are not turned into arrays but left as they are unless asked for with `plain`.
    Raises: DataError with the reason; nothing is run, whatever the file holds. OSError.
    """
    _check_file(path)
    size = Path(path).stat().st_size
    if size > MAX_PICKLE:
        raise DataError(f"has {size} bytes, more than {MAX_PICKLE}")
    stream = io.BytesIO(Path(path).read_bytes())
    _, _, dtype = _header(stream)
    if dtype.kind != "O":
        raise DataError(f"holds numbers ({dtype}) where a dictionary is expected")
    try:
        array = _Unpickler(stream).load()
    except DataError:
        raise
    except Exception as error:  # a broken pickle can fail in any way
        raise DataError(f"is damaged ({type(error).__name__}: {_first_line(error)[:80]})") from error
    value = plain(array)
    if not isinstance(value, list) or len(value) != 1:
        raise DataError("holds no single object")
    return value[0]


def plain(value: Any) -> Any:
    """An array inside what `read_objects` gives, as a list (of objects: flat); anything else as it is.

    Raises: DataError if the array is broken.
    """
    if not isinstance(value, _Array):
        return value
    try:
        shape, dtype, fortran, data = value.parts
        if dtype.objects and isinstance(data, list):
            return data
        return _build(data, shape, bool(fortran), dtype.real()).tolist()
    except (AttributeError, TypeError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError("holds a broken array") from error
