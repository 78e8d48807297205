"""What bfloat16 saves on a CPU: `python -m benchmarks.precision`, half a minute.

A whole step (forward, backward, update) of the mini's LDM on random clips, in float32, under bfloat16 autocast with
torch's fused attention, and as the stages do it (vw2/models/attend.py). They take turns in one run; what counts is the
ratio of their least processor times, which other programs on the machine disturb little.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import typer

from benchmarks.turns import least
from vw2 import params as parameters
from vw2.console import run, table
from vw2.models import attend
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM
from vw2.training.compute import has_bfloat16, keep_freed_memory
from vw2.training.fit import fit
from vw2.training.run import Group, LongOptimConfig, optimizers

WAYS = {  # name -> (accelerate's mixed precision, attention weights that may be in memory at once)
    "float32": ("no", attend.MOST),
    "bfloat16, fused attention": ("bf16", 0),
    "bfloat16": ("bf16", attend.MOST),
}


def step_of(values: dict, precision: str, most: int) -> Callable[[], None]:
    """One step of the warm-up, by the parameters `values`."""
    frames, side = values["clip"]["frames"], (values["clip"]["height"], values["clip"]["width"])
    config = parameters.build(LongOptimConfig, {k: v for k, v in values["warmup_dldm"].items() if k != "sources"}, "")
    torch.manual_seed(0)
    ldm = LDM(fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), frames).ldm).train()
    video = 2 * torch.rand(config.batch, 3, frames, *side) - 1
    moved = optimizers([Group(ldm)], config, precision)

    def once() -> None:
        attend.MOST = most
        for optimizer in moved:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = ldm(video, video[:, :, :1])[0]
        loss.backward()
        for optimizer in moved:
            optimizer.step()

    return once


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    rounds: int = typer.Option(15, min=1, help="Turns of each."),
    threads: int = typer.Option(2, min=1, help="CPU threads."),
) -> None:
    """A step of the warm-up in float32 and in bfloat16, as ratios."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    values = parameters.load(params)
    steps = {name: step_of(values, *way) for name, way in WAYS.items()}
    best = least(steps, rounds + 1)  # the first turn is slow
    rows = {
        name: f"{1000 * seconds / threads:.0f} ms, {seconds / best['float32']:.2f} of float32"
        for name, seconds in best.items()
    }
    table("a step of the warm-up", rows | {"bfloat16 in hardware": "yes" if has_bfloat16() else "no"})


if __name__ == "__main__":
    run(main)
