"""Pretrain the small video prior (VAE + diffusion transformer) on purposeless craft clips of the train appearance.

In:  nothing but parameters (groups seed, craft, prior, compute): the corpus is rendered.
Out: data/prior/{vae,transformer}.safetensors (bf16, <= 20 MB), data/prior/config.json, data/prior/*.tsv (logs),
     metrics/pretrain_prior.json, plots/pretrain_prior.png (real clips, reconstructions, samples from the first frame),
     benchmarks/runtime/pretrain_prior.json (steps and seconds; commit it with the weights).
Time and memory at the committed sizes: see there; 4 GiB. The stage is frozen in dvc.yaml, its output committed;
`python -m stages.pretrain_prior && dvc commit -f pretrain_prior` makes it anew. Interrupted runs go on where they
stopped; since it runs for hours, its work in progress is found again by its parameters alone, whatever happened to the
code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_prior
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
import typer

from vw2 import params as parameters
from vw2.console import run, table
from vw2.evaluation.quality import psnr_of
from vw2.media.resize import to_model, to_uint8
from vw2.media.sheet import write_sheet
from vw2.models.flow import normal, sample
from vw2.models.prior import Prior
from vw2.provenance import COMMITTED, runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.streams import Stream
from vw2.training.compute import ComputeConfig, generator, start
from vw2.training.pretrain_prior import HELD_OUT, PretrainConfig, encode_corpus, render_corpus, train_vae, train_vdm
from vw2.worlds.craft import CraftConfig

OUT = Path("data/prior")
PLOT = Path("plots/pretrain_prior.png")


@torch.no_grad()
def judge(prior: Prior, corpus: np.ndarray, seed: int) -> tuple[dict[str, float], list]:
    """PSNR of the VAE and of samples on held-out clips against copying the first frame, and rows for the picture."""
    video = to_model(np.array(corpus[:HELD_OUT])).to(prior.vae.basis.device)
    latents = torch.cat([prior.vae.encode(part) for part in video.split(16)])
    decoded = torch.cat([prior.vae.decode(part) for part in latents.split(16)])
    noise = normal(latents, generator(seed, Stream.PRIOR_SAMPLE))
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
    with runtime("pretrain_prior", COMMITTED, folder / "seconds") as rates:
        prior = Prior(config.model).to(accelerator.device)
        corpus = render_corpus(craft, config, folder / "corpus.npy")
        vae_log = train_vae(accelerator, prior, corpus, config, seed, folder / "vae")
        prior.vae.eval().requires_grad_(False)
        latents = encode_corpus(prior, corpus, folder / "latents.npy")
        vdm_log = train_vdm(accelerator, prior, latents, config, seed, folder / "vdm")
        rates["steps"] = sum(log[-1]["step"] for log in (vae_log, vdm_log) if log)
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
