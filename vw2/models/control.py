"""The ControlNet-like branch: the coarse video, gradient-stopped, steers the first blocks of the VDM.

Its blocks start as copies of the VDM's and its outputs at zero, so that at first it changes nothing (VideoWorld 2,
sec. 3.3; depth, weight and the way in of the hint are parameters, the release's among them). The coarse video enters as
latents of the VAE, as in the release. It is built on the VDM's `begin` alone and so serves every back end.

Legend: B batch, C latent channels, L latent frames, h w latent pixels, P tokens of a latent frame, D width of a context
token.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from vw2.models.layers import zero
from vw2.models.port import VideoVAE
from vw2.models.ranges import at_least

Block = Callable[[Tensor], Tensor]  # a transformer block with all that it is told in this pass


@dataclass(frozen=True)
class ControlConfig:
    """Group `dldm.control` of params.yaml."""

    # copied blocks: the first so many (the release: 3 of 28), or those of these numbers; 0 switches the branch off
    blocks: int | tuple[int, ...] = 1
    weight: float = 1.0  # factor on the residuals (the release: 0.5)
    hint: Literal["linear", "mlp"] = "linear"  # how the coarse video enters (the release: mlp)
    own_time: bool = False  # its own copy of the time embedding (the release: true)
    weights: str | None = None  # safetensors file to begin the joint stage with; None = copies of the VDM's blocks
    sees: Literal["change", "grey"] = "change"  # of the coarse video, see SEES
    hint_channels: int = 128  # mlp: what latents are filled up to (release)
    dropout: float = 0.0  # share of training clips that it leaves alone, so that the VDM has to read the codes

    def __post_init__(self):
        at_least("dldm.control", self, blocks=0, hint_channels=1)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dldm.control.dropout must lie in [0, 1], got {self.dropout}; change it")
        if list(self.numbers) != sorted(set(self.numbers)):
            raise ValueError(f"dldm.control.blocks must name each block once, in order, got {self.blocks}; change it")
        if self.weights is not None and not self.blocks:
            raise ValueError(
                f"dldm.control.weights is {self.weights} but dldm.control.blocks is 0, no branch; set one of them"
            )

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the copied blocks."""
        return tuple(range(self.blocks)) if isinstance(self.blocks, int) else self.blocks

    def check(self, layers: int) -> None:
        """Raise ValueError unless there is something to copy, in a VDM of so many blocks."""
        if not self.numbers or self.numbers[-1] >= layers:
            raise ValueError(
                f"dldm.control.blocks must lie in 1..{layers}, the VDM's, or name some of blocks 0..{layers - 1}, got "
                f"{self.blocks}; change it"
            )


def change(vae: VideoVAE, coarse: Tensor, known: Tensor, latents: Tensor | None = None) -> Tensor:
    """Latents of the coarse video minus those of the first frame (our choice)."""
    return (vae.encode(coarse) if latents is None else latents) - known


def grey(vae: VideoVAE, coarse: Tensor, known: Tensor, latents: Tensor | None = None) -> Tensor:
    """Latents of the coarse video in grey (release)."""
    red, green, blue = (coarse / 2 + 0.5).unbind(1)
    light = 0.2989 * red + 0.587 * green + 0.114 * blue
    return vae.encode((2 * light - 1)[:, None].expand_as(coarse))


def blind(vae: VideoVAE, coarse: Tensor, known: Tensor, latents: Tensor | None = None) -> Tensor:
    """Where there is no branch nothing is encoded for it."""
    return known


# What the branch sees: (VAE, coarse video (B, 3, T, H, W) in [-1, 1], latents of its first frame (B, C, 1, h, w), and
# its own where they are at hand) -> hint (B, C, L, h, w).
SEES = {"change": change, "grey": grey}


def patches(latents: Tensor, side: int) -> Tensor:
    """(B, C, L, h, w) -> (B, L P, C side^2)."""
    return rearrange(latents, "b c l (h p) (w q) -> b (l h w) (c p q)", p=side, q=side)


def leave_out(residuals: list[Tensor | None], clips: Tensor | None) -> list[Tensor | None]:
    """Residuals (B, L P, width) of a branch, zero for some of the clips, (B,) bool; None: for none of them."""
    if clips is None:
        return residuals
    return [each if each is None else each.masked_fill(clips[:, None, None], 0) for each in residuals]


