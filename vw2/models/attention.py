"""Causal attention over time for the VDM: one mask, several ways to compute it, processors for diffusers' blocks.

Keys stand in order of time, so what a latent frame may see is always a prefix of them: a mask is one number of keys per
latent frame. Every way to attend (`ATTENTION`) and the cache of past keys start from these numbers.

Legend: B batch, L latent frames, P tokens per latent frame, K = L - 1 code steps, N codes per step, S keys.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from vw2.console import UserError
from vw2.models.attend import attend

BLOCK = 128  # queries, and keys, that FlexAttention handles together

Attention = Literal["dense", "slices", "flex"]  # how masked attention is computed, see ATTENTION
Sight = Literal["causal", "full"]  # what a latent frame sees: what is not after it, or all


@dataclass(frozen=True)
class Mask:
    """Queries of the i-th latent frame, `per_frame` of them, see the first counts[i] keys and no other."""

    per_frame: int
    counts: tuple[int, ...]

    def limits(self, device: torch.device | str) -> Tensor:
        """(frames P,) how many keys each query sees."""
        return torch.tensor(self.counts, device=device).repeat_interleave(self.per_frame)

    def dense(self, keys: int, device: torch.device | str = "cpu") -> Tensor:
        """(frames P, S) bool, True where a query may look."""
        return torch.arange(keys, device=device) < self.limits(device)[:, None]


def seen_frames(start: int, frames: int, per_frame: int, sight: Sight = "causal") -> Mask:
    """Self-attention of latent frames start..start+frames-1 to those from 0 on: a frame sees itself and those before.

    Source: VideoWorld 2, sec. 3.3; "full" is the release, where every frame sees every other.
    """
    last = start + frames
    if sight == "full":
        return Mask(per_frame, (last * per_frame,) * frames)
    return Mask(per_frame, tuple((t + 1) * per_frame for t in range(start, last)))


def seen_codes(
    start: int, frames: int, per_frame: int, codes: int, clip: int | None = None, sight: Sight = "causal"
) -> Mask:
    """Cross-attention to the null token and K N codes behind it: latent frame t sees the codes of steps <= t.

    Args:
        codes: K N.
        clip: L of the whole clip, which the K = L - 1 steps belong to; None: the clip ends with these frames.
    Source: VideoWorld 2, sec. 3.3; "full" is plain cross-attention (table 3c), where every frame sees all codes.
    """
    if sight == "full":
        return Mask(per_frame, (1 + codes,) * frames)
    clip = start + frames if clip is None else clip
    steps = max(clip - 1, 1)
    assert codes % steps == 0, f"expected a multiple of {steps} code tokens for {clip} latent frames, got {codes}"
    return Mask(per_frame, tuple(1 + codes // steps * t for t in range(start, start + frames)))


def frame_mask(frames: int, per_frame: int, device: torch.device) -> Tensor:
    """(L P, L P) bool, True where a token may look: its own frame and those before (VideoWorld 2, sec. 3.3)."""
    return seen_frames(0, frames, per_frame).dense(frames * per_frame, device)


# ---------------------------------------------------------------- ways to attend: (B, heads, tokens, width) -> the same


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """All queries against all keys under a mask tensor."""
    return attend(query, key, value, mask.dense(key.shape[2], query.device))


def slices(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Latent frame by latent frame over the keys that it sees; nothing is computed that a mask would throw away."""
    frames = query.split(mask.per_frame, dim=2)
    seen = zip(frames, mask.counts, strict=True)
    return torch.cat([attend(q, key[:, :, :n], value[:, :, :n]) for q, n in seen], dim=2)


