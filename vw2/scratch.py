"""Resumable work in progress and atomic outputs.

A stage keeps its checkpoints in a scratch directory named by a fingerprint of all that can change its result
(parameters, inputs, code). It survives a crash, also of `dvc exp run --temp`, where DVC deletes the partial outs; it
can never serve other parameters, because they have another name. Outputs appear whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vw2.console import UserError, say

PARTIAL = ".partial"  # marks what is being written: .clips.partial, .index.partial.parquet
IGNORED = ("__pycache__",)


def _plain(value: Any) -> Any:
    """JSON form of the values that are not JSON yet: dataclasses, paths, tuples inside them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"expected plain parameters, got {type(value).__name__}: {value!r}")


def _label(path: Path) -> str:
    """A name for `path` that does not depend on where the workspace lies (queued runs work in a temporary copy)."""
    full = path.absolute()
    here = Path.cwd()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else full.name


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, file) of a file or of all files below a directory, sorted; caches and partial files left out."""
    if path.is_file():
        yield "", path
        return
    if not path.is_dir():
        raise UserError(f"the input {path} does not exist; run the stage that makes it (`dvc repro` runs all)")
    for name, file in sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()):
        skip = any(part in IGNORED or (part.startswith(".") and PARTIAL in part) for part in name.split("/"))
        if not skip and not name.endswith(".pyc"):
            yield name, file


def fingerprint(params: dict[str, Any], inputs: Iterable[Path], code: Iterable[Path]) -> str:
    """Hash of everything that can change a result (our choice: SHA-256, 16 hex digits).

    Args:
        params: the parameter groups the stage reads; nested dicts, dataclasses and paths are allowed.
        inputs: files and directories read; directories count by their sorted files' relative names and contents.
        code: source files (see `vw2.closure.import_closure`).
    Returns: 16 hex digits, the same for equal contents in any working directory.
    Raises: UserError if an input is missing.
    """
    total = hashlib.sha256(json.dumps(params, sort_keys=True, default=_plain).encode())
    for kind, paths in (("input", inputs), ("code", code)):
        for label, path in sorted((_label(Path(path)), Path(path)) for path in paths):
            for name, file in _files(path):
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"\n{kind}\t{label}\t{name}\t{digest}".encode())
    return total.hexdigest()[:16]


def scratch_dir(stage: str, print_: str) -> Path:
    """The (created) directory for work in progress of `stage` under the fingerprint `print_`.

    It lies below $VW2_SCRATCH, else $DVC_ROOT/.vw2 (in queued and temporary runs DVC_ROOT is the real workspace, so
    the work outlives the temporary one), else ./.vw2. Where another run of the same on this machine has it (dvc queue
    start -j 2), this one waits for that one's end.
    """
    if os.environ.get("VW2_SCRATCH"):
        base = Path(os.environ["VW2_SCRATCH"])
    else:
        base = Path(os.environ.get("DVC_ROOT") or ".") / ".vw2"
    path = base / stage / print_
    if os.environ.get("RANK", "0") == "0":  # of the processes of one run the first holds it for all
        _hold(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def lasting(path: Path) -> Path:
    """Where a file can be looked at after this run: in a queued or temporary one, whose copy of the workspace DVC
    deletes when it fails, a copy below the real workspace's .vw2; else the file itself."""
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    if root == Path.cwd() or not path.is_file():
        return path
    kept = root / ".vw2" / "refused" / Path.cwd().name / path
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, kept)
    return kept


_held: dict[Path, int] = {}  # directories that this process holds, as open files, until it clears them or ends


def _hold(path: Path) -> None:
    """Wait until no other process of this machine holds a directory, which is then made anew if it was cleared."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        return
    place = path.absolute()
    if place in _held:
        os.close(_held.pop(place))
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDONLY)
            try:
                flock(handle, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the others of this run would not wait
                    raise UserError(f"another run is at work in {path}; start this one when that has ended") from None
                say(f"another run of {path.parent.name} with the same parameters is at work; waiting for its end")
                flock(handle, LOCK_EX)
            except OSError:  # a file system without locks
                return
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                _held[place] = handle
                return
        except (FileNotFoundError, FileExistsError):  # cleared by its last holder at this very moment
            if path.is_file():
                raise


def clear(path: Path) -> None:
    """Remove a scratch directory after success, and its stage's directory if nothing else is in it."""
    shutil.rmtree(path, ignore_errors=True)
    if (place := path.absolute()) in _held:
        os.close(_held.pop(place))
    try:
        path.parent.rmdir()
    except OSError:  # another fingerprint still has work there
        pass


def _sync(path: Path) -> None:
    """Flush a file or directory entry to disk, so that a power cut cannot leave an empty file under a final name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a file, a link or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` with the same suffix; it becomes `path` on success and vanishes on failure.

    The temporary name is fixed, so what a killed process left behind is overwritten by the next run.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}{PARTIAL}{path.suffix}")
    _remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give an empty temporary directory beside `path`; it takes the place of `path` on success, vanishes on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    old = path.with_name(f".{path.name}{PARTIAL}.old")
    _remove(temporary)
    _remove(old)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        if path.exists() or path.is_symlink():
            os.replace(path, old)  # a directory cannot replace a full one in one step
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
        _sync(path.parent)
    finally:
        _remove(temporary)
        _remove(old)
