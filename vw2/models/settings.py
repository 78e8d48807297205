"""Settings saved beside weights as JSON: what a file does not say has its default."""

from dataclasses import asdict
from typing import TypeVar

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


def settings(given: dict, defaults: Config, name: str) -> Config:
    """A config dataclass with the values `given` and else those of `defaults`, another of its class.

    Raises: UserError naming the key, below `name`, that is unknown or ill-typed.
    """
    return build(type(defaults), laid_over(asdict(defaults), given), name)
