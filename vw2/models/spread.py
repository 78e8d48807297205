"""A VDM spread over GPUs, CPU and a folder on disk, to render with one that fits on no single device (accelerate)."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_max_memory
from torch import nn

from vw2.console import UserError

SHARE = 0.8  # of the memory that is free; what passes through the layers needs the rest (our choice)


def room() -> dict[int | str, int]:
    """Bytes that weights may take up on each GPU, by number, and on the CPU."""
    return {device: int(SHARE * free) for device, free in get_max_memory().items()}


def spread(vdm: nn.Module, device: torch.device, offload: str | None) -> None:
    """Spread the transformer of a VDM, which must hold its final weights on the CPU; the rest of it goes to `device`.

    GPUs are filled first, then the CPU, then the folder; no block is split. A layer that is not on a GPU comes there
    for its turn.

    Args:
        offload: folder for weights that fit nowhere else; None: there is none. A new folder within it holds them as
            long as the VDM lives, so that no pass can read what an earlier one left.
    Raises: UserError if the weights need a folder and there is none.
    """
    net = vdm.transformer
    whole = list(net._no_split_modules or ())
    places = infer_auto_device_map(net, room(), no_split_module_classes=whole, clean_result=False)  # never {"": "disk"}
    folder = None
    if "disk" in places.values():
        if offload is None:
            raise UserError(
                "the VDM fits into no memory of this machine, and dldm.backend.offload is null; set it to a folder"
            )
        Path(offload).mkdir(parents=True, exist_ok=True)
        vdm.offloaded = TemporaryDirectory(prefix="vw2-", dir=offload)
        folder = vdm.offloaded.name
    dispatch_model(net, places, offload_dir=folder)
    for own in (*vdm.parameters(recurse=False), *vdm.buffers(recurse=False)):  # the null token is no part of the net
        own.data = own.data.to(device)
