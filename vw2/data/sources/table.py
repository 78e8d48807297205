"""Which adapter belongs to a value of ingest.source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from vw2.console import UserError
from vw2.data.manifest import Entry, Refused
from vw2.data.sources import craft, folder, frames, lerobot, videocraft
from vw2.data.sources.base import IngestConfig
from vw2.worlds.craft import CraftConfig

ADAPTERS = {"folder": folder, "frames": frames, "lerobot": lerobot, "videocraft": videocraft}


def adapter(name: str) -> ModuleType:
    """The module of a source other than craft.

    Raises: UserError if this version lacks it.
    """
    try:
        if name == "rlds":
            from vw2.data.sources import rlds as module
        elif name == "calvin":
            from vw2.data.sources import calvin as module
        else:
            module = ADAPTERS[name]
    except ImportError as error:
        raise UserError(
            f"ingest.source {name} cannot be used here ({error}); take one of craft, {', '.join(ADAPTERS)}"
        ) from error
    return module


def entries(config: IngestConfig, world: CraftConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """The videos of the source that the configuration names."""
    if config.source == "craft":
        return craft.entries(world, work, workers)
    return adapter(config.source).entries(config, work, workers)
