"""What a coarse decoder gives: a video that is yet to meet its first frame.

Legend: B batch, T frames, H W pixels of the first frame, h w pixels that the decoder works at.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate, pad

from vw2.models.attend import attend
from vw2.models.haar import PATCH, unblocks


class Drawing:
    """What all drawings have in common."""

    def over(self, frame: Tensor) -> Tensor:
        """First frame (B, 3, 1, H, W) in [-1, 1] -> video (B, 3, T, H, W), not clamped."""
        raise NotImplementedError

    def last(self) -> Self:
        """The last frame of it alone, without gradient."""
        raise NotImplementedError

    def end(self, frame: Tensor) -> Tensor:
        """The last frame of `over`, (B, 3, 1, H, W) in [-1, 1], without gradient: what a rollout goes on from."""
        return self.last().over(frame).clamp(-1, 1)


@dataclass(frozen=True)
class Strokes(Drawing):
    """Drawn over the first frame: video = (1 - erase) warp(frame, flow) + paint (our choice).

    What is left alone keeps every pixel of the first frame, at any size of it; what is moved takes them along, whatever
    they look like; and to let something vanish the decoder need not know what it looked like.
    """

    flow: Tensor  # (B, 2, T, h, w), right and down: where a pixel comes from, in sides of the picture; 0 at first
    erase: Tensor  # (B, 1, T, h, w); 0 at first
    paint: Tensor  # (B, 3, T, h, w); 0 at first

    def over(self, frame: Tensor) -> Tensor:
        size = tuple(frame.shape[-2:])
        return (1 - enlarge(self.erase, size)) * warp(frame, enlarge(self.flow, size)) + enlarge(self.paint, size)

    def last(self) -> "Strokes":
        return Strokes(*(each[:, :, -1:].detach() for each in (self.flow, self.erase, self.paint)))


@dataclass(frozen=True)
class LookedStrokes(Strokes):
    """And painted with colours that places of a latent frame look up in the first frame (our choice), M of them each.

    A place is a cell of PATCH by PATCH pixels; what it looks at are cells of half its side.
    """

    weight: Tensor  # (B, L, py, px, M, PATCH^3) of each colour in the pixels of a place; 0 at first
    query: Tensor  # (B, L, py, px, M, D) of places
    key: Tensor  # (B, 4 py px, D) of what they look at

    def over(self, frame: Tensor) -> Tensor:
        height, width = self.query.shape[2:4]
        source = adaptive_avg_pool2d(frame[:, :, 0], (2 * height, 2 * width)).flatten(2).transpose(1, 2)
        source = pad(source, (0, self.key.shape[-1] - source.shape[-1]))  # a fused kernel wants values like keys
        query, key, value = (each[:, None] for each in (self.query.flatten(1, 4), self.key, source))
        colours = attend(query, key, value)[..., :3].view(*self.query.shape[:-1], 3)
        painted = unblocks(colours.transpose(-1, -2) @ self.weight, PATCH)[:, :, : self.flow.shape[2]]
        return super().over(frame) + enlarge(painted, tuple(frame.shape[-2:]))

    def last(self) -> "LookedStrokes":
        moment = (self.flow.shape[2] - 2) % PATCH  # in its latent frame, which is not full where steps are shorter
        weight = self.weight[:, -1:].unflatten(-1, (PATCH, -1))[..., moment, :].detach()
        weight = weight.repeat(*[1] * 5, PATCH)  # a single frame is repeated to fill one
        query, key = self.query[:, -1:].detach(), self.key.detach()
        return LookedStrokes(**vars(super().last()), weight=weight, query=query, key=key)


@dataclass(frozen=True)
class Painting(Drawing):
    """A whole video, of which the first frame lends its size alone (release)."""

    video: Tensor  # (B, 3, T, h, w)

    def over(self, frame: Tensor) -> Tensor:
        return enlarge(self.video, tuple(frame.shape[-2:]))

    def last(self) -> "Painting":
        return Painting(self.video[:, :, -1:].detach())


def enlarge(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, T, h, w) -> (B, C, T, H, W), bilinear, frame by frame."""
    if tuple(video.shape[-2:]) == size:
        return video
    large = interpolate(video.flatten(0, 1), size=size, mode="bilinear", antialias=False)
    return large.unflatten(0, video.shape[:2])


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Every pixel of a video from another place of one frame, bilinear; beyond the border, the border's.

    Args:
        frame: (B, 3, 1, H, W).
        flow: (B, 2, T, H, W), right and down, from a pixel to where it comes from, in sides of the picture.
    Returns: (B, 3, T, H, W).
    """
    (height, width), frames = frame.shape[-2:], flow.shape[2]
    exact = torch.promote_types(frame.dtype, torch.float32)  # bfloat16 is too coarse for places from 256 pixels on
    down, right = ((2 * torch.arange(side, device=flow.device, dtype=exact) + 1) / side - 1 for side in (height, width))
    here = torch.stack(torch.broadcast_tensors(right, down[:, None]), dim=-1)  # grid_sample's: sides from -1 to 1
    source = (here + 2 * flow.permute(0, 2, 3, 4, 1)).flatten(1, 2)  # the frames one below the other: one tall picture
    moved = grid_sample(frame[:, :, 0].to(exact), source.to(exact), padding_mode="border", align_corners=False)
    return moved.to(frame.dtype).unflatten(2, (frames, height))
