"""What the joint stage begins with: a warm LDM, and the VDM of a back end."""

from pathlib import Path

from vw2.console import UserError
from vw2.models.adapt import start_vdm
from vw2.models.backends import load_backend
from vw2.models.dldm import DLDM, DLDMConfig
from vw2.models.pretrained import load_whole, take_over
from vw2.models.renderer import DLDMRenderer


def begin_joint(config: DLDMConfig, warm: Path, prior_folder: Path) -> DLDMRenderer:
    """The dLDM with warm LDM and pretrained VDM (or a random one, `dldm.vdm.train`).

    Args:
        warm: folder of the LDM of the warm-up.
        prior_folder: of the mini prior.
    Raises: UserError if the LDM that `config` asks for is another one, or the control branch's weights do not fit.
    """
    prior = load_backend(config.backend, prior_folder)
    start_vdm(prior, config.vdm)
    dldm = DLDM(config, prior)
    if left := take_over(dldm.ldm, warm / "ldm.safetensors"):
        raise UserError(
            f"{len(left)} weights of the LDM that the group dldm asks for are not in {warm}, {left[0]} among them; "
            "put the group back as it was, or make the weights anew (dvc repro warmup_dldm)"
        )
    if config.control.weights is not None:
        load_whole(dldm.control, Path(config.control.weights), "dldm.control.weights")
    return DLDMRenderer(dldm, prior)
