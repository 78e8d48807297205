"""Which adapter belongs to the name of a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vw2.data.manifest import Entry, Refused
from vw2.data.sources import calvin, craft, folder, frames, lerobot, rlds, videocraft
from vw2.data.sources.base import IngestConfig
from vw2.worlds.craft import CraftConfig

ADAPTERS = {
    "folder": folder,
    "frames": frames,
    "videocraft": videocraft,
    "lerobot": lerobot,
    "rlds": rlds,
    "calvin": calvin,
}


def entries(config: IngestConfig, world: CraftConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """The videos of the one source that the configuration names."""
    if config.source == "craft":
        return craft.entries(world, work, workers)
    return ADAPTERS[config.source].entries(config, work, workers)
