"""The VDM and the projection that have learned to read codes: what stages.pretrain_vdm keeps of a dLDM."""

from pathlib import Path

import torch
from torch import nn

from vw2.console import UserError, console
from vw2.models.dldm import DLDM
from vw2.models.pretrained import save_weights, take_over

VDM, PROJECTION = "vdm.safetensors", "projection.safetensors"


def save_taught(dldm: DLDM, folder: Path) -> None:
    """Write both, in bfloat16."""
    save_weights(dldm.vdm, folder / VDM, torch.bfloat16)
    save_weights(dldm.projection, folder / PROJECTION, torch.bfloat16)


def take_vdm(vdm: nn.Module, folder: Path) -> None:
    """Take over the VDM, every weight of it. Raises: UserError if one does not fit."""
    if left := take_over(vdm, folder / VDM):
        raise UserError(
            f"{len(left)} weights of the VDM are not in {folder}, {left[0]} among them: it was taught as another one; "
            "bring that folder back (git checkout), or set pretrain_vdm.use to false (and in the mini "
            "gates.token_margin to null)"
        )


def take_projection(projection: nn.Module, folder: Path) -> None:
    """Take over the projection; what does not fit (with other dldm.queries, say) stays as it is, and is told."""
    if left := take_over(projection, folder / PROJECTION):
        named = ", ".join(f"projection.{name}" for name in left[:3])
        console.print(f"not in {folder}, so they begin at random: {len(left)} weights, {named} among them")
