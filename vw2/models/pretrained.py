"""Weights in files: written as a stage keeps them; of those read, what fits is taken over, or all of it must fit."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vw2.console import UserError


def save_weights(module: nn.Module, file: Path, dtype: torch.dtype | None = None) -> None:
    """Write all of a module's weights, floating ones as `dtype` (None: as they are)."""
    cast = lambda value: value.to(dtype) if dtype and value.is_floating_point() else value  # noqa: E731
    save_file({key: cast(value).contiguous().cpu() for key, value in module.state_dict().items()}, file)


def damaged(file: Path, error: SafetensorError) -> UserError:
    """What to say of a safetensors file that a stage wrote and that cannot be read."""
    return UserError(f"{file} is damaged ({error}); remove it and run the stage that makes it")


def read_weights(file: Path) -> dict[str, Tensor]:
    """All of a safetensors file that a stage wrote. Raises: UserError if it is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; run the stage that makes it (dvc repro)") from None
    except SafetensorError as error:
        raise damaged(file, error) from None


def take_over(module: nn.Module, file: Path) -> list[str]:
    """Copy the weights of a safetensors file that have the same name and shape in `module`, whatever their precision.

    Returns: the names of `module` that got none (say, because dldm.queries differs), sorted.
    """
    weights, mine = read_weights(file), module.state_dict()
    fitting = {key: value for key, value in weights.items() if key in mine and value.shape == mine[key].shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(set(mine) - set(fitting))


def unused(module: nn.Module, file: Path) -> list[str]:
    """The names in a safetensors file that `module` has no place for (say, of layers that it lacks), sorted."""
    try:
        with safe_open(file, framework="pt") as weights:
            return sorted(set(weights.keys()) - set(module.state_dict()))
    except SafetensorError as error:
        raise damaged(file, error) from None


def read_safetensors(file: Path, key: str) -> dict[str, Tensor]:
    """All of a safetensors file, which the parameter `key` names. Raises: UserError if it is missing or broken."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} could not be read ({error}); set {key} to a safetensors file, or to null") from None


def load_whole(module: nn.Module, file: Path, key: str) -> None:
    """Load a safetensors file that holds exactly the weights of `module`, whatever their precision.

    Args:
        key: of the parameter that names the file, for messages.
    Raises: UserError if the file is missing or broken, or does not fit; `module` is then untouched.
    """
    weights = read_safetensors(file, key)
    mine = {name: value.shape for name, value in module.state_dict().items()}
    theirs = {name: value.shape for name, value in weights.items()}
    odd = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
    if odd:
        raise UserError(
            f"{len(odd)} of {len(mine | theirs)} weights in {file} are missing, too many or of another shape, first "
            f"{odd[0]}; change {key} or the sizes beside it"
        )
    module.load_state_dict(weights)
