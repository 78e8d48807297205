"""Frames made to look unlike the training appearance: other colours, cameras, textures and sharpness.

Our choice, for the step classifier alone (the paper trains its models without augmentation, and has a classifier whose
backbone has seen blurred pictures before). No mirroring: a fold to the left is not a fold to the right. Everything is
drawn per frame from one generator and done on whole batches.
Legend: B frames, H W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vw2.media.colours import colour_mix
from vw2.models.classifier import FrameBatch


@dataclass(frozen=True)
class AugmentConfig:
    """Largest strength of each change; 0 switches it off."""

    hue: float = 1.0  # turn of the colour circle, 1 = any hue; every second frame also has two channels exchanged
    saturation: float = 0.4  # factor in 1 +- this
    brightness: float = 0.2  # added, in half the range of values
    contrast: float = 0.3  # factor in 1 +- this
    shift: float = 0.06  # fraction of the picture
    zoom: float = 0.08  # factor in 1 +- this
    turn: float = 6.0  # degrees
    tilt: float = 0.06  # perspective, change of size between the middle and the border
    blur: float = 0.035  # standard deviation of a Gaussian, fraction of the picture's width
    grating: float = 0.15  # amplitude of stripes laid over the picture, in half the range of values

    def __post_init__(self):
        if min(vars(self).values()) < 0 or max(self.saturation, self.contrast, self.zoom, self.tilt, self.blur) > 1:
            raise ValueError("classifier.augment: expected values from 0 on, and factors of at most 1; lower them")


def augment(batch: FrameBatch, config: AugmentConfig, rng: torch.Generator) -> FrameBatch:
    """Change every frame of a batch at random, and the hand's position with it.

    A hand that is moved out of the picture counts as not visible.
    """
    frames, count = batch.frames, len(batch.frames)

    def draw(strength: float, *shape: int) -> Tensor:  # uniform in [-strength, strength]
        return (torch.rand((count, *shape), generator=rng) * 2 - 1) * strength

    to_source = camera(draw(config.shift, 2), draw(config.zoom), draw(math.radians(config.turn)), draw(config.tilt, 2))
    frames = warp(frames, to_source)
    hand = project(torch.linalg.inv(to_source), batch.hand * 2 - 1) / 2 + 0.5
    inside = ((hand >= 0) & (hand <= 1)).all(1)
    visible = torch.where(batch.visible.isfinite(), batch.visible * inside, batch.visible)
    turn, saturation, contrast = draw(math.pi * config.hue), 1 + draw(config.saturation), 1 + draw(config.contrast)
    mix = colour_mix(turn, saturation, contrast, torch.rand(count, generator=rng) < 0.5)
    frames = torch.einsum("bij,bjhw->bihw", mix, frames) + draw(config.brightness, 1, 1, 1)
    frames = frames + stripes(frames.shape[-2:], draw(config.grating), rng)
    frames = blur(frames, torch.rand(count, generator=rng) * config.blur, config.blur)
    return FrameBatch(frames.clamp(-1, 1), batch.label, hand, visible, batch.angle)


def camera(shift: Tensor, zoom: Tensor, turn: Tensor, tilt: Tensor) -> Tensor:
    """(B, 3, 3) map from the new picture to the old one, both in [-1, 1]^2.

    Args: shift (B, 2) fractions of the picture; zoom (B,); turn (B,) radians; tilt (B, 2) perspective.
    """
    scale = 1 + zoom
    c, s = turn.cos() * scale, turn.sin() * scale
    one = torch.ones_like(c)
    rows = [c, -s, shift[:, 0] * 2, s, c, shift[:, 1] * 2, tilt[:, 0], tilt[:, 1], one]
    return torch.stack(rows, 1).view(-1, 3, 3)


def project(matrix: Tensor, points: Tensor) -> Tensor:
    """(B, 2) points through (B, 3, 3) homographies."""
    moved = torch.einsum("bij,bj->bi", matrix, torch.cat([points, torch.ones_like(points[:, :1])], 1))
    return moved[:, :2] / moved[:, 2:]


def warp(frames: Tensor, to_source: Tensor) -> Tensor:
    """(B, 3, H, W) seen through (B, 3, 3) homographies; what lies beyond the border is its mirror image."""
    height, width = frames.shape[-2:]
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    grid = torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width)])  # (3, H W)
    source = to_source @ grid
    source = (source[:, :2] / source[:, 2:]).transpose(1, 2).reshape(-1, height, width, 2)
    return F.grid_sample(frames, source, mode="bilinear", padding_mode="reflection", align_corners=False)


def stripes(size: tuple[int, int], amplitude: Tensor, rng: torch.Generator) -> Tensor:
    """(B, 1, H, W) plane waves of any direction, 2 to 12 periods across the picture."""
    height, width = size
    count = len(amplitude)
    way, periods, phase = torch.rand((3, count), generator=rng)
    way, periods = way * math.pi, 2 + 10 * periods
    y, x = torch.arange(height) / height, torch.arange(width) / width
    column = (2 * math.pi * periods * way.cos())[:, None] * x + (2 * math.pi * phase)[:, None]  # (B, W)
    row = (2 * math.pi * periods * way.sin())[:, None] * y  # (B, H)
    # sin(a + b) from four small tables: a wave costs no sine per pixel
    wave = row.sin()[:, :, None] * column.cos()[:, None] + row.cos()[:, :, None] * column.sin()[:, None]
    return (amplitude[:, None, None] * wave)[:, None]


def blur(frames: Tensor, widths: Tensor, widest: float) -> Tensor:
    """Each frame of (B, 3, H, W) under a Gaussian of its own; what lies beyond the border is its mirror image.

    Args: widths: (B,) standard deviations as fractions of W; 0 leaves a frame as it is. widest: the largest possible.
    """
    reach = min(math.ceil(3 * widest * frames.shape[-1]), *(side - 1 for side in frames.shape[-2:]))
    if not reach:
        return frames
    offset = torch.arange(-reach, reach + 1)
    # at a twentieth of a pixel a Gaussian is the middle pixel alone
    deviation = (widths * frames.shape[-1]).clamp(min=0.05)[:, None]
    kernel = torch.softmax(-0.5 * (offset / deviation) ** 2, dim=1).repeat_interleave(3, 0)  # (3 B, 2 reach + 1)
    planes = F.pad(frames, (reach,) * 4, mode="reflect").flatten(0, 1)[None]  # (1, 3 B, H + 2 reach, W + 2 reach)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=len(kernel))
    return F.conv2d(planes, kernel[:, None, :, None], groups=len(kernel)).view_as(frames)
