"""Teach the prior's VDM to read codes on purposeless craft clips of the train appearance (frozen stage).

The LDM of pretrain_ldm gives the codes and stands still; there is no control branch, so that they alone tell the VDM
what moves. The joint stage begins with this VDM and its projection (`pretrain_vdm.use`), as the codes of the warm-up
go on from those of pretrain_ldm.

In:  data/prior, data/pretrained; params groups seed, compute, craft (its size), prior and pretrain_ldm (as these were
     made), dldm, pretrain_vdm. The corpus is rendered: purposeless clips that neither prior nor LDM has seen.
Out: data/pretrained_vdm/{vdm,projection}.safetensors (bf16, <= 20 MB), record.json (parameters, and hashes of the
     weights it was made from), training.tsv, metrics/pretrain_vdm.json (the loss before, with own and with another
     clip's codes), plots/pretrain_vdm.png (real, the LDM's coarse video, drawn from noise with own and with another
     clip's codes), benchmarks/runtime/pretrain_vdm.json (steps and seconds; commit it with the weights).
Time and memory at the committed sizes: half an hour on two cores, 3 GiB. The stage is frozen in dvc.yaml, its output
committed; `python -m stages.pretrain_vdm && dvc commit -f pretrain_vdm` makes it anew. Interrupted runs go on where
they stopped; as it runs for long, work in progress is found again by its parameters alone, whatever happened to the
code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_ldm && python -m stages.pretrain_vdm
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import polars as pl
import typer

from vw2 import params as parameters
from vw2.console import run, table
from vw2.data.pool import worker_count
from vw2.data.walks import Walks
from vw2.media.sheet import write_sheet
from vw2.models.begin import begin_joint, check_prior
from vw2.models.dldm_config import DLDMConfig
from vw2.models.vdm_files import save_taught
from vw2.provenance import COMMITTED, runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.corpus import corpus
from vw2.training.fit import fit
from vw2.training.judge import judge_denoising, judge_rendering
from vw2.training.pretrain_ldm import LOG, RECORD, PretrainLDMConfig, check_made
from vw2.training.pretrain_vdm import PretrainVDMConfig, from_codes_alone, teach
from vw2.worlds.craft import CraftConfig

PRIOR = Path("data/prior")
PRETRAINED = Path("data/pretrained")
OUT = Path("data/pretrained_vdm")
PLOT = Path("plots/pretrain_vdm.png")
HELD_OUT = 64  # clips that no training step sees, those of pretrain_ldm
ROUNDS = 20  # at least so many rounds of pretrain_ldm have clips of their own before these
FIGURES = ("denoise.own", "denoise.other_tokens", "denoise.rise_tokens")  # without a branch the others are the same
WALKS = 77  # added to the seed: its clips come in an order of its own


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Teach the VDM to read codes on purposeless clips (frozen stage; half an hour, resumable)."""
    values = parameters.load(params)
    seed = values["seed"]
    craft = parameters.build(CraftConfig, values["craft"], "craft", seed=seed)
    frames, seen = (parameters.leaf(values, f"prior.{key}", int) for key in ("frames", "clips"))
    dldm_config = from_codes_alone(fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), frames))
    config = parameters.build(PretrainVDMConfig, values["pretrain_vdm"], "pretrain_vdm")
    pretrained = parameters.build(PretrainLDMConfig, values["pretrain_ldm"], "pretrain_ldm")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    check_prior(PRIOR, values["prior"])
    check_made(PRETRAINED, pretrained)
    record = config.record(PRIOR, PRETRAINED)
    first = seen + HELD_OUT + max(ROUNDS, pretrained.rounds) * pretrained.clips
    table("pretrain_vdm", {**asdict(dldm_config), **asdict(config)})
    accelerator = start(compute, seed)
    chosen = {
        "seed": seed,
        "craft": (craft.resolution, craft.fps),
        "clips": (frames, seen, first),
        "dldm": asdict(dldm_config),
        "pretrain_vdm": record,
        "compute": asdict(compute),
    }
    folder = scratch_dir("pretrain_vdm", fingerprint(chosen, [], []))
    workers = worker_count(values["runtime"])
    with runtime("pretrain_vdm", COMMITTED, folder / "seconds", steps=config.optim.steps):
        store = corpus(craft, first, config.clips, frames, folder / "corpus", workers)
        held_out = corpus(craft, seen, HELD_OUT, frames, folder / "held_out", workers)
        rows = list(range(HELD_OUT))
        renderer = begin_joint(dldm_config, PRETRAINED, PRIOR).place(accelerator.device, accelerator.autocast)
        dldm, vae = renderer.dldm, renderer.prior.vae
        before = judge_denoising(dldm.eval(), vae, held_out, rows, seed)
        walks = Walks(store, range(len(store)), seed + WALKS, config.optim.batch)
        work = teach(accelerator, dldm, vae, walks, config.optim, seed, folder / "training")
        with atomic_dir(folder / "taught") as temporary:
            save_taught(dldm, temporary)
            pl.DataFrame(work.history).write_csv(temporary / LOG, separator="\t", float_precision=5)
            (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")  # not sorted, as committed
        # judged as it is saved
        renderer = begin_joint(dldm_config, PRETRAINED, PRIOR, folder / "taught")
        renderer.place(accelerator.device, accelerator.autocast).eval()
        after = judge_denoising(renderer.dldm, renderer.prior.vae, held_out, rows, seed)
        figures = {"denoise.before": before["denoise.own"]} | {key: after[key] for key in FIGURES}
        rendered, sheet = judge_rendering(renderer, held_out, rows, seed)
        write_sheet(PLOT, sheet)
        with atomic_dir(OUT) as temporary:
            shutil.copytree(folder / "taught", temporary, dirs_exist_ok=True)
    write_metrics("pretrain_vdm", figures | rendered, seed=seed, n=HELD_OUT)
    clear(folder)


if __name__ == "__main__":
    run(main)
