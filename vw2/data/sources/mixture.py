"""Several sources in one manifest: `ingest.source` is one name, or a list of entries such as

source:
- source: lerobot
  path: ../bridge
  weight: 3
- source: craft
  weight: 1

An entry has the keys of the group `ingest`, `weight` and maybe `name` (else its `source`). What it does not give is as
in the group, but for `path`. The name becomes the column `source` of the manifest and, before a dot, part of the ids,
so that two data sets may call their videos alike; `craft` names the craft world and nothing else, since by it stage
clip knows the videos that are never taken apart. `weight` says how often training draws from the source, relative to
the others and whatever its size (vw2/data/sampler.py).
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import polars as pl

from vw2 import params as parameters
from vw2.console import UserError
from vw2.data.manifest import Entry, Refused
from vw2.data.ranks import helps
from vw2.data.sources import table
from vw2.data.sources.base import IngestConfig, Source
from vw2.scratch import atomic_file
from vw2.worlds.craft import CraftConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")  # no dot: it ends the name in an id


@dataclass(frozen=True, kw_only=True)
class SourceEntry(IngestConfig):
    """One entry of a list in ingest.source."""

    source: Source
    weight: float
    name: str

    def __post_init__(self) -> None:
        where = f"the entry {self.name} of ingest.source"
        if self.source == "craft" and self.path:
            raise ValueError(f"{where} renders its videos, but has the path {self.path}; remove it")
        if self.source != "craft" and not self.path:
            raise ValueError(f"{where} needs a path, got none; set it to a folder")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"{where} needs a weight above 0, got {self.weight:g}; take it out to leave it alone")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"{where} needs a name of 1 to 40 letters, digits, _ and -; change it")
        if (self.source == "craft") != (self.name == "craft"):  # see WHOLE in vw2/data/cutting.py
            raise ValueError(f"{where} has the source {self.source}, but `craft` names the craft world only; rename it")
        super().__post_init__()


def parts(config: IngestConfig) -> tuple[SourceEntry, ...]:
    """The entries of a list in ingest.source, none if it is one name.

    Raises: UserError that names the key which is unknown, missing or wrong, or the name that comes twice.
    """
    if isinstance(config.source, str):
        return ()
    group = {key: value for key, value in asdict(config).items() if key != "source"}
    found = []
    for number, given in enumerate(config.source):
        defaults = group | {"path": None, "name": given.get("name", given.get("source"))}
        found.append(parameters.build(SourceEntry, defaults | given, f"ingest.source[{number}]"))
    if not found:
        raise UserError("ingest.source is an empty list; name one source, or list entries with source and weight")
    if sum(part.source == "craft" for part in found) > 1:
        raise UserError("ingest.source lists craft twice, but there is one craft world (group craft); list it once")
    name, count = Counter(part.name for part in found).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} entries of ingest.source are named {name}; give each a `name` of its own")
    return tuple(found)


def adopt(entry: Entry, part: SourceEntry, own: Path, work: Path) -> Entry:
    """The entry under its name in the mixture; what its adapter left for it in `own` moves to `work` under that name.

    The adapter's files stay (as hard links where the file system has them), so that an interrupted run can go on.
    """
    id_, path = f"{part.name}.{entry.id}", entry.path
    video = own / "videos" / f"{entry.id}.mp4"
    if video.exists():
        path = (Path(entry.path).parent / f"{id_}.mp4").as_posix()
        with atomic_file(work / "videos" / f"{id_}.mp4") as temporary:
            try:
                os.link(video, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(video, temporary)
    for kind in ("truth", "tracks"):
        if (rows := own / kind / f"{entry.id}.parquet").exists():
            with atomic_file(work / kind / f"{id_}.parquet") as temporary:
                pl.read_parquet(rows).with_columns(video=pl.lit(id_)).write_parquet(temporary)
    return replace(entry, id=id_, path=path, source=part.name, weight=part.weight)


def entries(config: IngestConfig, world: CraftConfig, work: Path, workers: int) -> Iterator[Entry | Refused]:
    """The videos of all sources, in any order; a rank that helps is given them as their adapters name them.

    Raises: what the adapters raise; UserError if an entry of a list gives no video.
    """
    if isinstance(config.source, str):
        yield from table.entries(config, world, work, workers)
        return
    keys = [field.name for field in fields(IngestConfig)]
    for part in parts(config):
        own = work / "sources" / part.name
        # What can change how often an entry is drawn cannot change what is in it.
        plain = IngestConfig(**{key: getattr(part, key) for key in keys})
        taken, first = 0, None
        for item in table.entries(plain, world, own, workers):
            if isinstance(item, Entry):
                taken += 1
                yield item if helps() else adopt(item, part, own, work)  # two would write the same files at once
            else:
                first = first if first and first.path <= item.path else item
                yield item
        if not taken and not helps():  # another rank may have got all the jobs of an entry
            reason = f"; the first file refused, {first.path}, {first.reason}" if first else ""
            raise UserError(f"the entry {part.name} of ingest.source gave no video{reason}; change or remove it")
