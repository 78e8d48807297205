"""Pretrain the LDM on purposeless craft clips of the train appearance: the mini's Open-X (frozen stage).

The warm-up on the craft tasks, and the plain LDM after it, begin from these weights (`pretrain_ldm.use`).

In:  params groups seed, compute, craft (its size), prior (how many clips it saw, their length), dldm (its ldm part),
     pretrain_ldm. The corpus is rendered: purposeless clips that the prior has not seen either.
Out: data/pretrained/{ldm.safetensors (bf16),config.json,training.tsv}, metrics/pretrain_ldm.json,
     plots/pretrain_ldm.png (real, coarse, with own and with another clip's codes).
Time and memory at the committed sizes: an hour on two cores, 6 GiB. The stage is frozen in dvc.yaml, its output
committed; `dvc repro -f pretrain_ldm` makes it anew. Interrupted runs go on where they stopped; as it runs for long,
work in progress is found again by its parameters alone, whatever happened to the code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_ldm
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl
import torch
import typer

from stages.warmup_dldm import train
from vw2 import params as parameters
from vw2.console import run, table
from vw2.data.pool import worker_count
from vw2.data.walks import Walks
from vw2.media.sheet import write_sheet
from vw2.models.dldm import DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.ldm_files import save_ldm
from vw2.models.renderer import LDMRenderer
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.corpus import corpus
from vw2.training.fit import fit
from vw2.training.judge import code_figures, encode_rows, judge_rendering
from vw2.training.run import OptimConfig
from vw2.worlds.craft import CraftConfig

OUT = Path("data/pretrained")
PLOT = Path("plots/pretrain_ldm.png")
HELD_OUT = 64  # clips that no training step sees


@dataclass(frozen=True)
class PretrainLDMConfig:
    """Group `pretrain_ldm` of params.yaml."""

    use: bool  # false: the warm-up begins at random
    clips: int
    colours: float  # share of its clips whose colours are changed as dldm.colours says, in [0, 1]
    optim: OptimConfig


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Pretrain the LDM on purposeless clips (frozen stage; an hour, resumable)."""
    values = parameters.load(params)
    seed = values["seed"]
    craft = parameters.build(CraftConfig, values["craft"], "craft", seed=seed)
    frames, seen = values["prior"]["frames"], values["prior"]["clips"]
    ldm_config = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), frames).ldm
    config = parameters.build(PretrainLDMConfig, values["pretrain_ldm"], "pretrain_ldm")
    ldm_config = replace(ldm_config, colours=replace(ldm_config.colours, share=config.colours))
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    table("pretrain_ldm", asdict(ldm_config) | asdict(config))
    accelerator = start(compute, seed)
    chosen = {"seed": seed, "resolution": craft.resolution, "ldm": asdict(ldm_config), **asdict(config)}
    folder = scratch_dir("pretrain_ldm", fingerprint(chosen, [], []))
    with runtime("pretrain_ldm"):
        store = corpus(craft, seen, config.clips, frames, folder / "corpus", worker_count(values.get("runtime") or {}))
        rows = list(range(HELD_OUT, len(store)))
        ldm = LDM(ldm_config).to(accelerator.device)
        walks = Walks(store, rows, seed, config.optim.batch)
        work = train(accelerator, ldm, walks, config.optim, seed, folder / "training", "pretrain the LDM")
        ldm.eval()
        figures = code_figures(encode_rows(ldm, store, rows[:512]), ldm_config.resolved())
        rendered, sheet = judge_rendering(LDMRenderer(ldm), store, list(range(HELD_OUT)), seed)
        write_sheet(PLOT, sheet)
        with atomic_dir(OUT) as temporary:
            save_ldm(ldm, temporary, torch.bfloat16)
            logs = pl.DataFrame(work.history)
            logs.write_csv(temporary / "training.tsv", separator="\t", float_precision=5)
    write_metrics("pretrain_ldm", figures | rendered, seed=seed, n=HELD_OUT)
    clear(folder)


if __name__ == "__main__":
    run(main)
