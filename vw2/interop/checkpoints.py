"""Weights of others into our models and back: files, wrappers around their names, and which of their names are ours.

What is particular to a model, its names above all, stands in a `KeyMap` (keys_tokenizer.py for one). Nothing is chosen
in silence: of two tensors, or two networks, that differ and may both be meant the user keeps one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vw2.console import UserError
from vw2.interop.plain import oddity, read_plain, reason, write_plain
from vw2.interop.report import SHOWN, KeyReport, Misfit, compare
from vw2.scratch import atomic_file

# put into names by torch.compile, FSDP, activation checkpointing
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# what may stand before bare names: top-level keys of a file
CONTAINERS = ("", "model.", "state_dict.", "model_state_dict.", "params.")
PARALLEL = "module"  # part of names that DistributedDataParallel puts in, wherever it is wrapped around
# parts of names of averaged weights, beside those that begin or end with ema
AVERAGES = ("ema", "model_ema", "averaged_model")
DEPTH, ENTRIES = 16, 200_000  # the most of nested dictionaries; no training state comes near, hostile files do


@dataclass(frozen=True)
class KeyMap:
    """How the authors name the weights of one model."""

    title: str  # of the model, for messages
    theirs: Callable[[str], str]  # our name -> theirs
    prefixes: tuple[str, ...] = ()  # what their files may put in front of all names of this model
    constants: Callable[[nn.Module], dict[str, Tensor]] = lambda model: {}  # theirs that are no weights of ours
    spare: Callable[[str], bool] = lambda name: False  # theirs that ours do without, whether there or not


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a .pt, .pth or .safetensors file on the CPU; nested dictionaries become dotted names.

    Raises: UserError if the file is missing, broken, or holds anything that only running its code could load.
    """
    wanted = "expected .safetensors, or a .pt that torch.load(weights_only=True) reads; download it again or save its "
    if path.suffix != ".safetensors":
        tree = read_plain(path, "weights", f"{wanted}state dict")
    elif path.is_file():
        try:
            tree = load_file(path)
        except (PermissionError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"{path} is no file of plain weights ({reason(error)}); {wanted}state dict") from None
    else:
        raise UserError(f"{path} does not exist; check the path")
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, expected a dictionary of tensors; save its state dict")
    return flatten(tree, path)


def flatten(tree: Mapping, path: Path) -> dict[str, Tensor]:
    """Nested dictionaries -> dotted names of the tensors in them; wrappers around names go.

    Args:
        path: of their file, for messages.
    Raises: UserError if dictionaries are nested without end or hold too much, a tensor has no values, or two that
        differ come to bear one name.
    """
    found: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(entries(tree, path)):
        if count == ENTRIES:
            raise UserError(f"{path} holds more than {ENTRIES} entries, expected weights; save its state dict alone")
        if not isinstance(value, Tensor):
            continue
        written = name
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        head, _, last = name.rpartition(".")
        if averaged(head):  # trackers of averages write ema.net-blocks-0-..., as no buffer's name may hold dots
            name = f"{head}.{last.replace('-', '.')}"
        if kind := oddity(value):
            raise UserError(f"{path}: {name} is a {kind} tensor, expected one with all its values; save it dense")
        put(found, name, value, written)
    return found


def put(found: dict[str, Tensor], name: str, value: Tensor, written: str) -> None:
    """Add a tensor to those found, under a name that is made from the one written in the file.

    Raises: UserError if another tensor bears the name already; the same one twice does no harm.
    """
    if name in found and not identical(found[name], value):
        raise UserError(
            f"expected one tensor {name} in the file, got two that differ, the second written {written}; save the one "
            "that is meant"
        )
    found[name] = value


