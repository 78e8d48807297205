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

Block = Callable[[Tensor], Tensor]  # a transformer block with all that it is told in this pass


@dataclass(frozen=True)
class ControlConfig:
    """Group `dldm.control` of params.yaml."""

    blocks: int = 1  # copied blocks (the release: 3 of 28); 0 switches the branch off
    weight: float = 1.0  # factor on the residuals (the release: 0.5)
    hint: Literal["linear", "mlp"] = "linear"  # how the coarse video enters (the release: mlp)
    own_time: bool = False  # its own copy of the time embedding (the release: true)
    weights: str | None = None  # safetensors file to begin the joint stage with; None = copies of the VDM's blocks
    sees: Literal["change", "grey"] = "change"  # of the coarse video, see SEES

    def __post_init__(self):
        if self.weights is not None and not self.blocks:
            raise ValueError(
                f"dldm.control.weights is {self.weights} but dldm.control.blocks is 0, no branch; set one of them"
            )


def change(vae, coarse: Tensor, known: Tensor, latents: Tensor | None = None) -> Tensor:
    """Latents of the coarse video minus those of the first frame (our choice)."""
    return (vae.encode(coarse) if latents is None else latents) - known


def grey(vae, coarse: Tensor, known: Tensor, latents: Tensor | None = None) -> Tensor:
    """Latents of the coarse video in grey (release)."""
    red, green, blue = (coarse / 2 + 0.5).unbind(1)
    light = 0.2989 * red + 0.587 * green + 0.114 * blue
    return vae.encode((2 * light - 1)[:, None].expand_as(coarse))


# What the branch sees: (VAE, coarse video (B, 3, T, H, W) in [-1, 1], latents of its first frame (B, C, 1, h, w), and
# its own where they are at hand) -> hint (B, C, L, h, w).
SEES = {"change": change, "grey": grey}


def patches(latents: Tensor, side: int) -> Tensor:
    """(B, C, L, h, w) -> (B, L P, C side^2)."""
    return rearrange(latents, "b c l (h p) (w q) -> b (l h w) (c p q)", p=side, q=side)


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
    """Latents filled up to 128 channels, a padding mask of zeros, a linear map, a narrow MLP of 8 layers (release)."""

    channels = 128 + 1
    narrow = (16, 16, 32, 32, 96, 96, 256)

    def __init__(self, vdm: nn.Module):
        super().__init__()
        self.patch = vdm.patch
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


HINTS = {"linear": LinearHint, "mlp": MLPHint}


class ControlBranch(nn.Module):
    """Residuals for the first blocks of the VDM."""

    def __init__(self, config: ControlConfig, vdm: nn.Module):
        """`vdm`: any back end of the VDM port, with at least `config.blocks` blocks."""
        super().__init__()
        if not 0 < config.blocks <= len(vdm.blocks):
            raise ValueError(f"dldm.control.blocks must lie in 1..{len(vdm.blocks)}, the VDM's, got {config.blocks}")
        if config.own_time and not hasattr(vdm, "time_embed"):
            raise ValueError(
                f"dldm.control.own_time true needs a VDM that lets it be replaced, got {type(vdm).__name__}; "
                "set it to false"
            )
        self.weight = config.weight
        # copies look at the same layout of frames as the VDM's blocks
        own = lambda part: copy.deepcopy(part, {id(vdm.layout): vdm.layout})  # noqa: E731
        self.patch_embed = own(vdm.patch_embed)
        self.time_embed = own(vdm.time_embed) if config.own_time else None
        # The release's branch has a last layer too, which is never run: kept so that its files go there and back whole.
        last = vdm.last() if config.own_time and hasattr(vdm, "last") else None
        self.last = last and nn.ModuleDict({name: own(part) for name, part in last.items()}).requires_grad_(False)
        self.blocks = nn.ModuleList([own(block) for block in vdm.blocks[: config.blocks]])
        self.hint = HINTS[config.hint](vdm)
        self.zero = nn.ModuleList([zero(nn.Linear(vdm.width, vdm.width)) for _ in range(config.blocks)])

    def copy_blocks(self, vdm: nn.Module) -> None:
        """Take over the VDM's weights; called once its pretrained weights are loaded."""
        self.patch_embed.load_state_dict(vdm.patch_embed.state_dict())
        if self.time_embed is not None:
            self.time_embed.load_state_dict(vdm.time_embed.state_dict())
        for name, mine in (self.last or {}).items():
            mine.load_state_dict(vdm.last()[name].state_dict())
        for mine, theirs in zip(self.blocks, vdm.blocks, strict=False):
            mine.load_state_dict(theirs.state_dict())

    def forward(
        self, vdm: nn.Module, noisy: Tensor, time: Tensor, first: Tensor, tokens: Tensor, hint: Tensor
    ) -> list[Tensor]:
        """Residuals (B, L P, width), one per copied block.

        Args:
            noisy, time, first: as in the VDM's forward.
            tokens: (B, K N, D) projected codes.
            hint: (B, C, L, h, w) latents of the coarse video; no gradient flows into them.
        """
        clock = {} if self.time_embed is None else {"time_embed": self.time_embed}
        hidden, run = vdm.begin(noisy, time, first, tokens, self.patch_embed, **clock)
        hidden = self.hint.through(partial(run, self.blocks[0]), hidden, hint.detach())
        residuals = [self.residual(self.zero[0], hidden)]
        for block, out in zip(self.blocks[1:], self.zero[1:], strict=True):
            hidden = run(block, hidden)
            residuals.append(self.residual(out, hidden))
        return residuals

    def residual(self, out: nn.Linear, hidden: Tensor) -> Tensor:
        """What a copied block adds; hint and outputs stay in float32 where copies of the VDM's parts are bfloat16."""
        return self.weight * out(hidden.type_as(out.weight))
