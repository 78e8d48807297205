"""Check all settings before the long trainings: what is wrong with the last group should not cost hours.

In:  every group of params.yaml; data/prior, data/pretrained, data/pretrained_vdm (what they were made with and from).
Out: data/checked.json, always the same (and committed), so that nothing is made anew because this was run again.
Time and memory at the committed sizes: 3 seconds, 1 GiB. Looked for: keys that are unknown, missing or ill-typed,
values that contradict each other, files that are not there, frozen outputs that were made with other settings. What
hangs on the data (names of sources, few videos) or on the machine is told by the stages that meet it.
"""

from pathlib import Path

import typer

from vw2 import params as parameters
from vw2.console import refusals, run, say
from vw2.data.clips import ClipConfig
from vw2.data.guards import SplitsConfig
from vw2.data.sources.base import IngestConfig
from vw2.data.sources.mixture import parts
from vw2.evaluation.videos import EvaluateConfig
from vw2.models.backends import check_guardrail, check_size, sketch
from vw2.models.begin import check_files, check_precision, check_prior
from vw2.models.dinov2 import check_folder
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.layers import device_of
from vw2.rollout import RolloutConfig
from vw2.scratch import atomic_file
from vw2.training.ar import TrainARConfig
from vw2.training.classifier import TrainConfig
from vw2.training.compute import ComputeConfig
from vw2.training.fit import fit
from vw2.training.gates import GatesConfig
from vw2.training.joint import JointConfig
from vw2.training.pretrain_ldm import PretrainLDMConfig, check_made
from vw2.training.pretrain_prior import PretrainConfig
from vw2.training.pretrain_vdm import PretrainVDMConfig, check_taught
from vw2.training.run import LongOptimConfig
from vw2.training.warmup import WarmupConfig, check_batches, check_spread
from vw2.worlds.craft import CraftConfig

PRIOR = Path("data/prior")
PRETRAINED = Path("data/pretrained")
TAUGHT = Path("data/pretrained_vdm")
OUT = Path("data/checked.json")
GROUPS = {  # all but those that need one another
    "compute": ComputeConfig,
    "splits": SplitsConfig,
    "ingest": IngestConfig,
    "gates": GatesConfig,
    "warmup_dldm": WarmupConfig,
    "train_dldm": JointConfig,
    "train_plain_ldm": LongOptimConfig,
    "ar": TrainARConfig,
    "classifier": TrainConfig,
    "rollout": RolloutConfig,
    "evaluate": EvaluateConfig,
}


def check_dldm(config: DLDMConfig, clip: ClipConfig, prior: Path) -> None:
    """Raise UserError if the dLDM cannot be made, or cannot draw clips of this size; published weights stay unread."""
    check_files(config)
    check_guardrail(config.backend)
    with refusals():
        check_precision(config)
    pair = sketch(config.backend, prior)
    if pair is not None:
        check_size(pair, clip.height, clip.width, 1 + config.steps_at_once(clip.frames))
        with refusals(), device_of(pair.vdm):
            DLDM(config, pair)


def check_frozen(values: dict, config: DLDMConfig) -> None:
    """Raise UserError if frozen outputs that the run will use were made with other settings, or one from others."""
    pretrained = parameters.build(PretrainLDMConfig, values["pretrain_ldm"], "pretrain_ldm")
    taught = parameters.build(PretrainVDMConfig, values["pretrain_vdm"], "pretrain_vdm")
    if config.backend.kind == "mini":
        check_prior(PRIOR, values["prior"])
    if pretrained.use:
        check_made(PRETRAINED, pretrained)
    if taught.used(config):
        check_taught(TAUGHT, taught, config, pretrained.use, PRIOR, PRETRAINED)


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Check the settings of all stages, within seconds."""
    values = parameters.load(params)
    built = {group: parameters.build(kind, values[group], group) for group, kind in GROUPS.items()}
    parameters.build(CraftConfig, values["craft"], "craft", seed=values["seed"])
    parameters.build(PretrainConfig, values["prior"], "prior")
    parts(built["ingest"])
    clip = parameters.build(ClipConfig, values["clip"], "clip")
    config = fit(parameters.build(DLDMConfig, values["dldm"], "dldm"), clip.frames)
    for group in ("warmup_dldm", "train_plain_ldm"):
        check_batches(config, built[group].micro_batch)
        check_spread(config, built[group].batch, clip.frames)
    check_frozen(values, config)
    check_dldm(config, clip, PRIOR)
    backbone = built["classifier"].model.backbone
    if backbone.kind == "dinov2":
        check_folder(backbone.weights)
    with atomic_file(OUT) as temporary:
        temporary.write_text('{"checked": true}\n', encoding="utf-8")
    say("the settings go together")


if __name__ == "__main__":
    run(main)
