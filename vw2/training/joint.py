"""The joint loop of the dLDM: codes learn from the VDM's denoising loss (VideoWorld 2, sec. 3 and 5.5)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from vw2.data.walks import Walks
from vw2.media.colours import recolour
from vw2.media.resize import to_model
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.port import VideoVAE
from vw2.streams import Stream
from vw2.training.carried import Carried
from vw2.training.compute import generator
from vw2.training.parallel import rank_key
from vw2.training.run import Group, LongOptimConfig, Run
from vw2.training.watch import Look


@dataclass(frozen=True)
class JointConfig:
    """Group `train_dldm` of params.yaml."""

    optim: LongOptimConfig
    clip_vdm_alone: bool  # optim.clip holds for the VDM's gradient alone (release)
    encoder_factor: float  # learning rate of encoder and queries, as a factor on optim.lr
    listen_steps: int  # steps in which the VDM learns to listen before the codes may move
    sources: tuple[str, ...] | None = None  # names of ingest.source to train on; None: all

    def __post_init__(self):
        if self.encoder_factor < 0 or self.listen_steps < 0:
            got = f"{self.encoder_factor} and {self.listen_steps}"
            raise ValueError(f"encoder_factor and listen_steps must be at least 0, got {got}; change them")


def train(
    accelerator: Accelerator,
    dldm: DLDM,
    vae: VideoVAE,
    walks: Walks,
    config: JointConfig,
    seed: int,
    folder: Path,
    look: Look,
) -> Run:
    """The joint loop, with a look before every step.

    Running statistics of the quantiser stay those of the warm-up, so codes keep their meaning.
    """
    ldm, every = dldm.ldm, not config.clip_vdm_alone
    groups = [Group(module, config.encoder_factor, config.listen_steps, every) for module in (ldm.encoder, ldm.query)]
    listeners = (ldm.decoder, ldm.connector, dldm.projection, dldm.control)
    groups += [*(Group(module, clipped=every) for module in listeners if module is not None), Group(dldm.vdm)]
    carried = Carried(walks, dldm.config.drawn_share, seed).to(accelerator.device)
    work = Run(accelerator, [*groups, Group(carried, own=True)], config.optim, folder, "train the dLDM")
    dldm.train()
    ldm.spread.eval()
    for step in work:
        look(step)
        rng = generator(seed, Stream.DENOISING, step, *rank_key(accelerator))
        for walked, share in walks[step].parts(config.optim.micro_batch):
            video = to_model(torch.from_numpy(walked.frames).to(accelerator.device))
            video = recolour(video, walked.keys, dldm.config.colours, seed)
            batch = JointBatch(video, carried.first(walked, video, step))
            with accelerator.autocast():
                loss, logs, end = dldm(batch, vae, rng)
            carried.keep(walked, end)
            work.add(loss, logs, share)
        work.finish()
    return work
