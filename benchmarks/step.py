"""A real joint step of a preset: seconds and peak memory. `python -m benchmarks.step paper`, on the machine it is for.

Networks at the preset's size with random weights, one clip of noise over and over, optimiser and precision of the
stage; nothing is downloaded and nothing is written. What a preset needs is planned in docs/plan_paper.md.
"""

from statistics import median
from time import perf_counter

import torch
import typer
from accelerate import Accelerator

from benchmarks.plan import GIB, values_of
from vw2.console import run, table, track
from vw2.models.backends import BACKENDS, BackendConfig, random_mini
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.dldm_config import DLDMConfig
from vw2.models.port import VideoPrior
from vw2.models.prior import PriorModelConfig
from vw2.params import build
from vw2.provenance import peak_memory_gib
from vw2.training.compute import ComputeConfig, generator, start
from vw2.training.fit import fit
from vw2.training.joint import JointConfig
from vw2.training.run import Group, LongOptimConfig, optimizers


def networks(config: BackendConfig, values: dict) -> VideoPrior:
    """A back end's, random, at the preset's size."""
    if config.kind == "mini":
        return random_mini(build(PriorModelConfig, values["prior"]["model"], "prior.model"))
    return BACKENDS[config.kind].random(config)


def peak(device: torch.device) -> float:
    """Most memory in use so far, GiB: of the GPU, or of this process."""
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else peak_memory_gib()


class Step:
    """The joint stage's step on clips of noise; its parts are those of `stages.train_dldm`."""

    def __init__(self, values: dict, accelerator: Accelerator):
        self.accelerator, clip = accelerator, values["clip"]
        config = fit(build(DLDMConfig, values["dldm"], "dldm"), clip["frames"])
        self.optim: LongOptimConfig = build(JointConfig, values["train_dldm"], "train_dldm").optim
        prior = networks(config.backend, values)
        prior.vdm.to(config.backend.torch_dtype)
        self.dldm, self.vae = DLDM(config, prior).to(accelerator.device).train(), prior.vae.to(accelerator.device)
        self.vae.eval().requires_grad_(False)
        shape = (1, 3, clip["frames"], clip["height"], clip["width"])
        self.clip = torch.rand(shape, generator=generator(0)).to(accelerator.device) * 2 - 1
        self.learning = [p for p in self.dldm.parameters() if p.requires_grad]
        self.optimizers = optimizers([Group(self.dldm)], self.optim, accelerator.mixed_precision)

    def __call__(self, number: int, clips: int) -> None:
        """One step over so many clips, in micro-batches."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        size = self.optim.micro_batch or clips
        for part, low in enumerate(range(0, clips, size)):
            video = self.clip.expand(min(size, clips - low), -1, -1, -1, -1)
            with self.accelerator.autocast():
                loss, _, _ = self.dldm(JointBatch(video, video[:, :, :1]), self.vae, generator(0, number, part))
            self.accelerator.backward(loss * len(video) / clips)
        self.accelerator.clip_grad_norm_(self.learning, self.optim.clip or float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()


def figures(values: dict, steps: int, clips: int | None) -> dict[str, float]:
    """Parameters, peak memory and the median time of a step behind the first; `clips`: of a step, None = all."""
    accelerator = start(build(ComputeConfig, values["compute"], "compute"), 0)
    step = Step(values, accelerator)
    clips, times = clips or step.optim.batch, []
    for number in track(range(steps + 1), "joint steps"):
        begin = perf_counter()
        step(number, clips)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - begin)
    return {
        "parameters that learn": sum(p.numel() for p in step.learning),
        "clips of a step": clips,
        "seconds a step": median(times[1:]),
        "seconds a clip": median(times[1:]) / clips,
        "peak memory, GiB": peak(accelerator.device),
    }


def main(
    preset: str = typer.Argument("paper", help="Name in presets/."),
    steps: int = typer.Option(2, min=1, help="Steps to time; one more comes before them."),
    clips: int = typer.Option(None, min=1, help="Clips of a step; all by default (paper: 128)."),
) -> None:
    """Time real joint steps of a preset, with random weights."""
    found = figures(values_of(preset), steps, clips)
    table(f"a joint step of {preset}", {key: round(value, 3) for key, value in found.items()})


if __name__ == "__main__":
    run(main)
