"""Names of the authors' DiT and control branch <-> ours: pure functions from dict to dict, by rule, not by list.

Theirs: `net.` (DiT), `net_ctrl.` (control branch), each also as EMA (`net_ema.`, `net_ctrl_ema.`); a plain
Cosmos-Predict2 checkpoint has `net.` alone, or no prefix. Ours: the state dicts of vw2.models.cosmos.CosmosVDM and of
vw2.models.control.ControlBranch (hint mlp, own_time true). What has no place in ours (step counters, position buffers
that follow from the sizes) is kept in `rest`, so that nothing is lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vw2.interop.checkpoints import KeyMap, put

State = dict[str, Tensor]

BLOCK = {  # below blocks.<i>.
    **{f"{part}_attn.{x}_{kind}.": f"attn{i}.{new}." for i, part in ((1, "self"), (2, "cross"))
       for x, kind, new in (("q", "proj", "to_q"), ("k", "proj", "to_k"), ("v", "proj", "to_v"),
                            ("output", "proj", "to_out.0"), ("q", "norm", "norm_q"), ("k", "norm", "norm_k"))},
    **{f"adaln_modulation_{part}.{i}.": f"norm{n}.linear_{i}."
       for n, part in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp")) for i in (1, 2)},
    "mlp.layer1.": "ff.net.0.proj.",
    "mlp.layer2.": "ff.net.2.",
}  # fmt: skip
EMBED = {"x_embedder.proj.1.": "patch_embed.proj.", "t_embedder.1.": "time_embed.t_embedder."} | {
    "t_embedding_norm.": "time_embed.norm."
}
LAST = {"final_layer.linear.": "proj_out."} | {
    f"final_layer.adaln_modulation.{i}.": f"norm_out.linear_{i}." for i in (1, 2)
}
HINT = {"x_embedder2.proj.1.": "hint.embed.", "input_hint_block.": "hint.mlp.", "zero_blocks.block": "zero."}
PLAIN, EMA = ("net.", "net_ctrl."), ("net_ema.", "net_ctrl_ema.")
NEVER_OURS = ("accum_", "pos_embedder.")
SPATIAL, TEMPORAL, SEQUENCE = "pos_embedder.dim_spatial_range", "pos_embedder.dim_temporal_range", "pos_embedder.seq"


@dataclass
class Parts:
    """A checkpoint taken apart."""

    dit: State = field(default_factory=dict)  # for CosmosVDM
    control: State = field(default_factory=dict)  # for ControlBranch
    rest: State = field(default_factory=dict)  # under the authors' names, with prefix


def spare(name: str) -> bool:
    """Whether a name without prefix, of no weight of ours, is one that ours do without."""
    return name.startswith(NEVER_OURS) or name.endswith("_extra_state")


def _swap(key: str, rules: dict[str, str]) -> str | None:
    """`key` with the beginning that a rule names replaced; None if there is no such rule."""
    for old, new in rules.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return None


def _translate(key: str, flat: dict[str, str], blocks: tuple[str, str], inner: dict[str, str]) -> str | None:
    """A name by the rules `flat`, or, in a block, by `inner`; `blocks`: both sides' names of the list of blocks."""
    if not key.startswith(blocks[0]):
        return _swap(key, flat)
    number, _, below = key[len(blocks[0]) :].partition(".")
    new = _swap(below, inner)
    return new and f"{blocks[1]}{number}.{new}"


def _back(rules: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in rules.items()}


DIT_BLOCKS, CONTROL_BLOCKS = ("blocks.", "transformer.transformer_blocks."), ("blocks.", "blocks.")
DIT_FLAT = {old: f"transformer.{new}" for old, new in (EMBED | LAST).items()}
COPIED = EMBED | {old: f"last.{new}" for old, new in LAST.items()}  # of the DiT, in the control branch
CONTROL_FLAT = COPIED | HINT


