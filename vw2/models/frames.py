"""The frame parts of an LDM: space is the business of 2-D layers on single frames, time of small causal ones between.

On two cores they train about twice as fast as the causal 3-D parts, and to better pictures in the same time (our
choice).

Legend: B batch, T frames, L latent frames, K = L - 1 steps, N queries a step, G code digits, C feature width, h w
feature pixels (H/4, W/4).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, silu

from vw2.models.drawing import LookedStrokes, Strokes
from vw2.models.haar import PATCH, HaarPatch
from vw2.models.layers import GROUPS, CrossAttention, FrameAttention, FrameBlock, flatten_frames, unflatten_frames, zero

HAAR_CHANNELS = 3 * PATCH**3


class FrameEncoder(nn.Module):
    """Causal encoder: frame t of the features depends on pixels up to frame 4 t only."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.patch = HaarPatch()
        self.conv_in = nn.Conv2d(HAAR_CHANNELS, width, 1)
        self.blocks = nn.ModuleList([FrameBlock(width) for _ in range(blocks - 1)])
        self.time = nn.Conv2d(2 * width, width, 1)  # a frame and the one before
        self.out = FrameBlock(width)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> features f (B, C, L, h, w)."""
        assert (video.shape[2] - 1) % PATCH == 0, f"expected T = 1 + 4m frames, got {video.shape[2]}"
        batch = len(video)
        hidden = self.conv_in(flatten_frames(self.patch(video)))
        for block in self.blocks:
            hidden = block(hidden)
        frames = hidden.unflatten(0, (batch, -1))
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1).flatten(0, 1)
        hidden = hidden + self.time(torch.cat([hidden, before], dim=1))
        return unflatten_frames(self.out(hidden), batch)


class CodeHistory(nn.Module):
    """Codes of steps 1..k -> one vector per latent frame k (frame 0: nothing has happened), causal in k.

    Args:
        numbers: N G, the code digits of a step.
        max_steps: most steps K.
    """

    def __init__(self, numbers: int, width: int, max_steps: int):
        super().__init__()
        self.width = width
        self.lift = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.when = nn.Parameter(0.02 * torch.randn(max_steps + 1, width))
        self.layer = CrossAttention(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> (B, L, width)."""
        x = torch.cat([self.start.expand(len(codes), -1, -1), self.lift(codes.flatten(2))], dim=1)
        frames = x.shape[1]
        x = x + self.when[:frames]
        return self.layer(x, x, torch.ones(frames, frames, dtype=torch.bool).tril())


class FrameDecoder(nn.Module):
    """f_0 and codes -> a blurred but motion-true video, drawn over the first frame.

    The codes are heard in every block, as modulation, and once as a spatial map; and what is decoded is drawn over the
    given first frame, so that all there is to learn is motion (our choices: a decoder that hears the codes at one
    place, or must first learn to draw what stands still, learns to ignore them).

    Args:
        width: C.
        blocks: residual blocks.
        history: of the codes.
        pixels: (h, w).
        stride: frames per step.
    """

    MAP = 16  # channels of the spatial map
    FLOW = 0.05  # sides of the picture that a flow of 1 goes: small, so that it grows no faster than the paint

    def __init__(self, width: int, blocks: int, history: CodeHistory, pixels: tuple[int, int], stride: int):
        super().__init__()
        condition = history.width
        self.history, self.pixels, self.stride = history, pixels, stride
        self.scene = nn.Linear(width, condition)
        self.map = nn.Linear(condition, self.MAP * pixels[0] * pixels[1])
        self.join = nn.Conv2d(width + self.MAP, width, 1)
        self.blocks = nn.ModuleList([FrameBlock(width, condition) for _ in range(blocks)])
        self.space = FrameAttention(width)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.conv_out = zero(nn.Conv2d(width, 6 * PATCH**3, 1))  # red, green, blue, erase, flow
        self.patch = HaarPatch()

    def forward(self, first: Tensor, codes: Tensor) -> Strokes:
        """f_0 (B, C, 1, h, w) of the first frame and codes (B, K, N, G) -> what to draw over that frame."""
        paint, erase, flow = self.pixels_of(self.conv_out(self.hidden(first, codes)), codes).split((3, 1, 2), dim=1)
        return Strokes(self.FLOW * flow, erase, paint)

    def hidden(self, first: Tensor, codes: Tensor) -> Tensor:
        """As `forward` -> what the last layer draws from, (B L, C, h, w)."""
        history = self.history(codes)  # (B, L, condition)
        condition = (history + self.scene(first.mean((2, 3, 4)))[:, None]).flatten(0, 1)
        height, width = self.pixels
        where = rearrange(self.map(history), "b l (c h w) -> b c l h w", h=height, w=width)
        hidden = self.join(flatten_frames(torch.cat([first.expand(-1, -1, history.shape[1], -1, -1), where], dim=1)))
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, condition)
            if i == 0:
                hidden = self.space(hidden)
        return silu(self.norm(hidden))

    def pixels_of(self, patches: Tensor, codes: Tensor) -> Tensor:
        """Haar patches (B L, 64 c, h, w) -> (B, c, T, H, W) at the size that the decoder works at."""
        return self.patch.inverse(unflatten_frames(patches, len(codes)))[:, :, : 1 + self.stride * codes.shape[1]]


class LookingDecoder(FrameDecoder):
    """A `FrameDecoder` whose places also paint with colours that they look up in the first frame by attention.

    So a block that moves, or the table where it stood, has the colour that the first frame shows, whatever it is (our
    choice). Nothing is painted with them at first.

    Args:
        number: M, colours that a place looks up.
    """

    KEY = 16  # width of queries and keys

    def __init__(self, *parts, number: int):
        super().__init__(*parts)
        width, (height, wide) = self.join.out_channels, self.pixels
        self.number = number
        self.weigh = zero(nn.Conv2d(width, number * PATCH**3, 1))
        self.query, self.key = nn.Conv2d(width, number * self.KEY, 1), nn.Conv2d(width, 4 * self.KEY, 1)
        self.query_place = nn.Parameter(torch.randn(number * self.KEY, height, wide))
        self.key_place = nn.Parameter(torch.randn(self.KEY, 2 * height, 2 * wide))

    def forward(self, first: Tensor, codes: Tensor) -> Strokes:
        """As the decoder without lookups: first (B, C, 1, h, w), codes (B, K, N, G) -> strokes."""
        hidden, batch = self.hidden(first, codes), len(codes)
        paint, erase, flow = self.pixels_of(self.conv_out(hidden), codes).split((3, 1, 2), dim=1)
        query = self.query(hidden) + self.query_place
        query = rearrange(query, "(b l) (m d) h w -> b l h w m d", b=batch, m=self.number)
        key = pixel_shuffle(self.key(first[:, :, 0]), 2) + self.key_place
        weight = self.patch.cells(unflatten_frames(self.weigh(hidden), batch))
        return LookedStrokes(self.FLOW * flow, erase, paint, weight, query, key.flatten(2).transpose(1, 2))
