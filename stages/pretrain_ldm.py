"""Pretrain the LDM on purposeless craft clips of the train appearance: the mini's Open-X (frozen stage).

The warm-up on the craft tasks, and the plain LDM after it, begin from these weights (`pretrain_ldm.use`).

In:  params groups seed, compute, craft (its size), prior (how many clips it saw, their length), dldm (its ldm part),
     pretrain_ldm. The corpus is rendered: purposeless clips that the prior has not seen either.
Out: data/pretrained/{ldm.safetensors (bf16),config.json,record.json,training.tsv}, metrics/pretrain_ldm.json,
     plots/pretrain_ldm.png (real, coarse, with own and with another clip's codes), benchmarks/runtime/pretrain_ldm.json
     (steps and seconds of the rounds that were trained; commit it with the weights).
Time and memory at the committed sizes: an hour a round on two cores, 6 GiB. The stage is frozen in dvc.yaml, its output
committed; `python -m stages.pretrain_ldm && dvc commit -f pretrain_ldm` makes it anew. A round begins with the weights
of the one before as they are saved, with clips and a schedule of its own; so one more costs no more than itself: raise
pretrain_ldm.rounds and run `python -m stages.pretrain_ldm --one-more`, and then pretrain_vdm anew, which reads the
codes of the last. Interrupted runs go on where they stopped; as it runs for long, work in progress is found again by
its parameters alone, whatever happened to the code in between.
Tiny run: python -m stages.preset smoke && python -m stages.pretrain_ldm
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import torch
import typer
from accelerate import Accelerator

from vw2 import params as parameters
from vw2.console import run, table
from vw2.data.pool import worker_count
from vw2.data.shards import ClipStore
from vw2.data.walks import Walks
from vw2.media.sheet import write_sheet
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.ldm_files import save_ldm
from vw2.models.pretrained import load_whole
from vw2.models.renderer import LDMRenderer
from vw2.provenance import COMMITTED, runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.corpus import corpus
from vw2.training.fit import fit
from vw2.training.judge import code_figures, encode_rows, judge_rendering
from vw2.training.pretrain_ldm import LOG, RECORD, WEIGHTS, PretrainLDMConfig, take_up
from vw2.training.run import OptimConfig
from vw2.training.warmup import train
from vw2.worlds.craft import CraftConfig

OUT = Path("data/pretrained")
PLOT = Path("plots/pretrain_ldm.png")
HELD_OUT = 64  # clips that no training step sees


def train_round(
    accelerator: Accelerator, ldm: LDM, store: ClipStore, optim: OptimConfig, seed: int, folder: Path, number: int
) -> None:
    """Train `ldm`, as round `number` - 1 left it, along the clips of `store`; weights and log go to a folder."""
    walks = Walks(store, range(len(store)), seed + number, optim.batch)
    title = f"pretrain the LDM, round {number + 1}"
    work = train(accelerator, ldm, walks, optim, seed + number, folder / f"training_{number}", title)
    log = pl.DataFrame(work.history).with_columns(pl.col("step") + number * optim.steps)
    before = [pl.read_csv(folder / f"round_{number - 1}" / LOG, separator="\t")] if number else []
    with atomic_dir(folder / f"round_{number}") as temporary:
        save_ldm(ldm, temporary, torch.bfloat16)
        pl.concat([*before, log]).write_csv(temporary / LOG, separator="\t", float_precision=5)


def main(
    params: Path = typer.Option(Path("params.yaml"), help="Parameter file."),
    one_more: bool = typer.Option(False, "--one-more", help="Train the last round only, from data/pretrained."),
) -> None:
    """Pretrain the LDM on purposeless clips (frozen stage; an hour a round, resumable)."""
    values = parameters.load(params)
    seed = values["seed"]
    craft = parameters.build(CraftConfig, values["craft"], "craft", seed=seed)
    frames, seen = (parameters.leaf(values, f"prior.{key}", int) for key in ("frames", "clips"))
    ldm_config = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), frames).ldm
    config = parameters.build(PretrainLDMConfig, values["pretrain_ldm"], "pretrain_ldm")
    ldm_config = replace(ldm_config, colours=replace(ldm_config.colours, share=config.colours))
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    table("pretrain_ldm", asdict(ldm_config) | asdict(config))
    accelerator = start(compute, seed)
    chosen = {
        "seed": seed,
        "craft": (craft.resolution, craft.fps),
        "prior": (frames, seen),
        "ldm": asdict(ldm_config),
        "pretrain_ldm": config.record(0),  # a round is the same, however many there are
        "compute": asdict(compute),
    }
    folder = scratch_dir("pretrain_ldm", fingerprint(chosen, [], []))
    workers = worker_count(values["runtime"])
    begin = config.rounds - 1 if one_more else 0
    if one_more:
        take_up(folder, OUT, config, ldm_config)

    def clips(number: int) -> ClipStore:
        """Those of a round; 64 clips before them are held out."""
        first = seen + HELD_OUT + number * config.clips
        return corpus(craft, first, config.clips, frames, folder / f"corpus_{number}", workers)

    with runtime("pretrain_ldm", COMMITTED, folder / "seconds", steps=(config.rounds - begin) * config.optim.steps):
        held_out = corpus(craft, seen, HELD_OUT, frames, folder / "held_out", workers)
        ldm = LDM(ldm_config).to(accelerator.device)
        for number in range(begin, config.rounds):
            if number:
                load_whole(ldm, folder / f"round_{number - 1}" / WEIGHTS, "pretrain_ldm.rounds")
            last = folder / f"round_{number}"
            if not last.exists():
                train_round(accelerator, ldm, clips(number), config.optim, seed, folder, number)
        load_whole(ldm.eval(), last / WEIGHTS, "pretrain_ldm.rounds")  # judged as it is saved
        store = clips(number)
        judged = range(len(store))[:512]
        names = store.index["video"][: len(judged)].to_list()
        figures = code_figures(encode_rows(ldm, store, judged), ldm_config.resolved(), names)
        rendered, sheet = judge_rendering(LDMRenderer(ldm), held_out, list(range(HELD_OUT)), seed)
        write_sheet(PLOT, sheet)
        with atomic_dir(OUT) as temporary:
            shutil.copytree(last, temporary, dirs_exist_ok=True)
            record = config.record(config.rounds)
            (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")  # not sorted, as committed
    write_metrics("pretrain_ldm", figures | rendered, seed=seed, n=HELD_OUT)
    clear(folder)


if __name__ == "__main__":
    run(main)
