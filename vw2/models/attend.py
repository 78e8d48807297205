"""Attention by the fastest kernel at hand. Legend: B batch, N heads, Q queries, S source tokens, D width of a head."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MOST = 2**26  # weights of an attention that may be in memory at once: 128 MiB


def unfused(device: torch.device, weights: int) -> bool:
    """Whether plain products of matrices are the faster way: under bfloat16 autocast on a CPU, where the backward of
    torch's fused kernel (2.13) takes several times as long (docs/tried.md, "bfloat16").

    Args: weights: B N Q S, how many an attention would keep in memory.
    """
    return device.type == "cpu" and torch.is_autocast_enabled("cpu") and weights <= MOST


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention that keeps all Q S weights in memory; arguments and result as in `attend`."""
    weight = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        weight = weight.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else weight + mask
    return torch.softmax(weight, dim=-1) @ value


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        query: (B, N, Q, D); key, value: (B, N, S, D).
        mask: (..., Q, S) True = may look, or a bias.
    Returns: (B, N, Q, D).
    """
    if unfused(query.device, query[..., 0].numel() * key.shape[-2]):
        few = torch.get_autocast_dtype("cpu")
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(few)
        with torch.autocast("cpu", enabled=False):  # or it would take the weights to float32 and back for their softmax
            return products(query.to(few), key.to(few), value.to(few), mask)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)
