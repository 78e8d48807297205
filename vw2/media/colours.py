"""Other colours for whole videos, so that a model does not learn a handful of them by heart.

Test scenes have hues that no training scene has; what the first frame does not show (the back of a sheet) must be drawn
in them from the codes alone. Our choice (paper: no augmentation; release: a slight jitter of what the VDM sees).
Legend: B videos, T frames, H W pixels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vw2.streams import Stream


@dataclass(frozen=True)
class ColourConfig:
    """Largest strength of each change; 0 switches it off."""

    share: float = 0.0  # of the videos that are changed, in [0, 1]; 0 = none (paper)
    hue: float = 1.0  # turn of the colour circle, 1 = any hue; every second video also has two channels exchanged
    saturation: float = 0.4  # factor in 1 +- this
    contrast: float = 0.3  # factor in 1 +- this
    brightness: float = 0.2  # added, in half the range of values

    def __post_init__(self):
        if min(vars(self).values()) < 0 or max(self.share, self.hue, self.saturation, self.contrast) > 1:
            raise ValueError("dldm.colours: expected values from 0 on, all but brightness at most 1; change them")


def recolour(video: Tensor, keys: Iterable[Iterable[int]], config: ColourConfig, seed: int) -> Tensor:
    """Change the colours of whole videos; what is drawn for one is a function of (seed, its key).

    Args:
        video: (B, 3, T, H, W) in [-1, 1].
        keys: of each video, some integers >= 0.
    Returns: like `video`, what is changed clamped to [-1, 1]; `video` itself if no share is to be changed.
    """
    if config.share == 0:
        return video
    draws = [np.random.default_rng([seed, Stream.RECOLOUR, *map(int, key)]).random(6) for key in keys]
    luck, swap, *rest = torch.from_numpy(np.stack(draws, 1)).float()
    turn, saturation, contrast, brightness = (2 * each - 1 for each in rest)  # uniform in [-1, 1]
    mix = colour_mix(
        turn * math.pi * config.hue, 1 + saturation * config.saturation, 1 + contrast * config.contrast, swap < 0.5
    )
    chosen, mix, light = (
        each[luck < config.share].to(video.device)  # the others, most of them, are not even read
        for each in (torch.arange(len(luck)), mix, brightness * config.brightness)
    )
    mixed = torch.einsum("bij,bjthw->bithw", mix, video[chosen]) + light.view(-1, 1, 1, 1, 1)
    return video.index_copy(0, chosen, mixed.clamp(-1, 1))


def colour_mix(angle: Tensor, saturation: Tensor, contrast: Tensor, swap: Tensor) -> Tensor:
    """Colour matrices (B, 3, 3): turn about the grey axis, saturation, contrast, two channels exchanged where `swap`.

    Together turns and exchanges contain every permutation of the channels. Grey stays grey.

    Args: angle (B,) radians; saturation, contrast (B,) factors; swap (B,) bool.
    """
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    c, s = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    chroma = c * (torch.eye(3) - grey) + s * cross  # Rodrigues' formula without the grey part
    mix = (grey + saturation.view(-1, 1, 1) * chroma) * contrast.view(-1, 1, 1)
    return torch.where(swap.view(-1, 1, 1), mix[:, [1, 0, 2]], mix)
