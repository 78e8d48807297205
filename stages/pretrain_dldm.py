"""Pretrain the dLDM on purposeless craft clips of the train appearance: the mini's Open-X (frozen stage).

First the LDM by reconstruction, then all of it jointly, from the prior; as the DAG does on the craft tasks afterwards.

In:  data/prior; params groups seed, compute, craft, prior, dldm, pretrain_dldm. The corpus is rendered: clips that the
     prior has not seen either.
Out: data/pretrained/{dldm.safetensors (bf16, <= 21 MB),config.json,*.tsv (logs)}, metrics/pretrain_dldm.json,
     plots/pretrain_dldm.png (real, coarse, rendered with own and with another clip's codes).
Time and memory at the committed sizes: hours, 6 GiB. The stage is frozen in dvc.yaml, its output committed;
`dvc repro -f pretrain_dldm` makes it anew. Interrupted runs go on where they stopped; as it runs for hours, work in
progress is found again by its parameters alone, whatever happened to the code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_dldm
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import torch
import typer

from stages.train_dldm import JointConfig
from stages.train_dldm import train as train_jointly
from stages.warmup_dldm import train as train_ldm
from vw2 import params as parameters
from vw2.console import run, table
from vw2.data.pool import worker_count
from vw2.media.sheet import write_sheet
from vw2.models.dldm import DLDM, DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.renderer import DLDMRenderer, load_prior, save_dldm
from vw2.provenance import check_record, runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.clipset import SmallClips, cache_latents
from vw2.training.compute import ComputeConfig, start
from vw2.training.corpus import corpus
from vw2.training.judge import code_figures, encode_rows, judge_rendering
from vw2.training.run import OptimConfig
from vw2.worlds.craft import CraftConfig

PRIOR = Path("data/prior")
OUT = Path("data/pretrained")
PLOT = Path("plots/pretrain_dldm.png")
HELD_OUT = 64  # clips that no training step sees


@dataclass(frozen=True)
class PretrainDLDMConfig:
    """Group `pretrain_dldm` of params.yaml."""

    use: bool  # false: warm-up begins at random, joint with the prior's VDM
    clips: int
    warmup: OptimConfig
    joint: JointConfig


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Pretrain the dLDM on purposeless clips (frozen stage; hours, resumable)."""
    values = parameters.load(params)
    seed = values["seed"]
    craft = parameters.build(CraftConfig, {**values["craft"], "seed": seed}, "craft")
    dldm_config = parameters.build(DLDMConfig, values["dldm"], "dldm")
    config = parameters.build(PretrainDLDMConfig, values["pretrain_dldm"], "pretrain_dldm")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    record = json.loads((PRIOR / "config.json").read_text())["record"]
    check_record(record["prior"], values["prior"], "prior", "dvc repro -f pretrain_prior")
    frames, seen = values["prior"]["frames"], values["prior"]["clips"]
    table("pretrain_dldm", asdict(dldm_config) | asdict(config))
    accelerator = start(compute, seed)
    trained = {key: value for key, value in asdict(dldm_config).items() if not key.startswith("sampling_")}
    chosen = {"seed": seed, "craft": asdict(craft), "dldm": trained, **asdict(config)}
    folder = scratch_dir("pretrain_dldm", fingerprint(chosen, [PRIOR], []))
    with runtime("pretrain_dldm"):
        store = corpus(craft, seen, config.clips, frames, folder / "corpus", worker_count(values.get("runtime") or {}))
        rows = list(range(HELD_OUT, len(store)))
        clips = SmallClips(store, rows, dldm_config.size)
        ldm = LDM(dldm_config.ldm)
        warm = train_ldm(accelerator, ldm, clips, config.warmup, seed, folder / "warmup", "pretrain the LDM")
        prior = load_prior(PRIOR)
        dldm = DLDM(dldm_config, prior)
        dldm.ldm.load_state_dict(ldm.state_dict())
        if dldm.control is not None:
            dldm.control.copy_blocks(dldm.vdm)
        latents = cache_latents(store, rows, prior.vae, folder / "latents.npy")
        joint = train_jointly(accelerator, dldm, prior.vae, clips, latents, config.joint, seed, folder / "joint")
        renderer = DLDMRenderer(dldm, prior).eval()
        with atomic_dir(OUT) as temporary:
            save_dldm(dldm, temporary, torch.bfloat16)
            for name, work in (("warmup", warm), ("joint", joint)):
                pl.DataFrame(work.history).write_csv(temporary / f"{name}.tsv", separator="\t", float_precision=5)
        figures = code_figures(encode_rows(dldm.ldm, store, rows[:512]), dldm_config.ldm.resolved())
        rendered, sheet = judge_rendering(renderer, store, list(range(HELD_OUT)), seed)
        write_sheet(PLOT, sheet)
    write_metrics("pretrain_dldm", figures | rendered, seed=seed, n=HELD_OUT)
    clear(folder)


if __name__ == "__main__":
    run(main)
