"""The causal 3-D encoder of the faithful dLDM: video -> features, no frame of which depends on later pixels.

Legend: B batch, T frames, L latent frames, C channels, H W pixels, h w feature pixels.
"""

from math import log2

from torch import Tensor, channels_last_3d, nn
from torch.nn.functional import silu

from vw2.models.causal3d import FactorisedConv, FrameNorm, ResidualBlock, SpaceAttention, TimeAttention, downsample
from vw2.models.haar import HaarPatch


def attend(channels: int) -> nn.Sequential:
    """Self-attention within frames, then over time."""
    return nn.Sequential(SpaceAttention(channels), TimeAttention(channels))


def halvings(compression: int, patch: int) -> int:
    """How often a size is halved after the patches that it was cut into."""
    return round(log2(compression // patch))


class EncoderLevel(nn.Module):
    """Residual blocks at one resolution, each followed by self-attention if asked for; then the way down."""

    def __init__(self, channels: int, out: int, blocks: int, attention: bool, down: nn.Module):
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(channels if i == 0 else out, out) for i in range(blocks)])
        self.attn = nn.ModuleList([attend(out) if attention else nn.Identity() for _ in range(blocks)])
        self.downsample = down

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> (B, out, ., ., .) of the size that the way down makes."""
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        return self.downsample(x)


class Middle(nn.Module):
    """Residual block, self-attention, residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.block1, self.attn, self.block2 = (
            ResidualBlock(channels, channels),
            attend(channels),
            ResidualBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> the same."""
        return self.block2(self.attn(self.block1(x)))


class CausalEncoder(nn.Module):
    """Haar patches, residual levels that halve the picture, attention in the middle (release).

    Args:
        channels: of the first convolution; level i has channels * multipliers[i].
        blocks: residual blocks a level.
        patch: side of the patches, pixels and frames; a power of 2.
        space, time: compression of height and width, and of time, patches included.
        attention: per level, whether self-attention follows its blocks.
    """

    def __init__(
        self,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        patch: int,
        space: int,
        time: int,
        attention: tuple[bool, ...],
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        self.space, self.time = space, time
        self.patch = HaarPatch(patch)
        self.conv_in = FactorisedConv(3 * patch**3, channels)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([channels, *widths], widths, strict=False)):
            inner = i < len(widths) - 1
            down = downsample(width, inner and i < halvings(space, patch), inner and i < halvings(time, patch))
            self.down.append(EncoderLevel(before, width, blocks, attention[i], down))
        self.mid = Middle(widths[-1])
        self.norm_out = FrameNorm(widths[-1])

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> features f (B, C, L, h, w).

        Raises: ValueError for sizes that the compression does not divide.
        """
        frames, *sides = video.shape[2:]
        if (frames - 1) % self.time or any(side % self.space for side in sides):
            raise ValueError(
                f"expected 1 + {self.time} m frames whose sides are multiples of {self.space}, "
                f"got {frames} of {sides[0]}x{sides[1]}; cut or resize the clip"
            )
        x = self.conv_in(self.patch(video).contiguous(memory_format=channels_last_3d))
        for level in self.down:
            x = level(x)
        return silu(self.norm_out(self.mid(x)))
