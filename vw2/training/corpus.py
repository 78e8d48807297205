"""The purposeless corpus as clips on disk: what the prior and the dLDM are pretrained on."""

from dataclasses import dataclass
from pathlib import Path

from vw2.console import progress
from vw2.data.pool import Failure, run_resumable
from vw2.data.shards import ClipStore, write_shards
from vw2.scratch import atomic_dir, atomic_file, clear
from vw2.worlds.craft import CraftConfig, render_prior_clip


@dataclass(frozen=True)
class CorpusJob:
    """One clip to render."""

    craft: CraftConfig
    index: int
    frames: int
    file: Path


def render(job: CorpusJob) -> dict:
    """Write one clip as raw frames."""
    with atomic_file(job.file) as temporary:
        temporary.write_bytes(render_prior_clip(job.craft, job.index, job.frames).tobytes())
    return {}


def corpus(craft: CraftConfig, first: int, clips: int, frames: int, folder: Path, workers: int) -> ClipStore:
    """Clips `first` .. `first + clips - 1` of the corpus, rendered once and kept in `folder`.

    Raises: UserError if a worker dies (twice, if it was killed).
    """
    if not (folder / "clips").exists():
        raw = folder / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        names = [f"clip_{index:06d}" for index in range(first, first + clips)]
        jobs = {
            name: CorpusJob(craft, index, frames, raw / f"{name}.u8") for index, name in enumerate(names, start=first)
        }
        with progress(clips, "render the corpus") as bar:
            for name, result in run_resumable(render, jobs, folder / "records", workers=workers):
                if isinstance(result, Failure):
                    raise result.error(f"rendering {name}")
                bar.advance()
        config = {"frames": frames, "height": craft.resolution, "width": craft.resolution, "fps": craft.fps}
        with atomic_dir(folder / "clips") as temporary:
            write_shards(temporary, [(name, "train", "", jobs[name].file, frames) for name in names], config)
        clear(raw)
    return ClipStore(folder / "clips")
