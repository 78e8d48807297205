"""Train the dLDM jointly: codes learn from the denoising loss of the pretrained VDM (VideoWorld 2, sec. 3 and 5.5).

In:  data/clips, data/manifest.parquet, data/truth.parquet, data/warmup, data/prior, data/pretrained,
     data/pretrained_vdm; params groups seed, compute, prior, dldm, pretrain_ldm (its use), pretrain_vdm, train_dldm,
     gates.
Out: data/dldm/{dldm.safetensors,config.json}, metrics/train_dldm.json, plots/train_dldm (TSV per series),
     plots/train_dldm.png (real, coarse, rendered with own and with another clip's codes; unseen appearance),
     plots/train_dldm_codes.png (entropy by step and by digit).
Time and memory at the committed sizes: 3 to 6 minutes on two cores, 4 GiB. Headline: render.psnr (moving pixels, unseen
appearance, nuisance 0) above render.psnr_other_codes and render.psnr_copy. A run that breaks a gate (dead or ignored
codes, a coarse video that stands still) stops with one sentence and the pictures. Interrupted runs go on where they
stopped.
Tiny run: python -m stages.preset smoke && dvc repro train_dldm
"""

from dataclasses import asdict
from pathlib import Path

import typer

from vw2 import params as parameters
from vw2.closure import import_closure
from vw2.console import run, table
from vw2.data import manifest
from vw2.data.shards import ClipStore
from vw2.evaluation.health import code_health, write_health
from vw2.files import read_table
from vw2.media.sheet import write_sheet
from vw2.models.backends import check_guardrail, check_size, guardrail_of
from vw2.models.begin import begin_joint, check_files, check_prior
from vw2.models.dldm_config import DLDMConfig
from vw2.models.renderer import save_dldm
from vw2.provenance import runtime, write_metrics
from vw2.scratch import atomic_dir, clear, fingerprint, scratch_dir
from vw2.training import judge
from vw2.training.compute import ComputeConfig, start
from vw2.training.curves import write_curves
from vw2.training.fit import fit
from vw2.training.gates import GatesConfig, check_gates
from vw2.training.joint import JointConfig, train
from vw2.training.parallel import leave_to_first, shared_walks
from vw2.training.pretrain_vdm import PretrainVDMConfig, check_taught
from vw2.training.probes import code_changes
from vw2.training.watch import watch

CLIPS = Path("data/clips")
TRUTH = Path("data/truth.parquet")
MANIFEST = Path("data/manifest.parquet")
WARMUP = Path("data/warmup")
PRIOR = Path("data/prior")
PRETRAINED = Path("data/pretrained")
TAUGHT = Path("data/pretrained_vdm")
OUT = Path("data/dldm")
LOGS = Path("plots/train_dldm")
PLOT = Path("plots/train_dldm.png")
CODES_PLOT = Path("plots/train_dldm_codes.png")
ROOT = Path(__file__).parents[1]


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Train codes, projection, control branch and VDM together (the joint stage of the dLDM)."""
    values = parameters.load(params)
    seed = values["seed"]
    store = ClipStore(CLIPS)
    dldm_config = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), store.clip_frames)
    config = parameters.build(JointConfig, values["train_dldm"], "train_dldm")
    pretrained = parameters.build(PretrainVDMConfig, values["pretrain_vdm"], "pretrain_vdm")
    gates = parameters.build(GatesConfig, values["gates"], "gates")
    compute = parameters.build(ComputeConfig, values["compute"], "compute")
    levels = dldm_config.ldm.resolved()
    accelerator = start(compute, seed, shared=True)
    table("train_dldm", {**asdict(dldm_config), "levels": levels, **asdict(config)})
    chosen = {"seed": seed, "dldm": asdict(dldm_config), "train": asdict(config), "compute": asdict(compute)}
    chosen |= {"processes": accelerator.num_processes}
    if dldm_config.backend.kind == "mini":
        check_prior(PRIOR, values["prior"])
    taught = TAUGHT if pretrained.used(dldm_config) else None
    if taught is not None:
        begun = parameters.leaf(values, "pretrain_ldm.use", bool)
        check_taught(taught, pretrained, dldm_config, begun, PRIOR, PRETRAINED)
    check_files(dldm_config)
    sources = store.sources(config.sources, "train_dldm.sources")
    inputs = [CLIPS / "index.parquet", CLIPS / "clips.json", WARMUP, PRIOR, *dldm_config.files.values()]
    inputs += [] if taught is None else [taught]
    folder = scratch_dir("train_dldm", fingerprint(chosen, inputs, import_closure(Path(__file__), ROOT)))
    truth, about = read_table(TRUTH), manifest.read(MANIFEST)
    rows = store.train_rows(sources)
    walks = shared_walks(accelerator, store, rows, seed, config.optim.batch, "train_dldm.optim.batch")
    with runtime("train_dldm"):
        check_guardrail(dldm_config.backend)  # a missing one is told before the training
        renderer = begin_joint(dldm_config, WARMUP, PRIOR, taught)
        renderer.place(accelerator.device, accelerator.autocast)
        dldm, vae = renderer.dldm, renderer.prior.vae
        check_size(renderer.prior, store.height, store.width, 1 + dldm_config.steps_at_once(store.clip_frames))
        judged = judge.pick_clips(store, "train", 2, seed, sources)
        warm = judge.encode_rows(dldm.ldm.eval(), store, judged)
        look = watch(accelerator, dldm.ldm, store, judged, gates, CODES_PLOT, PLOT)
        work = train(accelerator, dldm, vae, walks, config, seed, folder, look)
        leave_to_first(accelerator)
        renderer.eval()
        joint = judge.encode_rows(dldm.ldm, store, judged)
        figures = code_changes(warm, joint, store, judged, truth, about, seed, levels)
        figures |= {f"train.{key}": work.averages[f"train/{key}"] for key in ("denoise", "recon")}
        still = judge.pick_unseen(store, seed, sources, judged)
        figures |= judge.judge_coarse(dldm.ldm, store, still, seed)
        figures |= judge.judge_denoising(dldm, vae, store, still, seed, accelerator.autocast)
        rendered, sheet = judge.judge_rendering(renderer, store, still, seed)
        write_sheet(PLOT, guardrail_of(renderer.backend, accelerator.device).sheet(sheet))
        write_health(CODES_PLOT, code_health(joint, levels), gates.step_entropy_share, gates.digit_entropy_share)
        check_gates(figures | rendered, gates, dldm_config.codebook, joint.shape, CODES_PLOT, PLOT)
        if shaken := judge.pick_shaken(store, seed, sources):
            rendered |= judge.judge_rendering(renderer, store, shaken, seed, "render_nuisance")[0]
        with atomic_dir(OUT) as temporary:
            save_dldm(dldm, temporary)
        write_curves(work.history, LOGS)
    write_metrics("train_dldm", figures | rendered, seed=seed, n=len(rows))
    clear(folder)


if __name__ == "__main__":
    run(main)
