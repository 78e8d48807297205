"""Factorised causal 3-D layers: space by 2-D layers on single frames, time by layers that look back only.

The design of the Cosmos tokenizer, which the authors' dLDM is built of (VideoWorld 2, release). No layer lets a frame
see a later one, normalisation included.

Legend: B batch, C channels, L latent frames, h w feature pixels, M code tokens, n code tokens per frame.
Features are (B, C, L, h, w); channels last in memory is fastest on a CPU, and every layer keeps it.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, pad, scaled_dot_product_attention, silu


def fold(x: Tensor) -> Tensor:
    """(B, C, L, h, w) -> (B L, C, h, w); a view if x is channels last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, batch: int) -> Tensor:
    """The inverse of `fold`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def repeat_first(x: Tensor, times: int) -> Tensor:
    """(B, C, L, h, w) -> (B, C, L + times, h, w): the first frame once more, `times` times, in front."""
    return torch.cat([x[:, :, :1].expand(-1, -1, times, -1, -1), x], dim=2)


class SpaceConv(nn.Conv3d):
    """Convolution (1, side, side) within frames, zero-padded; runs as a 2-D one over frames."""

    def __init__(self, channels: int, out: int, side: int = 1, stride: int = 1, padding: int | None = None):
        border = side // 2 if padding is None else padding
        super().__init__(channels, out, (1, side, side), (1, stride, stride), (0, border, border))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, out, L, h', w')."""
        frames = conv2d(fold(x), self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return unfold(frames, len(x))


class TimeConv(nn.Conv3d):
    """Causal convolution (span, 1, 1): frame t sees frames t - span + 1 .. t, the first one repeated before the start.

    With a stride the padding is shorter by stride - 1. Runs as a 2-D convolution over time and place.
    """

    def __init__(self, channels: int, out: int, span: int = 3, stride: int = 1):
        super().__init__(channels, out, (span, 1, 1), (stride, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, out, L', h, w)."""
        span, stride = self.kernel_size[0], self.stride[0]
        line = repeat_first(x, span - stride).flatten(3)  # (B, C, L + span - stride, h w)
        return conv2d(line, self.weight[..., 0], self.bias, (stride, 1)).unflatten(3, x.shape[3:])


class FactorisedConv(nn.Module):
    """A (1, 3, 3) convolution within frames, then a causal (3, 1, 1) one."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.space, self.time = SpaceConv(channels, out, 3), TimeConv(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> (B, out, L, h, w)."""
        return self.time(self.space(x))


class FrameNorm(nn.Module):
    """Normalises each frame over channels and pixels together, then scales and shifts each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> the same."""
        rows = fold(x)
        # torch 2.13's kernel crashes where weight and bias learn and what they act on does not
        if not rows.requires_grad:
            rows = rows.detach().requires_grad_(self.weight.requires_grad)
        return unfold(group_norm(rows, 1, self.weight, self.bias, 1e-6), len(x))


class ResidualBlock(nn.Module):
    """Two normalised factorised convolutions; a 1x1x1 shortcut where the width changes."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(channels), FactorisedConv(channels, out)
        self.norm2, self.conv2 = FrameNorm(out), FactorisedConv(out, out)
        self.shortcut = SpaceConv(channels, out) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> (B, out, L, h, w)."""
        return self.shortcut(x) + self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))


class SpaceAttention(nn.Module):
    """Residual self-attention (one head) over the pixels of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = FrameNorm(channels)
        self.to_q, self.to_k, self.to_v = (SpaceConv(channels, channels) for _ in range(3))
        self.to_out = SpaceConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> the same."""
        hidden = self.norm(x)
        query, key, value = (rearrange(to(hidden), "b c l h w -> (b l) 1 (h w) c") for to in self.projections())
        mixed = scaled_dot_product_attention(query, key, value)
        return x + self.to_out(rearrange(mixed, "(b l) 1 (h w) c -> b c l h w", b=len(x), h=x.shape[3]))

    def projections(self) -> tuple[nn.Module, ...]:
        return self.to_q, self.to_k, self.to_v


class TimeAttention(SpaceAttention):
    """Residual causal self-attention (one head) over time, pixel by pixel: frame t sees frames 0 .. t."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> the same."""
        hidden = self.norm(x)
        query, key, value = (rearrange(to(hidden), "b c l h w -> (b h w) 1 l c") for to in self.projections())
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.to_out(rearrange(mixed, "(b h w) 1 l c -> b c l h w", h=x.shape[3], w=x.shape[4]))


class CausalCrossAttention(nn.Module):
    """Residual attention (one head) of pixels to code tokens: of L frames frame i, from 0, sees the first (i + 1) M / L
    of M tokens, one that is shared by two frames included.

    Args:
        source: width of the tokens.
    """

    def __init__(self, channels: int, source: int):
        super().__init__()
        self.norm, self.to_q = FrameNorm(channels), SpaceConv(channels, channels)
        self.to_kv, self.to_out = nn.Linear(source, 2 * channels), SpaceConv(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, C, L, h, w), tokens (B, M, source) -> like x; M and L are multiples of the code steps."""
        frames, (height, width) = x.shape[2], x.shape[3:]
        key, value = self.to_kv(tokens)[:, None].chunk(2, -1)
        query = rearrange(self.to_q(self.norm(x)), "b c l h w -> b 1 (l h w) c")
        frame, token = torch.arange(frames, device=x.device), torch.arange(tokens.shape[1], device=x.device)
        mask = (frame[:, None] + 1) * len(token) > token * frames  # (L, M)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask.repeat_interleave(height * width, 0))
        return x + self.to_out(rearrange(mixed, "b 1 (l h w) c -> b c l h w", l=frames, h=height))


class SpaceDown(nn.Module):
    """Halves height and width (both even): a strided convolution plus the mean of 2x2 pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpaceConv(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> (B, channels, L, h / 2, w / 2)."""
        x = pad(x, (0, 1, 0, 1))
        return self.conv(x) + unfold(avg_pool2d(fold(x), 2), len(x))


class TimeDown(nn.Module):
    """1 + 2 m frames -> 1 + m: a strided causal convolution plus the mean of pairs, frame 0 with itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = TimeConv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, 1 + 2 m, h, w) -> (B, channels, 1 + m, h, w)."""
        x = repeat_first(x, 1)
        return self.conv(x) + (x[:, :, ::2] + x[:, :, 1::2]) / 2


class SpaceUp(nn.Module):
    """Doubles height and width: every pixel four times, plus a convolution of that."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpaceConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> (B, channels, L, 2 h, 2 w)."""
        x = unfold(interpolate(fold(x), scale_factor=2, mode="nearest"), len(x))
        return x + self.conv(x)


class TimeUp(nn.Module):
    """1 + m frames -> 1 + 2 m: every frame but the first twice, plus a causal convolution of that."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = TimeConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, 1 + m, h, w) -> (B, channels, 1 + 2 m, h, w)."""
        x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, dim=2)], dim=2)
        return x + self.conv(x)


class Resample(nn.Module):
    """Steps that change the size, one after the other, then a 1x1x1 convolution; nothing at all without steps.

    Args:
        steps: name -> layer.
    """

    def __init__(self, channels: int, **steps: nn.Module):
        super().__init__()
        if steps:
            steps["out"] = SpaceConv(channels, channels)
        self.steps = list(steps)
        for name, step in steps.items():
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L, h, w) -> the size that its steps make of it."""
        for name in self.steps:
            x = getattr(self, name)(x)
        return x


def downsample(channels: int, space: bool, time: bool) -> Resample:
    """Space first, then time."""
    steps = {"space": SpaceDown(channels)} if space else {}
    return Resample(channels, **steps | ({"time": TimeDown(channels)} if time else {}))


def upsample(channels: int, space: bool, time: bool) -> Resample:
    """Time first, then space."""
    steps = {"time": TimeUp(channels)} if time else {}
    return Resample(channels, **steps | ({"space": SpaceUp(channels)} if space else {}))
