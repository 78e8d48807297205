"""Drawing tokens from logits so that each row's draws are its own. Legend: R rows, V codes and one END."""

import hashlib

import torch
from torch import Tensor


def row_generator(seed: int, key: str) -> torch.Generator:
    """A generator that is a function of (seed, key) alone."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pick(logits: Tensor, draws: Tensor, temperature: float, top_p: float) -> Tensor:
    """Choose one token per row by nucleus sampling (Holtzman et al. 2020, sec. 3.1), inverting the distribution.

    Args:    logits: (R, V + 1), -inf where forbidden; draws: (R,) uniform in [0, 1); temperature: 0 = the likeliest;
             top_p: in (0, 1], the smallest set of likeliest tokens with at least this probability is kept.
    Returns: (R,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    share, order = torch.softmax(logits / temperature, -1).sort(dim=-1, descending=True, stable=True)
    share = torch.where(share.cumsum(-1) - share < top_p, share, 0.0)
    total = share.cumsum(-1)
    place = torch.searchsorted(total, (draws * total[:, -1])[:, None], right=True)
    last = (share > 0).sum(-1, keepdim=True) - 1  # rounding must not lead past what is kept
    return order.gather(-1, torch.minimum(place, last))[:, 0]


def pick_or_end(logits: Tensor, draws: Tensor, temperature: float, top_p: float) -> Tensor:
    """`pick`, but first whether it is END, the last token, and then which code; the temperature sharpens each choice.

    Together they would not be sharpened alike: END is one token, where what goes on is shared among hundreds of codes,
    and at a low temperature the likeliest single token takes all (our choice).

    Args and returns: as `pick`.
    """
    codes, ending = logits[:, :-1], logits[:, -1] - logits[:, :-1].logsumexp(-1)  # log odds of END
    end = torch.sigmoid(ending / temperature) if temperature else (ending > 0).to(draws.dtype)
    left = ((draws - end) / (1 - end).clamp(min=torch.finfo(draws.dtype).tiny)).clamp(0, 1)
    return torch.where(draws < end, logits.shape[-1] - 1, pick(codes, left, temperature, top_p))
