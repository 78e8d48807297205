"""Weights from elsewhere: what fits is taken over, what does not stays as it was drawn."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The weights of one part of the dLDM in <folder>/dldm.safetensors, its name taken off the keys."""
    weights = load_file(folder / "dldm.safetensors")
    return {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}


def take_over(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy weights of the same name and shape into `module`.

    Returns: the names of `module` that got none (say, because dldm.queries differs), sorted.
    """
    mine = module.state_dict()
    fitting = {key: value for key, value in weights.items() if key in mine and value.shape == mine[key].shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(set(mine) - set(fitting))
