"""Settings saved beside weights as JSON: what a file does not say has its default."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from vw2.console import UserError
from vw2.params import build

Config = TypeVar("Config")


def laid_over(defaults: dict, given: dict) -> dict:
    """`given`, and from `defaults` what it lacks, in nested groups too."""
    both = {
        key: laid_over(defaults[key], value)
        for key, value in given.items()
        if isinstance(defaults.get(key), dict) and isinstance(value, dict)
    }
    return defaults | given | both


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


def settings(given: dict, defaults: Config, name: str) -> Config:
    """A config dataclass with the values `given` and else those of `defaults`, another of its class.

    Raises: UserError naming the key, below `name`, that is unknown or ill-typed.
    """
    return build(type(defaults), laid_over(asdict(defaults), given), name)
