"""The ControlNet-like branch: the coarse video, gradient-stopped, steers the first blocks of the VDM.

Its blocks start as copies of the VDM's and its outputs at zero, so that at first it changes nothing (VideoWorld 2,
sec. 3.3; depth, weight and the way in of the hint are parameters, the release's among them). The coarse video enters as
latents of the VAE, as in the release. It is built on the VDM's `begin` alone and so serves every back end.

Legend: B batch, C latent channels, L latent frames, h w latent pixels, P tokens of a latent frame, D width of a context
token.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from vw2.models.layers import zero


@dataclass(frozen=True)
class ControlConfig:
    """Group `dldm.control` of params.yaml."""

    blocks: int = 1  # copied blocks (the release: 3 of 28); 0 switches the branch off
    weight: float = 1.0  # factor on the residuals (the release: 0.5)
    hint: Literal["linear", "mlp"] = "linear"  # how the coarse video enters (the release: mlp)
    own_time: bool = False  # its own copy of the time embedding (the release: true)


def patches(latents: Tensor, side: int) -> Tensor:
    """(B, C, L, h, w) -> (B, L P, C side^2)."""
    return rearrange(latents, "b c l (h p) (w q) -> b (l h w) (c p q)", p=side, q=side)


class LinearHint(nn.Linear):
    """One linear map, added before the first block (our choice)."""

    before = True  # added before the first block, else after it

    def __init__(self, vdm: nn.Module):
        super().__init__(vdm.latent * vdm.patch**2, vdm.width)
        self.patch = vdm.patch

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, L P, width)."""
        return super().forward(patches(latents, self.patch))


class MLPHint(nn.Module):
    """Latents filled up to 128 channels, a padding mask of zeros, a linear map, a narrow MLP of 8 layers (release)."""

    before = False
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


HINTS = {"linear": LinearHint, "mlp": MLPHint}


class ControlBranch(nn.Module):
    """Residuals for the first blocks of the VDM."""

    def __init__(self, config: ControlConfig, vdm: nn.Module):
        """`vdm`: any back end of the VDM port, with at least `config.blocks` blocks."""
        super().__init__()
        if not 0 < config.blocks <= len(vdm.blocks):
            raise ValueError(f"dldm.control.blocks must lie in 1..{len(vdm.blocks)}, the VDM's, got {config.blocks}")
        self.weight = config.weight
        # copies look at the same layout of frames as the VDM's blocks
        own = lambda part: copy.deepcopy(part, {id(vdm.layout): vdm.layout})  # noqa: E731
        self.patch_embed = own(vdm.patch_embed)
        self.time_embed = own(vdm.time_embed) if config.own_time else None
        self.blocks = nn.ModuleList([own(block) for block in vdm.blocks[: config.blocks]])
        self.hint = HINTS[config.hint](vdm)
        self.zero = nn.ModuleList([zero(nn.Linear(vdm.width, vdm.width)) for _ in range(config.blocks)])

    def copy_blocks(self, vdm: nn.Module) -> None:
        """Take over the VDM's weights; called once its pretrained weights are loaded."""
        self.patch_embed.load_state_dict(vdm.patch_embed.state_dict())
        if self.time_embed is not None:
            self.time_embed.load_state_dict(vdm.time_embed.state_dict())
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
        steer, residuals = self.hint(hint.detach()), []
        for number, (block, out) in enumerate(zip(self.blocks, self.zero, strict=True)):
            first_block = number == 0
            hidden = run(block, hidden + steer if first_block and self.hint.before else hidden)
            hidden = hidden + steer if first_block and not self.hint.before else hidden
            residuals.append(self.weight * out(hidden))
        return residuals