@lru_cache(maxsize=64)
def block_mask(mask: Mask, keys: int, device: torch.device) -> BlockMask:
    """The mask for FlexAttention: blocks seen in full, blocks seen in part, the rest left out."""
    limits = mask.limits(device)
    queries = len(limits)
    begin = torch.arange(0, queries, BLOCK, device=device)  # first query of each block of queries
    end = begin + BLOCK - 1
    full = (limits[begin] // BLOCK) * (end < queries)  # a block that juts out is never taken as full
    touched = (limits[end.clamp(max=queries - 1)] + BLOCK - 1) // BLOCK
    index = torch.arange((keys + BLOCK - 1) // BLOCK, device=device).expand(len(begin), -1)
    rows = lambda x: x[None, None].to(torch.int32).contiguous()  # noqa: E731  for any batch and head
    return BlockMask.from_kv_blocks(
        rows(touched - full),
        rows((index + full[:, None]) % index.shape[1]),
        rows(full),
        rows(index),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, q, k: k < limits[q],
        seq_lengths=(queries, keys),
    )


@lru_cache(maxsize=1)
def fused() -> Callable:
    """FlexAttention as one compiled kernel."""
    return torch.compile(flex_attention)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """FlexAttention: fused on a GPU; on a CPU written out, and without gradients, which it has none of there.

    Raises: UserError if gradients are wanted on a CPU.
    """
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise UserError("dldm.attention flex cannot train on a CPU; set dldm.attention to slices or dense")
    attend = flex_attention if on_cpu else fused()
    return attend(query, key, value, block_mask=block_mask(mask, key.shape[2], query.device))


ATTENTION: dict[Attention, Callable[[Tensor, Tensor, Tensor, Mask], Tensor]] = {
    "dense": dense,
    "slices": slices,
    "flex": flex,
}


# ---------------------------------------------------------------- what lies before the frames of a pass


class NoPast:
    """The pass holds the clip from its first frame on."""

    def join(self, owner: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return key, value


class KVCache:
    """Keys and values of past latent frames, for every self-attention layer that asks.

    A pass sees what was kept before it; `keep` keeps what the latest pass saw, that is the past and its own frames.
    """

    def __init__(self):
        self.kept: dict[object, tuple[Tensor, Tensor]] = {}
        self.latest: dict[object, tuple[Tensor, Tensor]] = {}

    def join(self, owner: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, tokens, width) of the past and of this pass; `owner` is the layer's processor."""
        if owner in self.kept:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.kept[owner], (key, value), strict=True))
        self.latest[owner] = key, value
        return key, value

    def keep(self) -> None:
        self.kept, self.latest = self.latest, {}


@dataclass
class Layout:
    """What the attention layers of a VDM and its control branch share: the frames of the pass, and how to attend.

    The VDM sets `frames` before each pass. All else is the whole clip under the paper's masks unless said otherwise.
    """

    frames: int = 1  # latent frames of the pass
    start: int = 0  # the first of them, in the clip
    clip: int | None = None  # L of the clip; None: it ends with the pass
    past: NoPast | KVCache = field(default_factory=NoPast)
    attention: Attention = "dense"
    frame_sight: Sight = "causal"
    code_sight: Sight = "causal"

    @property
    def given(self) -> int:
        """How many of the frames of the pass are the clip's given first frame: 1 or 0."""
        return int(self.start == 0)

    @contextmanager
    def window(self, start: int, clip: int, past: KVCache):
        """Passes inside hold the latent frames from `start` on of a clip of `clip`; those before are in `past`."""
        before = self.start, self.clip, self.past
        self.start, self.clip, self.past = start, clip, past
        try:
            yield
        finally:
            self.start, self.clip, self.past = before

    def attend_frames(self, owner: object, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Self-attention (B, heads, frames P, width) of the pass; `owner` is the layer's processor."""
        key, value = self.past.join(owner, key, value)
        mask = seen_frames(self.start, self.frames, query.shape[2] // self.frames, self.frame_sight)
        return ATTENTION[self.attention](query, key, value, mask)

    def attend_codes(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Cross-attention (B, heads, frames P, width) to the null token and the codes of the whole clip."""
        per_frame, codes = query.shape[2] // self.frames, key.shape[2] - 1
        mask = seen_codes(self.start, self.frames, per_frame, codes, self.clip, self.code_sight)
        return ATTENTION[self.attention](query, key, value, mask)


# ---------------------------------------------------------------- into diffusers' Cosmos blocks


class BlockCausalProcessor:
    """Attention of a Cosmos block under the layout's masks: self-attention without a context, else cross-attention."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda x: x.unflatten(2, (attn.heads, -1)).transpose(1, 2)  # noqa: E731  (B, heads, tokens, width)
        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(source)), split(attn.to_v(source))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
            key = apply_rotary_emb(key, image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
        query, key = query.type_as(value), key.type_as(value)  # under autocast norm and rope leave them in float32
        if encoder_hidden_states is None:
            mixed = self.layout.attend_frames(self, query, key, value)
        else:
            mixed = self.layout.attend_codes(query, key, value)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3).type_as(hidden_states)))


class WindowRope(nn.Module):
    """Rotary embeddings of the frames of the pass, wherever in the clip it starts.

    Args:
        rope: diffusers' module (latents (B, C, L, h, w), ...) -> tables of tokens, from the first frame on.
        axis: of the tokens in its tables.
    """

    def __init__(self, rope: nn.Module, layout: Layout, axis: int = 0):
        super().__init__()
        self.rope, self.layout, self.axis = rope, layout, axis

    def forward(self, latents: Tensor, *args, **kwargs) -> tuple[Tensor, ...]:
        """Latents (B, C, L, h, w) of the pass -> tables of its tokens."""
        frames, start = latents.shape[2], self.layout.start
        tables = self.rope(latents[:, :, :1].expand(-1, -1, start + frames, -1, -1), *args, **kwargs)
        skip = [table.shape[self.axis] // (start + frames) * start for table in tables]
        return tuple(x.narrow(self.axis, n, x.shape[self.axis] - n) for x, n in zip(tables, skip, strict=True))


def set_causal(blocks: Iterable[nn.Module], layout: Layout, processor: type = BlockCausalProcessor) -> None:
    """Put the layout's masks into self- and cross-attention of blocks; each layer has a processor of its own."""
    for block in blocks:
        block.attn1.set_processor(processor(layout))
        block.attn2.set_processor(processor(layout))
