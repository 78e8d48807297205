"""Pretrain the small video prior (VAE + diffusion transformer) on purposeless craft clips of the train appearance.

In:  nothing but parameters (groups seed, craft, prior, compute): the corpus is rendered.
Out: data/prior/{vae,transformer}.safetensors (bf16, <= 20 MB), data/prior/config.json, data/prior/*.tsv (logs),
     metrics/pretrain_prior.json, plots/pretrain_prior.png (real clips, reconstructions, samples from the first frame).
Time and memory at the committed sizes: see benchmarks/; 4 GiB. The stage is frozen in dvc.yaml, its output committed;
`dvc repro -f pretrain_prior` makes it anew. Interrupted runs go on where they stopped; since it runs for hours, its
work in progress is found again by its parameters alone, whatever happened to the code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_prior
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
import typer

from vw2 import params as parameters
from vw2.console import run, table, track
from vw2.evaluation.quality import psnr_of
from vw2.media.resize import to_model, to_uint8
from vw2.media.sheet import write_sheet
from vw2.models.flow import add_noise, draw_time, flow_loss, normal, sample
from vw2.models.prior import Prior, PriorModelConfig
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, atomic_file, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, generator, start
from vw2.training.run import Group, OptimConfig, Run
from vw2.worlds.craft import CraftConfig, render_prior_clip

OUT = Path("data/prior")
PLOT = Path("plots/pretrain_prior.png")
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


def render_corpus(craft: CraftConfig, config: PretrainConfig, path: Path) -> np.ndarray:
    """(clips, T, H, W, 3) uint8, kept in a file so that an interrupted run does not render again."""
    shape = (config.clips, config.frames, craft.resolution, craft.resolution, 3)
    if not path.exists():
        with atomic_file(path) as temporary:
            corpus = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for i in track(range(config.clips), "render the prior's corpus"):
                corpus[i] = render_prior_clip(craft, i, config.frames)
            corpus.flush()
    return np.load(path, mmap_mode="r")


def batch_rows(seed: int, step: int, batch: int, total: int, key: int) -> torch.Tensor:
    return torch.randint(HELD_OUT, total, (batch,), generator=generator(seed, key, step))


def train_vae(accelerator, prior: Prior, corpus: np.ndarray, config: PretrainConfig, seed: int, folder: Path) -> list:
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
        rng = generator(seed, 1, step)
        rows = batch_rows(seed, step, config.vae.batch, len(corpus), 2)
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
    accelerator, prior: Prior, latents: torch.Tensor, config: PretrainConfig, seed: int, folder: Path
) -> list:
    """Image-to-video rectified flow without codes."""
    work = Run(accelerator, [Group(prior.vdm)], config.vdm, folder, "train the VDM")
    for step in work:
        clean = latents[batch_rows(seed, step, config.vdm.batch, len(latents), 3)].to(accelerator.device)
        rng = generator(seed, 4, step)
        noise = normal(clean, rng)
        time = draw_time(len(clean), config.time_shift, rng).to(clean.device)
        with accelerator.autocast():
            velocity = prior.vdm(add_noise(clean, noise, time), time, clean[:, :, :1])
        work.update(flow_loss(velocity.float(), clean, noise), {})
    return work.history


@torch.no_grad()
def judge(prior: Prior, corpus: np.ndarray, seed: int) -> tuple[dict[str, float], list]:
    """PSNR of the VAE and of samples on held-out clips against copying the first frame, and rows for the picture."""
    video = to_model(np.array(corpus[:HELD_OUT])).to(prior.vae.basis.device)
    latents = torch.cat([prior.vae.encode(part) for part in video.split(16)])
    decoded = torch.cat([prior.vae.decode(part) for part in latents.split(16)])
    noise = normal(latents, generator(seed, 5))
    first = latents[:, :, :1]
    sampled = torch.cat(
        [
            prior.vae.decode(sample(lambda x, t, f=f: prior.vdm(x, t, f), n, f, steps=8, shift=3.0))
            for n, f in zip(noise.split(16), first.split(16), strict=True)
        ]
    )
    real = np.asarray(corpus[:HELD_OUT])
    figures = {"vae.psnr": decoded, "sample.psnr": sampled, "copy.psnr": video[:, :, :1].expand_as(video)}
    values = {
        key: psnr_of(float(((to_uint8(x).astype(float) - real)[:, 1:] ** 2).mean()) / 255**2)
        for key, x in figures.items()
    }
    rows = []
    for i in range(6):
        rows += [("real", real[i]), ("VAE", to_uint8(decoded[i])), ("sample", to_uint8(sampled[i]))]
    return values, rows


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Pretrain the small video prior on purposeless clips (frozen stage; hours, resumable)."""
    values = parameters.load(params)
    seed = values["seed"]
    craft = parameters.build(CraftConfig, values["craft"], "craft", seed=seed)
    config = parameters.build(PretrainConfig, values["prior"], "prior")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    table("pretrain_prior", asdict(config))
    accelerator = start(compute, seed)
    chosen = {"seed": seed, **asdict(config), "craft": asdict(craft), "compute": asdict(compute)}
    folder = scratch_dir("pretrain_prior", fingerprint(chosen, [], []))
    with runtime("pretrain_prior"):
        prior = Prior(config.model).to(accelerator.device)
        corpus = render_corpus(craft, config, folder / "corpus.npy")
        vae_log = train_vae(accelerator, prior, corpus, config, seed, folder / "vae")
        prior.vae.eval().requires_grad_(False)
        latents = encode_corpus(prior, corpus, folder / "latents.npy")
        vdm_log = train_vdm(accelerator, prior, latents, config, seed, folder / "vdm")
        with atomic_dir(OUT) as temporary:
            prior.save(temporary, {"seed": seed, "prior": asdict(config), "craft": asdict(craft)})
            for name, log in (("vae", vae_log), ("vdm", vdm_log)):
                if log:
                    pl.DataFrame(log).write_csv(temporary / f"{name}.tsv", separator="\t", float_precision=5)
        prior.load(OUT).eval()  # judge what is on disk, rounded to bf16
        figures, rows = judge(prior, corpus, seed)
        write_sheet(PLOT, rows)
    write_metrics("pretrain_prior", figures, seed=seed, n=HELD_OUT)
    clear(folder)


if __name__ == "__main__":
    run(main)
