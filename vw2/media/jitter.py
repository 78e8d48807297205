"""Slightly other colours for what the VDM draws and begins with, while the LDM sees the true ones (release).

Legend: B clips, T frames, H W pixels.
"""

from collections.abc import Sequence

import vw2.torchvision_ops  # noqa: F401  (must come before torchvision is imported)

import torch
from torch import Tensor
from torchvision.transforms import functional

CHANGES = (  # of torchvision's ColorJitter: the change, its factor for none, how far from that it is drawn (release)
    (functional.adjust_brightness, 1.0, 0.3),
    (functional.adjust_contrast, 1.0, 0.3),
    (functional.adjust_saturation, 1.0, 0.2),
    (functional.adjust_hue, 0.0, 0.055),
)
WIDEST = 0.5  # turn of the hue, of the circle; torchvision allows no more


def jitter(videos: Sequence[Tensor], strength: float, rng: torch.Generator) -> list[Tensor]:
    """The changes of CHANGES in an order and by factors that are drawn once a clip.

    Args:
        videos: of the same clips, each (B, 3, T, H, W) in [-1, 1].
        strength: factor on how far from none each is drawn; 0 leaves the videos alone and draws nothing.
    Returns: like `videos`.
    """
    if strength == 0:
        return list(videos)
    changed = [video.clone() for video in videos]
    for clip in range(len(videos[0])):
        draws = (2 * torch.rand(len(CHANGES), generator=rng, dtype=torch.float64) - 1).tolist()
        for place in torch.randperm(len(CHANGES), generator=rng).tolist():
            change, none, width = CHANGES[place]
            factor = none + strength * width * draws[place]
            factor = max(factor, 0.0) if none else min(max(factor, -WIDEST), WIDEST)
            for video in changed:
                frames = (video[clip].transpose(0, 1) + 1) / 2  # (T, 3, H, W) in [0, 1]
                video[clip] = 2 * change(frames, factor).transpose(0, 1) - 1
    return changed
