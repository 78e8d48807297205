"""Teach the VDM to read codes before the joint stage: the codes stand still, and nothing else tells it what moves.

Without this the joint stage begins with a VDM that has never seen a code, beside a coarse video that says all that the
codes do; in its few steps the VDM learns to look at that alone (our choice; docs/tried.md).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vw2.console import UserError
from vw2.data.walks import Walks
from vw2.files import read_json
from vw2.media.colours import recolour
from vw2.media.resize import to_model
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ranges import at_least
from vw2.models.timeline import fill
from vw2.provenance import check_record
from vw2.training.compute import generator
from vw2.training.run import Group, OptimConfig, Run

RECORD = "record.json"


@dataclass(frozen=True)
class PretrainVDMConfig:
    """Group `pretrain_vdm` of params.yaml."""

    use: bool  # false: the joint stage begins with the prior's VDM, which has seen no codes
    clips: int
    optim: OptimConfig

    def __post_init__(self):
        at_least("pretrain_vdm", self, clips=1)

    def record(self) -> dict:
        """What is kept beside the weights, to be compared with params.yaml."""
        return {key: value for key, value in asdict(self).items() if key != "use"}


def check_taught(saved: Path, config: PretrainVDMConfig, kind: str) -> None:
    """Refuse a VDM that was taught with other parameters, or for a back end of another kind than the mini prior.

    Raises: UserError naming the first one.
    """
    if kind != "mini":
        raise UserError(
            f"pretrain_vdm.use goes with dldm.backend.kind mini, whose VDM was taught, got {kind}; set it to false"
        )
    check_record(read_json(saved / RECORD), config.record(), "pretrain_vdm", "dvc repro -f pretrain_vdm")


def from_codes_alone(config: DLDMConfig) -> DLDMConfig:
    """The dLDM without its control branch, sampling from noise, so that what it draws is what the codes told it."""
    return replace(
        config,
        control=replace(config.control, blocks=0, weights=None),
        sampling_start=1.0,
        sampling_steps=8,
        sampling_shift=3.0,
    )


def teach(accelerator, dldm: DLDM, vae, walks: Walks, optim: OptimConfig, seed: int, folder: Path) -> Run:
    """Denoising of whole clips along walks; projection and VDM learn, the LDM gives the codes and stays as it is."""
    ldm = dldm.ldm.requires_grad_(False)
    work = Run(accelerator, [Group(dldm.projection), Group(dldm.vdm)], optim, folder, "teach the VDM to read codes")
    dldm.train()
    ldm.eval()
    for step in work:
        walked = walks[step]
        video = to_model(torch.from_numpy(walked.frames).to(accelerator.device))
        video = recolour(video, walked.keys, dldm.config.colours, seed)
        with torch.no_grad():
            codes, _ = ldm.quantise(ldm.features(ldm.shrink(video)))
            clean = vae.encode(fill(video))
        first = clean[:, :, :1]
        with accelerator.autocast():
            loss = dldm.denoising(clean, first, first, codes, generator(seed, 7, step))
        work.update(loss, {"train/denoise": loss.detach()})
    return work