class LinearHint(nn.Linear):
    """One linear map, added before the first block (our choice)."""

    def __init__(self, vdm: nn.Module):
        super().__init__(vdm.latent * vdm.patch**2, vdm.width)
        self.patch = vdm.patch

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, L P, width)."""
        return super().forward(patches(latents, self.patch))

    def through(self, block: Block, hidden: Tensor, latents: Tensor) -> Tensor:
        """The first block with the hint, (B, L P, width) -> the same."""
        return block(hidden + self(latents).type_as(hidden))


class MLPHint(nn.Module):
    """Latents filled up to some channels, the VDM's padding mask, a linear map, a narrow MLP of 8 layers (release)."""

    narrow = (16, 16, 32, 32, 96, 96, 256)

    def __init__(self, vdm: nn.Module, channels: int = 128):
        super().__init__()
        if vdm.latent > channels:
            raise ValueError(
                f"dldm.control.hint_channels must be at least {vdm.latent}, the channels of the VDM's latents, got "
                f"{channels}; raise it"
            )
        self.patch, self.channels = vdm.patch, channels + vdm.padding_mask
        self.embed = nn.Linear(self.channels * vdm.patch**2, vdm.width, bias=False)
        widths = (vdm.width, *self.narrow, vdm.width)
        layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.SiLU())]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, L P, width)."""
        filled = pad(latents, (0, 0) * 3 + (0, self.channels - latents.shape[1]))
        return self.mlp(self.embed(patches(filled, self.patch)))

    def through(self, block: Block, hidden: Tensor, latents: Tensor) -> Tensor:
        """The first block, and behind it the hint, (B, L P, width) -> the same."""
        return block(hidden) + self(latents).type_as(hidden)


HINTS = {
    "linear": lambda vdm, config: LinearHint(vdm),
    "mlp": lambda vdm, config: MLPHint(vdm, config.hint_channels),
}


class ControlBranch(nn.Module):
    """Residuals for some blocks of the VDM, mostly the first."""

    def __init__(self, config: ControlConfig, vdm: nn.Module):
        """`vdm`: any back end of the VDM port, with the blocks that `config` names."""
        super().__init__()
        config.check(len(vdm.blocks))
        self.weight = config.weight
        # copies look at the same layout of frames as the VDM's blocks
        own = lambda part: copy.deepcopy(part, {id(vdm.layout): vdm.layout})  # noqa: E731
        self.patch_embed = own(vdm.patch_embed)
        self.time_embed = own(vdm.time_embed) if config.own_time else None
        # The release's branch has a last layer too, which is never run: kept so that its files go there and back whole.
        last = vdm.last() if config.own_time else {}
        self.last = nn.ModuleDict({name: own(part) for name, part in last.items()}).requires_grad_(False)
        self.blocks = nn.ModuleDict({str(i): own(vdm.blocks[i]) for i in config.numbers})
        self.hint = HINTS[config.hint](vdm, config)
        self.zero = nn.ModuleDict({number: zero(nn.Linear(vdm.width, vdm.width)) for number in self.blocks})

    def forward(
        self, vdm: nn.Module, noisy: Tensor, time: Tensor, first: Tensor, tokens: Tensor, hint: Tensor
    ) -> list[Tensor | None]:
        """Residuals (B, L P, width) for the VDM's blocks up to the last copied one; None where no copy stands.

        Args:
            noisy, time, first: as in the VDM's forward.
            tokens: (B, K N, D) projected codes.
            hint: (B, C, L, h, w) latents of the coarse video; no gradient flows into them.
        """
        clock = {} if self.time_embed is None else {"time_embed": self.time_embed}
        hidden, run = vdm.begin(noisy, time, first, tokens, self.patch_embed, **clock)
        residuals: dict[int, Tensor] = {}
        for number, block in self.blocks.items():
            each = partial(run, block)
            hidden = each(hidden) if residuals else self.hint.through(each, hidden, hint.detach())
            residuals[int(number)] = self.residual(self.zero[number], hidden)
        return [residuals.get(i) for i in range(max(residuals) + 1)]

    def residual(self, out: nn.Linear, hidden: Tensor) -> Tensor:
        """What a copied block adds; hint and outputs stay in float32 where copies of the VDM's parts are bfloat16."""
        return self.weight * out(hidden.type_as(out.weight))
