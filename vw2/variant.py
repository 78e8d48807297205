"""Which model a stage works on: VideoWorld 2 (dLDM), or the plain LDM that stands beside it with the same stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Variant = Literal["vw2", "plain_ldm"]


@dataclass(frozen=True)
class Paths:
    """Folders of one variant."""

    dldm: Path  # the model that encodes and renders
    codes: Path
    ar: Path
    rollout: Path
    plots: Path
    metrics_prefix: str  # before the name of a stage in metrics/ and in the scratch directory


def paths(variant: Variant) -> Paths:
    """Where a variant keeps its things: data/dldm and metrics/train_ar.json, or data/plain_ldm/dldm and so on."""
    prefix = "" if variant == "vw2" else f"{variant}/"
    data = Path("data") / prefix
    return Paths(data / "dldm", data / "codes", data / "ar", data / "rollout", Path("plots") / prefix, prefix)