def apart(state: State, blocks: Iterable[int]) -> State:
    """A checkpoint in which both networks share one name space, with the branch's names in its own; others as they are.

    So are the authors' `-ctrl.pt` files: a Cosmos-Predict2 checkpoint to which the layers of HINT were added. What both
    networks have, the branch gets as copies of the DiT's, as in the authors' code (fact sheet, sec. 2.2).

    Args:
        state: their state dict; tensors are passed on, not copied.
        blocks: which of the DiT's blocks the branch has.
    Raises: UserError if tensors that differ would get one name, as where the DiT is there both with and without `net.`.
    """
    hints = [(key, name) for key in state for name in HINT if key.startswith(name) or f".{name}" in key]
    if not hints or any(prefix[:-1] in key for key in state for prefix in ("net_ctrl.", "net_ctrl_ema.")):
        return state
    shared = sorted({key[: key.index(name)] for key, name in hints}, key=len, reverse=True)  # net., net_ema., both
    found: State = {}
    numbers = {str(number) for number in blocks}
    for key, value in state.items():
        lead = next((each for each in shared if key.startswith(each)), None)
        if lead is None:
            put(found, key, value, key)
            continue
        kinds = EMA if lead.endswith(EMA[0]) else PLAIN
        trunk, branch = (lead.removesuffix(kinds[0]) + prefix for prefix in kinds)
        bare = key.removeprefix(lead)
        elsewhere = bare.startswith(CONTROL_BLOCKS[0]) and bare.split(".")[1] not in numbers
        if not elsewhere and _translate(bare, CONTROL_FLAT, CONTROL_BLOCKS, BLOCK):
            put(found, branch + bare, value, key)
        if not bare.startswith(tuple(HINT)):
            put(found, trunk + bare, value, key)
    return found


def to_release(parts: Parts, ema: bool = False) -> State:
    """Our state dicts in the authors' names, with prefixes; `rest` as it was.

    Raises: ValueError for a name of ours that no rule explains (say, a learned null token, which they have not).
    """
    prefixes, out = EMA if ema else PLAIN, dict(parts.rest)
    jobs = (
        (parts.dit, prefixes[0], DIT_FLAT, DIT_BLOCKS),
        (parts.control, prefixes[1], CONTROL_FLAT, CONTROL_BLOCKS),
    )
    for state, prefix, flat, names in jobs:
        for key, value in state.items():
            out[prefix + theirs(key, flat, names)] = value
    return out


def theirs(key: str, flat: dict[str, str], blocks: tuple[str, str]) -> str:
    """Our name of a weight -> theirs without prefix, by the rules of its network. Raises: as `to_release`."""
    old = _translate(key, _back(flat), blocks[::-1], _back(BLOCK))
    if old is None or any(part in key for part in (".base_layer.", ".lora_")):
        raise ValueError(
            f"{key} has no place in the authors' checkpoint; export a model with their options only, LoRA merged"
        )
    return old


# the same for vw2.interop.checkpoints
DIT = KeyMap("DiT", partial(theirs, flat=DIT_FLAT, blocks=DIT_BLOCKS), PLAIN[:1], spare=spare)
CONTROL = KeyMap("control branch", partial(theirs, flat=CONTROL_FLAT, blocks=CONTROL_BLOCKS), PLAIN[1:], spare=spare)


def buffers(head_width: int, latent_frames: int = 128, side: int = 240) -> State:
    """What the authors' networks keep beside weights, made from the sizes: counters at zero and position buffers.

    Args:
        head_width: of an attention head.
        latent_frames, side: the most latent frames, and latent pixels per side.
    Returns: 7 tensors without prefix, for the `rest` of a model that never was theirs.
    """
    spatial = head_width // 6 * 2
    temporal = head_width - 2 * spatial
    counters = {
        f"accum_{name}": torch.tensor(0) for name in ("video_sample_counter", "image_sample_counter", "iteration")
    }
    return counters | {
        "accum_train_in_hours": torch.tensor(0.0),
        SEQUENCE: torch.arange(max(latent_frames, side // 2), dtype=torch.float32),
        SPATIAL: torch.arange(0, spatial, 2).float() / spatial,
        TEMPORAL: torch.arange(0, temporal, 2).float() / temporal,
    }