def identical(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors have the same values in the same precision, or neither is there."""
    if one is other or one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def entries(tree: Mapping, path: Path, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, object]]:
    """Dotted names and values of nested dictionaries, they themselves included. Raises: as `flatten`."""
    if not depth:
        raise UserError(f"{path} nests dictionaries deeper than {DEPTH}, expected weights; save its state dict alone")
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from entries(value, path, f"{prefix}{key}.", depth - 1)


def averaged(lead: str) -> bool:
    """Whether what stands before a name says that the weights are averaged (EMA)."""
    return any(part in AVERAGES or part.startswith("ema_") or part.endswith("_ema") for part in lead.split("."))


def plain(lead: str) -> str:
    """What stands before a name without signs of averaging or parallel training: module.network_ema. -> network."""
    parts = [part for part in lead.split(".") if part not in (*AVERAGES, PARALLEL)]
    return ".".join(part.removesuffix("_ema").removeprefix("ema_") for part in parts)


def leads(weights: Mapping[str, Tensor], names: Collection[str], keys: KeyMap) -> dict[bool, list[str]]:
    """Whether averaged (EMA) -> what stands before the most of a model's names in a file: nothing, or one lead.

    It is one of CONTAINERS with one of the model's prefixes or none; where there is no such, one of the prefixes behind
    whatever else. It is several that stand before as many names, unless they are known and hold the same tensors.

    Args: names: the authors' names of the model's weights; its constants would tell copies of a network apart.
    """
    count: Counter[str] = Counter()
    for key in weights:
        parts = key.split(".")
        count.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    known = {container + prefix for container in CONTAINERS for prefix in ("", *keys.prefixes)}
    ends = tuple(f".{prefix}" for prefix in keys.prefixes)
    best: dict[bool, list[str]] = {}
    for ema in (False, True):
        own = [lead for lead in count if averaged(lead) is ema]
        usual = [lead for lead in own if plain(lead) in known]
        strange = [lead for lead in own if f".{plain(lead)}".endswith(ends)]
        most = max((count[lead] for lead in usual or strange), default=0)
        first = sorted((lead for lead in usual or strange if count[lead] == most), key=len, reverse=True)
        copies = usual and all(
            identical(weights.get(first[0] + name), weights.get(lead + name)) for lead in first[1:] for name in names
        )
        best[ema] = first[:1] if copies else first
    return best


def select(
    weights: Mapping[str, Tensor],
    names: Collection[str],
    keys: KeyMap,
    found: Mapping[bool, list[str]],
    ema: bool = False,
) -> dict[str, Tensor]:
    """The entries of one model in a file, without what stands before their names.

    Args:
        names: the authors' names of the model's entries.
        found: what stands before them, see `leads`.
        ema: the averaged weights rather than those of the last step.
    Raises: UserError if the file holds none, naming the variant that it does hold, or several.
    """
    if len(found[ema]) > 1:
        several = ", ".join(lead or "bare names" for lead in sorted(found[ema])[:SHOWN])
        raise UserError(f"expected one {keys.title} in the file, got several ({several}); save the one that is meant")
    if not found[ema]:
        wanted, got = ("averaged (EMA)", "the plain ones") if ema else ("plain", "averaged (EMA) ones")
        heads = ", ".join(sorted({key.partition(".")[0] for key in weights})[:SHOWN])
        neither = f"none of either (its names begin with {heads}); check the file"
        what = f"only {got}; turn EMA {'off' if ema else 'on'}" if found[not ema] else neither
        raise UserError(f"expected {wanted} weights of the {keys.title}, the file holds {what}")
    (prefix,) = found[ema]
    rivals = tuple(rival for rival in found[not ema] if rival.startswith(prefix))
    own = {key: value for key, value in weights.items() if key.startswith(prefix) and not key.startswith(rivals)}
    if not prefix:  # next to other models only what bears one of our first names can be ours
        heads = {name.split(".")[0] for name in names}
        own = {key: value for key, value in own.items() if key.split(".")[0] in heads}
    return {key.removeprefix(prefix): value for key, value in own.items()}


def import_weights(
    model: nn.Module, weights: Mapping[str, Tensor], keys: KeyMap, ema: bool = False, strict: bool = True
) -> KeyReport:
    """Load a checkpoint into `model`, all or nothing; a model on the meta device takes the tensors themselves.

    Args:
        ema: the averaged weights rather than those of the last step.
        strict: refuse a checkpoint with entries that the model does not have.
    Returns: the report.
    Raises:  UserError with the report's sentence if the checkpoint does not fit; `model` is then untouched.
    """
    (report,) = import_models(weights, {keys: model}, ema, strict)
    return report


def import_models(
    weights: Mapping[str, Tensor], models: Mapping[KeyMap, nn.Module], ema: bool = False, strict: bool = True
) -> list[KeyReport]:
    """`import_weights` of several models that share a checkpoint: all of them or none, one sentence for all.

    With `ema`, a model of which the file holds plain weights alone is given these, if another has averaged ones.
    """
    averages = {keys: bool(leads(weights, _names(model, keys), keys)[True]) for keys, model in models.items()}
    found = {
        keys: find(model, weights, keys, ema and (averages[keys] or not any(averages.values())))
        for keys, model in models.items()
    }
    reports = [report for _, report in found.values()]
    if not all(report.fits if strict else report.complete for report in reports):
        raise Misfit(reports)
    for keys, model in models.items():
        hollow = any(tensor.is_meta for tensor in model.state_dict().values())
        model.load_state_dict(separate(found[keys][0]) if hollow else found[keys][0], assign=hollow)
    return reports


def separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each in memory of its own, as safetensors writes them; copied only where they are not."""
    taken, found = set(), {}
    for key, value in weights.items():
        place = value.untyped_storage().data_ptr()
        found[key] = value.clone(memory_format=torch.contiguous_format) if place in taken else value.contiguous()
        taken.add(place)
    return found


def find(
    model: nn.Module, weights: Mapping[str, Tensor], keys: KeyMap, ema: bool = False
) -> tuple[dict[str, Tensor], KeyReport]:
    """What a checkpoint holds of `model`, by our names, and how it fits; `model` is only looked at."""
    ours, names, constants = model.state_dict(), _names(model, keys), keys.constants(model)
    known = set(names) | set(constants)
    found = leads(weights, names, keys)
    own = select(weights, known, keys, found, ema)
    if ema:  # averages are of parameters; other entries are those of the plain weights, of several if they agree
        parameters = {keys.theirs(key) for key, _ in model.named_parameters()}
        for key in known - parameters - set(own):
            there = [weights[lead + key] for lead in found[False] if lead + key in weights]
            if there and all(identical(there[0], each) for each in there[1:]):
                own[key] = there[0]
    own = {key: value for key, value in own.items() if key in known or not keys.spare(key)}
    # constants follow from the configuration, so they may be left out, but not be others
    wanted = {theirs: ours[key] for theirs, key in names.items()} | {k: v for k, v in constants.items() if k in own}
    report = compare(own, wanted, keys.title, elsewhere=len(weights) - len(own))
    altered = tuple(key for key, value in constants.items() if key in own and not _same(own[key], value))
    taken = {key: own[theirs] for theirs, key in names.items() if theirs in own}
    return taken, replace(report, altered=altered, ema=ema)


def _names(model: nn.Module, keys: KeyMap) -> dict[str, str]:
    """The authors' names of a model's weights -> ours."""
    return {keys.theirs(key): key for key in model.state_dict()}


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to bfloat16, in which some files keep everything."""
    return one.shape != other.shape or torch.allclose(one.float(), other.float(), atol=0.01)


def export_weights(model: nn.Module, keys: KeyMap, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of `model` by the authors' names and with their constants; floating ones as `dtype` (None: as is)."""
    weights = {keys.theirs(key): value.detach() for key, value in model.state_dict().items()}
    return as_dtype(weights | keys.constants(model), dtype)


def as_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Contiguous tensors, the floating ones as `dtype` (None: as they are)."""
    cast = lambda value: value.to(dtype) if dtype and value.is_floating_point() else value  # noqa: E731
    return {key: cast(value).contiguous() for key, value in weights.items()}


def write_checkpoint(path: Path, weights: Mapping[str, Tensor], prefix: str = "") -> None:
    """Write a .safetensors file, or a .pt that `weights_only` reads, whole or not at all."""
    weights = {f"{prefix}{key}": value for key, value in weights.items()}
    with atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(weights, temporary)
        else:
            write_plain(weights, temporary)
