"""Files of the LDM: <folder>/ldm.safetensors and config.json, or its part of a dLDM's <folder>/dldm.safetensors."""

from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vw2.files import read_json, write_json
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.pretrained import damaged, read_weights, save_weights
from vw2.models.settings import settings

PART = "ldm."  # what stands before its names among those of a dLDM


def save_ldm(ldm: LDM, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write weights, floating ones as `dtype`, and the config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(ldm, folder / "ldm.safetensors", dtype)
    write_json(folder / "config.json", asdict(ldm.config))


def read_ldm_config(folder: Path) -> LDMConfig:
    """What `save_ldm` wrote beside the weights."""
    return settings(read_json(folder / "config.json"), LDMConfig(), "ldm")


def load_ldm(folder: Path) -> LDM:
    """An LDM as saved by `save_ldm`, in eval mode."""
    ldm = LDM(read_ldm_config(folder))
    ldm.load_state_dict(read_weights(folder / "ldm.safetensors"))
    return ldm.eval()


def load_codec(folder: Path) -> LDM:
    """The LDM of a plain LDM's or of a dLDM's folder, in eval mode: all that codes are read and written with.

    Of a dLDM neither VDM nor VAE is needed, nor are their weights read.
    """
    if not (folder / "dldm.safetensors").exists():
        return load_ldm(folder)
    saved, own = read_json(folder / "config.json"), {each.name for each in fields(LDMConfig)}
    ldm = LDM(settings({key: value for key, value in saved.items() if key in own}, LDMConfig(), "dldm"))
    try:
        with safe_open(folder / "dldm.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith(PART)]  # noqa: SIM118  (it is no mapping)
            weights = {name.removeprefix(PART): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise damaged(folder / "dldm.safetensors", error) from None
    ldm.load_state_dict(weights)
    return ldm.eval()
