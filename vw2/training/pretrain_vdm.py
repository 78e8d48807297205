"""Teach the VDM to read codes before the joint stage: the codes stand still, and nothing else tells it what moves.

Without this the joint stage begins with a VDM that has never seen a code, beside a coarse video that says all that the
codes do; in its few steps the VDM learns to look at that alone (our choice; docs/tried.md).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from vw2.console import UserError
from vw2.data.walks import Walks
from vw2.files import read_json
from vw2.media.colours import recolour
from vw2.media.resize import to_model
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.port import VideoVAE
from vw2.models.ranges import at_least
from vw2.models.timeline import fill
from vw2.provenance import anew, check_record
from vw2.scratch import fingerprint
from vw2.streams import Stream
from vw2.training.compute import generator
from vw2.training.pretrain_ldm import RECORD, WEIGHTS
from vw2.training.run import Group, OptimConfig, Run

ADVICE = anew("pretrain_vdm")
WITHOUT = "set pretrain_vdm.use to false (and in the mini gates.token_margin to null)"


@dataclass(frozen=True)
class PretrainVDMConfig:
    """Group `pretrain_vdm` of params.yaml."""

    use: bool  # false: the joint stage begins with the prior's VDM, which has seen no codes
    clips: int
    optim: OptimConfig

    def __post_init__(self):
        at_least("pretrain_vdm", self, clips=1)

    def used(self, dldm: DLDMConfig) -> bool:
        """Whether the joint stage of this dLDM begins with the taught VDM."""
        return self.use and dldm.vdm.train != "random"

    def record(self, prior: Path, ldm: Path) -> dict:
        """What is kept beside the weights: the parameters, and which weights they were made from."""
        files = [prior / "transformer.safetensors", prior / "vae.safetensors", ldm / WEIGHTS]
        made_from = {file.as_posix(): fingerprint({}, [file], []) for file in files}
        return {key: value for key, value in asdict(self).items() if key != "use"} | {"made_from": made_from}


def check_teachable(config: DLDMConfig) -> None:
    """Refuse a dLDM whose VDM is no mini prior or reads codes through a connector. Raises: UserError naming the key."""
    if config.backend.kind != "mini" or config.connector:
        raise UserError(
            "pretrain_vdm goes with dldm.backend.kind mini and dldm.causal.connector 0, got "
            f"{config.backend.kind} and {config.connector}; {WITHOUT}"
        )


def check_taught(saved: Path, config: PretrainVDMConfig, dldm: DLDMConfig, begun: bool, prior: Path, ldm: Path) -> None:
    """Refuse a VDM that was taught with other parameters, from another prior or by another LDM than these.

    Args:
        begun: whether the codes go on from those of that LDM (pretrain_ldm.use); else it was taught another language.
        saved, prior, ldm: what the stages pretrain_vdm, pretrain_prior and pretrain_ldm made.
    Raises: UserError naming the first difference.
    """
    check_teachable(dldm)
    if not begun:
        raise UserError(
            "pretrain_vdm.use is true and pretrain_ldm.use false: the VDM was taught the codes of that LDM; set that "
            f"to true, or {WITHOUT}"
        )
    made, asked = read_json(saved / RECORD), config.record(prior, ldm)
    for file, print_ in asked.pop("made_from").items():
        if made.get("made_from", {}).get(file) != print_:
            raise UserError(
                f"the VDM in {saved} was taught with another {file}; bring that back (git checkout), or teach it anew: "
                f"{ADVICE}"
            )
    made.pop("made_from")
    check_record(made, asked, "pretrain_vdm", ADVICE)


def from_codes_alone(config: DLDMConfig) -> DLDMConfig:
    """The dLDM without its control branch, sampling from noise, so that what it draws is what the codes told it.

    All of its VDM learns, whatever learns in the joint stage. Raises: UserError, see check_teachable.
    """
    check_teachable(config)
    return replace(
        config,
        vdm=replace(config.vdm, train="full"),
        control=replace(config.control, blocks=0, weights=None),
        sampling_start=1.0,
        sampling_remainder="lost",
        sampling_steps=8,
        sampling_shift=3.0,
    )


def teach(
    accelerator: Accelerator, dldm: DLDM, vae: VideoVAE, walks: Walks, optim: OptimConfig, seed: int, folder: Path
) -> Run:
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
            loss = dldm.denoising(clean, first, first, codes, generator(seed, Stream.DENOISING, step))
        work.update(loss, {"train/denoise": loss.detach()})
    return work
