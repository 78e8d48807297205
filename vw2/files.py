"""Files of stages, written and read again: one that is missing or damaged ends in a sentence that names it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from vw2.console import UserError


def locate(path: str | Path) -> Path:
    """A path of the settings or the manifest as it can be opened: relative ones count from here, else from DVC's real
    workspace.

    `dvc exp run --temp` and the queue work in a temporary copy, from where `../videos` would point elsewhere.
    """
    here = Path(path)
    if not here.exists() and not here.is_absolute() and os.environ.get("DVC_ROOT"):
        there = Path(os.environ["DVC_ROOT"]) / path
        return there if there.exists() else here
    return here


def read_table(file: Path) -> pl.DataFrame:
    """A parquet table. Raises: UserError if the file is missing or damaged."""
    try:
        return pl.read_parquet(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; run the stage that makes it (dvc repro)") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file} is no whole table ({error}); remove it and run the stage that makes it") from None


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys, into a folder or file that is put in place later (vw2.scratch)."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict:
    """A JSON object. Raises: UserError if the file is missing or holds something else."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; check the path") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); mend it") from None
    if not isinstance(given, dict):
        raise UserError(f"expected {file} to hold a JSON object of settings, got {given!r}; mend it")
    return given
