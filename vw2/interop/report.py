"""What of a checkpoint fits a model, and what does not, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vw2.console import UserError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # smaller ones need scales
SHOWN = 3  # names of each kind in a sentence


@dataclass(frozen=True)
class KeyReport:
    """What of a checkpoint fits a model, by the authors' names."""

    title: str
    fitting: int
    missing: tuple[str, ...] = ()  # wanted, not there
    unexpected: tuple[str, ...] = ()  # there, not wanted
    misshaped: tuple[str, ...] = ()  # "name (expected ..., got ...)"
    mistyped: tuple[str, ...] = ()  # "name (expected ..., got ...)": other numbers than floating, finite ones
    altered: tuple[str, ...] = ()  # constants that are not what they should be
    elsewhere: int = 0  # entries of the file that belong to other models or variants
    ema: bool = False  # these are the averaged weights

    @property
    def complete(self) -> bool:
        """Every weight of the model is there, as it should be."""
        return not (self.missing or self.misshaped or self.mistyped or self.altered)

    @property
    def fits(self) -> bool:
        """And nothing else."""
        return self.complete and not self.unexpected

    def sentence(self) -> str:
        """All of it in words."""
        parts = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in self.kinds().items()]
        weights = "averaged weights" if self.ema else "weights"
        return f"{self.fitting} {weights} fit the {self.title}" + "".join(f"; {part}" for part in parts)

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """What does not fit, by kind; only kinds that there are."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshaped}
        kinds |= {"of other numbers": self.mistyped, "of another value": self.altered}
        return {kind: keys for kind, keys in kinds.items() if keys}

    def lines(self) -> list[str]:
        """All names that do not fit, one a line."""
        return [f"{self.title}: {kind}: {key}" for kind, keys in self.kinds().items() for key in keys]


class Misfit(UserError):
    """A checkpoint does not fit; `reports` say all that the sentence has no room for."""

    def __init__(self, reports: list[KeyReport]):
        self.reports = reports
        sentences = "; ".join(report.sentence() for report in reports)
        super().__init__(f"{sentences}; choose the file or the model's configuration accordingly")


def _some(keys: tuple[str, ...]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def compare(own: Mapping[str, Tensor], wanted: Mapping[str, Tensor], title: str, elsewhere: int = 0) -> KeyReport:
    """Names, shapes and kinds of numbers of a checkpoint against those of a model."""
    shape = lambda tensor: "x".join(map(str, tensor.shape)) or "a number"  # noqa: E731
    both = sorted(set(own) & set(wanted))
    odd = [key for key in both if own[key].shape != wanted[key].shape]
    faults = {key: _fault(own[key], wanted[key]) for key in both if key not in odd}
    mistyped = tuple(f"{key} ({fault})" for key, fault in faults.items() if fault)
    return KeyReport(
        title,
        len(both) - len(odd) - len(mistyped),
        tuple(sorted(set(wanted) - set(own))),
        tuple(sorted(set(own) - set(wanted))),
        tuple(f"{key} (expected {shape(wanted[key])}, got {shape(own[key])})" for key in odd),
        mistyped,
        elsewhere=elsewhere,
    )


def _fault(own: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor's numbers cannot be those that are wanted; None if they can."""
    if own.is_complex() or own.is_floating_point() != wanted.is_floating_point():
        return f"expected {'floating' if wanted.is_floating_point() else 'whole'} numbers, got {str(own.dtype)[6:]}"
    if not own.is_floating_point():
        return None
    if own.dtype not in FLOATING:
        return f"expected 16 bits or more, got {str(own.dtype)[6:]}"
    return None if own.is_meta or own.isfinite().all() else "expected finite numbers, got nan or infinity"
