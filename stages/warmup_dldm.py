"""Warm up the LDM: encoder, prefix queries, quantiser and coarse decoder, by reconstruction (VideoWorld 2, sec. 3).

In:  data/clips (split train of the sources), data/pretrained; params groups seed, compute, dldm (its ldm part),
     pretrain_ldm (what the pretrained weights must have been made with), warmup_dldm, gates.
Out: data/warmup/{ldm.safetensors,config.json}, metrics/warmup_dldm.json, plots/warmup_dldm (TSV per series),
     plots/warmup_dldm.png (real, coarse), plots/warmup_dldm_codes.png (entropy by step and by digit).
Time and memory at the committed sizes: 18 to 32 minutes on two cores, 5.5 GiB. Headline: codes.entropy_bits well above
half of log2(codebook). Interrupted runs go on where they stopped.
Tiny run: python -m stages.preset smoke && dvc repro warmup_dldm
"""

from dataclasses import asdict
from pathlib import Path

import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import run, say, table
from vw2.data.shards import ClipStore
from vw2.evaluation.health import code_health, write_health
from vw2.media.sheet import write_sheet
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.ldm_files import save_ldm
from vw2.models.pretrained import take_over
from vw2.models.renderer import LDMRenderer
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.curves import write_curves
from vw2.training.fit import fit
from vw2.training.gates import GatesConfig, check_gates
from vw2.training.judge import (
    code_figures,
    encode_rows,
    judge_coarse,
    judge_rendering,
    pick_clips,
    pick_unseen,
    videos_of,
)
from vw2.training.parallel import leave_to_first, shared_walks
from vw2.training.pretrain_ldm import PretrainLDMConfig, check_made
from vw2.training.warmup import WarmupConfig, check_spread, train
from vw2.training.watch import watch

CLIPS = Path("data/clips")
PRETRAINED = Path("data/pretrained")
OUT = Path("data/warmup")
LOGS = Path("plots/warmup_dldm")
PLOT = Path("plots/warmup_dldm.png")
CODES_PLOT = Path("plots/warmup_dldm_codes.png")
ROOT = Path(__file__).parents[1]


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Train the latent dynamics model by reconstruction (the warm-up of the dLDM)."""
    values = parameters.load(params)
    seed = values["seed"]
    store = ClipStore(CLIPS)
    dldm = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), store.clip_frames)
    config = parameters.build(WarmupConfig, values["warmup_dldm"], "warmup_dldm")
    pretrained = parameters.build(PretrainLDMConfig, values["pretrain_ldm"], "pretrain_ldm")
    gates = parameters.build(GatesConfig, values["gates"], "gates")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    if pretrained.use:
        check_made(PRETRAINED, pretrained)
    accelerator = start(compute, seed, shared=True)
    table("warmup_dldm", {**asdict(dldm.ldm), "levels": dldm.ldm.resolved(), **asdict(config)})
    code = import_closure(Path(__file__), ROOT)
    chosen = {
        "use": pretrained.use,
        "seed": seed,
        "ldm": asdict(dldm.ldm),
        "optim": asdict(config),
        "compute": asdict(compute),
        "processes": accelerator.num_processes,
    }
    sources = store.sources(config.sources, "warmup_dldm.sources")
    folder = scratch_dir(
        "warmup_dldm", fingerprint(chosen, [CLIPS / "index.parquet", CLIPS / "clips.json", PRETRAINED], code)
    )
    check_spread(dldm.ldm, config.batch, store.clip_frames)
    rows = store.train_rows(sources)
    walks = shared_walks(accelerator, store, rows, seed, config.batch, "warmup_dldm.batch")
    with runtime("warmup_dldm"):
        ldm = LDM(dldm.ldm).to(accelerator.device)
        if pretrained.use:
            if left := take_over(ldm, PRETRAINED / "ldm.safetensors"):
                say(f"{len(left)} weights of the LDM do not fit the pretrained ones and start at random")
        judged = pick_clips(store, "train", 2, seed, sources)
        look = watch(accelerator, ldm, store, judged, gates, CODES_PLOT, PLOT)
        work = train(accelerator, ldm, walks, config, seed, folder, "warm up the LDM", config.micro_batch, look)
        leave_to_first(accelerator)
        ldm.eval()
        codes, levels = encode_rows(ldm, store, judged), dldm.ldm.resolved()
        figures = code_figures(codes, levels, videos_of(store, judged))
        figures["train.recon"] = work.averages["train/recon"]
        probe = pick_unseen(store, seed, sources, judged)
        figures |= judge_coarse(ldm, store, probe, seed)
        rendered, sheet = judge_rendering(LDMRenderer(ldm), store, probe, seed)
        write_sheet(PLOT, sheet)
        write_health(CODES_PLOT, code_health(codes, levels), gates.step_entropy_share, gates.digit_entropy_share)
        check_gates(figures | rendered, gates, dldm.codebook, codes.shape, CODES_PLOT, PLOT)
        with atomic_dir(OUT) as temporary:
            save_ldm(ldm, temporary)
        write_curves(work.history, LOGS)
    write_metrics("warmup_dldm", figures | rendered, seed=seed, n=len(rows))
    clear(folder)


if __name__ == "__main__":
    run(main)
