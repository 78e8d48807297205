"""Training of the small video prior: its VAE, then its VDM, an image-to-video rectified flow without codes."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from vw2.console import track
from vw2.evaluation.quality import psnr_of
from vw2.media.resize import to_model
from vw2.models.flow import add_noise, draw_time, flow_loss, normal
from vw2.models.prior import Prior, PriorModelConfig
from vw2.scratch import atomic_file
from vw2.streams import Stream
from vw2.training.compute import generator
from vw2.training.run import Group, OptimConfig, Run
from vw2.worlds.craft import CraftConfig, render_prior_clip

HELD_OUT = 64  # clips of the corpus that no training step sees
FITTED = 2000  # clips that the linear map of the VAE is fitted to


@dataclass(frozen=True)
class PretrainConfig:
    """Group `prior` of params.yaml."""

    clips: int
    frames: int  # T of a clip
    vae_frames: int  # T of the shorter clips the VAE is trained on
    latent_noise: float  # noise added to latents while the VAE learns, so that near-by latents decode alike
    time_shift: float
    vae: OptimConfig
    vdm: OptimConfig
    model: PriorModelConfig = field(default_factory=PriorModelConfig)

    def __post_init__(self):
        if self.clips <= HELD_OUT:
            raise ValueError(f"clips must be above the {HELD_OUT} that are held out, got {self.clips}; raise it")
        if self.frames % 4 != 1 or self.vae_frames % 4 != 1 or not 5 <= self.vae_frames <= self.frames:
            raise ValueError(
                "frames and vae_frames must be 1 + 4m, at least 5, vae_frames at most frames, "
                f"got {self.frames} and {self.vae_frames}; change them"
            )


def render_corpus(craft: CraftConfig, config: PretrainConfig, path: Path) -> np.ndarray:
    """(clips, T, H, W, 3) uint8, kept in a file so that an interrupted run does not render again."""
    shape = (config.clips, config.frames, craft.resolution, craft.resolution, 3)
    if not path.exists():
        with atomic_file(path) as temporary:
            with temporary.open("wb") as out:  # plain writes: on a full disk a memory map kills the process
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for i in track(range(config.clips), "render the prior's corpus"):
                    out.write(render_prior_clip(craft, i, config.frames).tobytes())
    return np.load(path, mmap_mode="r")


def batch_rows(seed: int, step: int, batch: int, total: int, stream: Stream) -> torch.Tensor:
    """Clips of a step, none of those held out: (batch,) int64."""
    return torch.randint(HELD_OUT, total, (batch,), generator=generator(seed, stream, step))


def train_vae(
    accelerator: Accelerator, prior: Prior, corpus: np.ndarray, config: PretrainConfig, seed: int, folder: Path
) -> list:
    """Fit the linear map, then train the network, if there is one: L1 + L2 under a little latent noise (our choice).

    Returns: the log, one row per logged step.
    """
    vae = prior.vae
    starts = range(HELD_OUT, min(len(corpus), HELD_OUT + FITTED), 50)
    device = accelerator.device
    vae.fit(to_model(np.array(corpus[i : i + 50])).to(device) for i in track(starts, "fit the linear map of the VAE"))
    if vae.net is None:
        return []
    work = Run(accelerator, [Group(vae.net)], config.vae, folder, "train the VAE")
    for step in work:
        rng = generator(seed, Stream.PRIOR_VAE, step)
        rows = batch_rows(seed, step, config.vae.batch, len(corpus), Stream.PRIOR_VAE_CLIPS)
        start_at = int(torch.randint(0, config.frames - config.vae_frames + 1, (1,), generator=rng))
        clips = np.stack([corpus[r, start_at : start_at + config.vae_frames] for r in rows.tolist()])
        video = to_model(clips).to(accelerator.device)
        with accelerator.autocast():
            latents = vae.encode(video)
            noisy = latents + config.latent_noise * normal(latents, rng)
            decoded = vae.expand(noisy).float()
        error = decoded - video
        loss = error.abs().mean() + 2 * (error**2).mean()
        work.update(loss, {"psnr": psnr_of(float((error.detach() ** 2).mean()) / 4)})
    return work.history


@torch.no_grad()
def encode_corpus(prior: Prior, corpus: np.ndarray, path: Path) -> torch.Tensor:
    """(clips, C, L, h, w) float32 latents of the corpus."""
    if not path.exists():
        parts = []
        for begin in track(range(0, len(corpus), 16), "encode the corpus"):
            video = to_model(np.array(corpus[begin : begin + 16])).to(prior.vae.basis.device)
            parts.append(prior.vae.encode(video).cpu())
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))


def train_vdm(
    accelerator: Accelerator, prior: Prior, latents: torch.Tensor, config: PretrainConfig, seed: int, folder: Path
) -> list:
    """Image-to-video rectified flow without codes."""
    work = Run(accelerator, [Group(prior.vdm)], config.vdm, folder, "train the VDM")
    for step in work:
        rows = batch_rows(seed, step, config.vdm.batch, len(latents), Stream.PRIOR_VDM_CLIPS)
        clean = latents[rows].to(accelerator.device)
        rng = generator(seed, Stream.PRIOR_VDM, step)
        noise = normal(clean, rng)
        time = draw_time(len(clean), config.time_shift, rng).to(clean.device)
        with accelerator.autocast():
            velocity = prior.vdm(add_noise(clean, noise, time), time, clean[:, :, :1])
        work.update(flow_loss(velocity.float(), clean, noise), {})
    return work.history
