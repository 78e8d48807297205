"""Training of the LDM by reconstruction alone (VideoWorld 2, sec. 3): the warm-up, its pretraining, the plain LDM."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from vw2.console import UserError
from vw2.data.walks import Walks
from vw2.media.colours import recolour
from vw2.media.resize import to_model
from vw2.models.ldm import LDM, LDMConfig
from vw2.training.carried import Carried
from vw2.training.run import Group, LongOptimConfig, OptimConfig, Run
from vw2.training.watch import Look, nothing


@dataclass(frozen=True)
class WarmupConfig(LongOptimConfig):
    """Group `warmup_dldm` of params.yaml."""

    sources: tuple[str, ...] | None = None  # names of ingest.source to train on; None: all


def check_spread(config: LDMConfig, batch: int, frames: int) -> None:
    """Refuse a batch of one clip of one step, whose codes parts `frames` cannot spread. Raises: UserError.

    Args: config: made by `for_clips`; frames: T.
    """
    if config.parts == "frames" and batch * (frames - 1) // config.stride < 2:
        raise UserError(f"dldm.parts frames needs at least 2 steps in a batch, got {batch} clips of one; raise batch")


def check_batches(config: LDMConfig, micro_batch: int | None, processes: int = 1) -> None:
    """Refuse parts `frames` that are to see less than a whole batch at once. Raises: UserError."""
    if config.parts == "frames" and (micro_batch or processes > 1):
        raise UserError(
            "micro_batch and several processes go with dldm.parts causal, as frames spread codes by statistics of a "
            f"whole batch, got {micro_batch} and {processes}; set it to null and start one process"
        )


def train(
    accelerator: Accelerator,
    ldm: LDM,
    walks: Walks,
    config: OptimConfig,
    seed: int,
    folder: Path,
    title: str,
    micro_batch: int | None = None,
    look: Look = nothing,
) -> Run:
    """Reconstruction of the clips of walks; resumed from `folder`.

    Args:
        title: what the progress bar says.
        micro_batch: clips that go through the LDM at once; None: all of a step.
        look: comes before every step.
    Raises: UserError if parts `frames` are to see less than a whole batch at once.
    """
    check_batches(ldm.config, micro_batch, accelerator.num_processes)
    carried = Carried(walks, ldm.config.drawn_share, seed).to(accelerator.device)
    work = Run(accelerator, [Group(ldm), Group(carried, own=True)], config, folder, title)
    ldm.train()
    for step in work:
        look(step)
        for walked, share in walks[step].parts(micro_batch):
            video = to_model(torch.from_numpy(walked.frames).to(accelerator.device))
            video = recolour(video, walked.keys, ldm.config.colours, seed)
            with accelerator.autocast():
                loss, logs, end = ldm(video, carried.first(walked, video, step))
            carried.keep(walked, end)
            work.add(loss, logs, share)
        work.finish()
    return work
