"""Weights from elsewhere: what fits is taken over, what does not stays as it was drawn."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn


def take_over(module: nn.Module, file: Path) -> list[str]:
    """Copy the weights of a safetensors file that have the same name and shape in `module`, whatever their precision.

    Returns: the names of `module` that got none (say, because dldm.queries differs), sorted.
    """
    weights, mine = load_file(file), module.state_dict()
    fitting = {key: value for key, value in weights.items() if key in mine and value.shape == mine[key].shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(set(mine) - set(fitting))
