"""The causal coarse decoder of the faithful dLDM: f_0 and codes -> video.

Legend: B batch, T frames, C channels, L latent frames, K = L - 1 steps, N queries, G code digits, h w feature pixels.
"""

import torch
from einops import rearrange
from torch import Tensor, channels_last_3d, nn
from torch.nn.functional import silu

from vw2.models.causal3d import (
    CausalCrossAttention,
    FactorisedConv,
    FrameNorm,
    ResidualBlock,
    SpaceAttention,
    SpaceConv,
    TimeAttention,
    upsample,
)
from vw2.models.causal_encoder import halvings
from vw2.models.drawing import Painting
from vw2.models.haar import HaarPatch


class Listen(nn.Module):
    """Every frame but the first hears the codes of its step and those before; then self-attention, space and time."""

    def __init__(self, channels: int, source: int):
        super().__init__()
        self.codes = CausalCrossAttention(channels, source)
        self.space, self.time = SpaceAttention(channels), TimeAttention(channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, C, L, h, w), tokens (B, K N, source) -> like x."""
        x = torch.cat([x[:, :, :1], self.codes(x[:, :, 1:], tokens)], dim=2)
        return self.time(self.space(x))


class Deaf(nn.Module):
    """What stands where there is no attention."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, C, L, h, w), whatever the tokens -> x."""
        return x


class DecoderLevel(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for; then the way up."""

    def __init__(self, channels: int, out: int, source: int, blocks: int, attention: bool, up: nn.Module):
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(channels if i == 0 else out, out) for i in range(blocks)])
        self.attn = nn.ModuleList([Listen(out, source) if attention else Deaf() for _ in range(blocks)])
        self.upsample = up

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, channels, L, h, w), tokens (B, K N, source) -> (B, out, ., ., .) of the size that the way up makes."""
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x), tokens)
        return self.upsample(x)


class ListeningMiddle(nn.Module):
    """Residual block, attention to codes, space and time, residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.block1, self.attn, self.block2 = (
            ResidualBlock(channels, channels),
            Listen(channels, channels),
            ResidualBlock(channels, channels),
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, channels, L, h, w), tokens (B, K N, channels) -> like x."""
        return self.block2(self.attn(self.block1(x), tokens))


def time_ups(levels: int, halvings_of_time: int, legacy: bool = False) -> list[bool]:
    """Which levels, the finest first, double the number of frames on their way up: all from the second way up on, or
    `legacy`, from the first."""
    begin = 0 if legacy else 1
    return [begin <= levels - 1 - i < begin + halvings_of_time and i > 0 for i in range(levels)]


def space_ups(late: list[bool], halvings_of_space: int, halvings_of_time: int) -> list[bool]:
    """The same for height and width: where time is doubled (`late`), and from the coarsest on if space has more to
    double."""
    levels, more = len(late), halvings_of_space > halvings_of_time
    return [i > 0 and (late[i] or more and levels - 1 - i < halvings_of_space) for i in range(levels)]


class CausalDecoder(nn.Module):
    """f_0 stands still in every frame until the codes move it (release: `LDM_V2`).

    Args:
        digits: G.
        source: width that the codes are lifted to.
        stride: frames per step that are kept; fewer than `time` in clips of two frames alone.
        blocks: residual blocks a level; one more than the encoder's.
        legacy: as in `time_ups`.
        other arguments: as in CausalEncoder.
    """

    def __init__(
        self,
        digits: int,
        source: int,
        stride: int,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        patch: int,
        space: int,
        time: int,
        attention: tuple[bool, ...],
        legacy: bool = False,
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        top = widths[-1]
        late = time_ups(len(widths), halvings(time, patch), legacy)
        wide = space_ups(late, halvings(space, patch), halvings(time, patch))
        self.stride = stride
        self.from_digits = SpaceConv(digits, source)
        self.conv_in = FactorisedConv(source, top)
        self.mid = ListeningMiddle(top)
        self.up = nn.ModuleList()  # the finest level first, as in the encoder
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], top], strict=True)):
            up = upsample(width, wide[i], late[i])
            self.up.append(DecoderLevel(before, width, top, blocks, attention[i], up))
        self.norm_out = FrameNorm(widths[0])
        self.conv_out = FactorisedConv(widths[0], 3 * patch**3)
        self.patch = HaarPatch(patch)

    def lift(self, codes: Tensor) -> Tensor:
        """(B, K, N, G) -> (B, source, K N, 1, 1), what the levels, and the connector to the VDM, read.

        Raises: ValueError for codes of no step.
        """
        if not codes.shape[1]:
            raise ValueError("expected the codes of at least one step, got none; use a clip of several frames")
        return self.from_digits(rearrange(codes, "b k n g -> b g (k n) 1 1"))

    def forward(self, first: Tensor, codes: Tensor) -> Painting:
        """f_0 (B, C, 1, h, w), codes (B, K, N, G) -> the whole video, T = 1 + stride K."""
        steps = codes.shape[1]
        tokens = self.conv_in(self.lift(codes))[..., 0, 0].transpose(1, 2)  # (B, K N, C), causal over the tokens
        x = first.expand(-1, -1, 1 + steps, -1, -1).contiguous(memory_format=channels_last_3d)
        x = self.mid(x, tokens)
        for level in reversed(self.up):
            x = level(x, tokens)
        video = self.patch.inverse(self.conv_out(silu(self.norm_out(x))))
        return Painting(video[:, :, : 1 + self.stride * steps])
