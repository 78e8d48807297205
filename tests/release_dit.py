"""The authors' tiny DiT and control branch with recorded tensors, as our classes. Where only the committed part of the
fixtures is there, `whole` is False and the tests that need all of it are skipped."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vw2.interop.dit import DiTConfig, import_dit
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
PART = Path(__file__).parent / "fixtures" / "control_dit_block0.safetensors"
SHAPES = REFERENCE / "state_dict_shapes.json"
whole = (REFERENCE / "fixtures" / "control_dit_tiny_io.safetensors").is_file()
needs_whole = pytest.mark.skipif(not whole, reason="the whole set of fixtures is not here")
needs_shapes = pytest.mark.skipif(not SHAPES.is_file(), reason="the list of the authors' keys is not here")
TINY = {"heads": 4, "head_width": 12, "adaln_rank": 8, "context": 32}
RELEASE = ControlConfig(blocks=2, weight=0.5, hint="mlp", own_time=True)


def read(name: str) -> dict[str, Tensor]:
    return load_file(REFERENCE / "fixtures" / f"control_dit_tiny_{name}.safetensors")


@cache
def recorded() -> dict[str, Tensor]:
    """Inputs and outputs: all of them, or those of the committed part."""
    if whole:
        return read("io")
    return {key[3:]: value for key, value in load_file(PART).items() if key.startswith("io.")}


@cache
def checkpoint() -> dict[str, Tensor]:
    """As on disk: net. and net_ctrl. keys."""
    parts = (("net.", "dit"), ("net_ctrl.", "ctrl"))
    return {prefix + key: value for prefix, name in parts for key, value in read(name).items()}


def release_networks(attention: str = "full") -> tuple[CosmosVDM, ControlBranch]:
    """Both networks with the recorded weights."""
    config = CosmosConfig(layers=4, attention=attention, **TINY)
    vdm, branch, _ = import_dit(checkpoint(), DiTConfig(config, RELEASE))
    return vdm.eval(), branch.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """noisy, time, first, context of the recorded pass."""
    io = recorded()
    return io["x"], io["timesteps"][:, 1], io["x"][:, :, :1], io["crossattn_emb"]


def close(mine: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)
