"""Train the plain LDM (VideoWorld): the warm LDM goes on by reconstruction alone, as many clips as the joint stage.

In:  data/clips, data/manifest.parquet, data/truth.parquet, data/warmup; params groups seed, compute, dldm,
     train_plain_ldm (and train_dldm.sources: it stands beside the dLDM and sees the same clips).
Out: data/plain_ldm/dldm/{ldm.safetensors,config.json}, metrics/plain_ldm/train_dldm.json (the keys of train_dldm, drawn
     by the coarse decoder), plots/plain_ldm/train_dldm, plots/plain_ldm/train_dldm.png.
Run it with all that follows from it by `make plain-ldm`. Time: as long as the joint stage.
"""

from dataclasses import asdict
from pathlib import Path

import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import run, table
from vw2.data import manifest
from vw2.data.shards import ClipStore
from vw2.files import read_table
from vw2.media.sheet import write_sheet
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm_files import load_ldm, save_ldm
from vw2.models.renderer import LDMRenderer
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training.compute import ComputeConfig, start
from vw2.training.curves import write_curves
from vw2.training.fit import fit
from vw2.training.judge import encode_rows, judge_coarse, judge_rendering, pick_clips, pick_shaken, pick_unseen
from vw2.training.parallel import leave_to_first, shared_walks
from vw2.training.probes import code_changes
from vw2.training.run import LongOptimConfig
from vw2.training.warmup import check_spread, train

CLIPS = Path("data/clips")
TRUTH = Path("data/truth.parquet")
MANIFEST = Path("data/manifest.parquet")
WARMUP = Path("data/warmup")
OUT = Path("data/plain_ldm/dldm")
LOGS = Path("plots/plain_ldm/train_dldm")
PLOT = Path("plots/plain_ldm/train_dldm.png")
ROOT = Path(__file__).parents[1]


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Train the plain LDM, the baseline without a video diffusion model."""
    values = parameters.load(params)
    seed = values["seed"]
    store = ClipStore(CLIPS)
    dldm = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), store.clip_frames)
    config = parameters.build(LongOptimConfig, values["train_plain_ldm"], "train_plain_ldm")
    chosen_sources = parameters.leaf(values, "train_dldm.sources", tuple[str, ...] | None)
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    accelerator = start(compute, seed, shared=True)
    table("train_plain_ldm", asdict(dldm.ldm) | asdict(config))
    chosen = {
        "seed": seed,
        "ldm": asdict(dldm.ldm),
        "optim": asdict(config),
        "sources": chosen_sources,
        "compute": asdict(compute),
        "processes": accelerator.num_processes,
    }
    levels = dldm.ldm.resolved()
    truth, about = read_table(TRUTH), manifest.read(MANIFEST)
    sources = store.sources(chosen_sources, "train_dldm.sources")
    inputs = [CLIPS / "index.parquet", CLIPS / "clips.json", WARMUP]
    folder = scratch_dir("train_plain_ldm", fingerprint(chosen, inputs, import_closure(Path(__file__), ROOT)))
    check_spread(dldm.ldm, config.batch, store.clip_frames)
    rows = store.train_rows(sources)
    walks = shared_walks(accelerator, store, rows, seed + 1, config.batch, "train_plain_ldm.batch")
    with runtime("plain_ldm/train_dldm"):
        ldm = load_ldm(WARMUP).to(accelerator.device)
        judged = pick_clips(store, "train", 2, seed, sources)
        warm = encode_rows(ldm, store, judged)
        title = "train the plain LDM"
        work = train(accelerator, ldm, walks, config, seed + 1, folder, title, config.micro_batch)
        leave_to_first(accelerator)
        ldm.eval()
        codes = encode_rows(ldm, store, judged)
        figures = code_changes(warm, codes, store, judged, truth, about, seed, levels)
        figures["train.recon"] = work.averages["train/recon"]
        still = pick_unseen(store, seed, sources, judged)
        figures |= judge_coarse(ldm, store, still, seed)
        rendered, sheet = judge_rendering(LDMRenderer(ldm), store, still, seed)
        if shaken := pick_shaken(store, seed, sources):
            rendered |= judge_rendering(LDMRenderer(ldm), store, shaken, seed, "render_nuisance")[0]
        write_sheet(PLOT, sheet)
        with atomic_dir(OUT) as temporary:
            save_ldm(ldm, temporary)
        write_curves(work.history, LOGS)
    write_metrics("plain_ldm/train_dldm", figures | rendered, seed=seed, n=len(rows))
    clear(folder)


if __name__ == "__main__":
    run(main)
