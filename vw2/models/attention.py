"""Causal masks over time for the VDM, put into diffusers' blocks as attention processors.

Legend: B batch, L latent frames, P tokens per latent frame, K = L - 1 code steps, N codes per step.
"""

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class Layout:
    """How the flat token axis divides into latent frames; set by the VDM before each pass."""

    frames: int = 1


def frame_mask(frames: int, per_frame: int, device: torch.device) -> Tensor:
    """(L P, L P) bool, True where a token may look: its own frame and those before (VideoWorld 2, sec. 3.3)."""
    frame = torch.arange(frames * per_frame, device=device) // per_frame
    return frame[:, None] >= frame[None, :]


def code_mask(frames: int, per_frame: int, codes: int, device: torch.device) -> Tensor:
    """(L P, 1 + K N) bool: latent frame t sees the null token and the codes of steps <= t (VideoWorld 2, sec. 3.3)."""
    frame = torch.arange(frames * per_frame, device=device) // per_frame
    steps = max(frames - 1, 1)
    assert codes % steps == 0, f"expected a multiple of {steps} code tokens for {frames} latent frames, got {codes}"
    step = torch.cat([torch.zeros(1), torch.arange(codes) // max(codes // steps, 1) + 1]).to(device)
    return frame[:, None] >= step[None, :]


class BlockCausalProcessor:
    """Attention of a Cosmos block under a causal mask: self-attention if no context is given, else cross-attention."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        tokens, frames = hidden_states.shape[1], self.layout.frames
        if encoder_hidden_states is None:
            source, mask = hidden_states, frame_mask(frames, tokens // frames, hidden_states.device)
        else:
            source = encoder_hidden_states
            mask = code_mask(frames, tokens // frames, source.shape[1] - 1, hidden_states.device)
        split = lambda x: x.unflatten(2, (attn.heads, -1)).transpose(1, 2)  # noqa: E731  (B, heads, tokens, width)
        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(source)), split(attn.to_v(source))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
            key = apply_rotary_emb(key, image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
        mixed = scaled_dot_product_attention(query, key, value.type_as(query), attn_mask=mask)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3).type_as(hidden_states)))


def set_block_causal(blocks, layout: Layout) -> None:
    """Make self- and cross-attention of Cosmos blocks causal over latent frames."""
    for block in blocks:
        block.attn1.set_processor(BlockCausalProcessor(layout))
        block.attn2.set_processor(BlockCausalProcessor(layout))
