"""The ControlNet-like branch: the coarse video, gradient-stopped, steers the first blocks of the VDM.

Its blocks start as copies of the VDM's and its outputs at zero, so that at first it changes nothing (VideoWorld 2,
sec. 3.3; depth and weight as in the authors' release are parameters). The coarse video enters as latents of the VAE, as
in the release.
"""

import copy
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vw2.models.attention import set_block_causal
from vw2.models.layers import zero
from vw2.models.prior import VDM

PATCH = 2  # latent pixels per VDM token and side


@dataclass(frozen=True)
class ControlConfig:
    """Group `dldm.control` of params.yaml."""

    blocks: int = 1  # copied blocks (the release: 3 of 28); 0 switches the branch off
    weight: float = 1.0  # factor on the residuals (the release: 0.5)


class ControlBranch(nn.Module):
    """Residuals for the first blocks of the VDM."""

    def __init__(self, config: ControlConfig, vdm: VDM, latent: int):
        super().__init__()
        self.weight = config.weight
        transformer, width = vdm.transformer, vdm.config.width
        self.patch_embed = copy.deepcopy(transformer.patch_embed)
        blocks = [copy.deepcopy(block) for block in transformer.transformer_blocks[: config.blocks]]
        self.blocks = nn.ModuleList(blocks)
        set_block_causal(self.blocks, vdm.layout)
        self.hint = nn.Linear(latent * PATCH**2, width)
        self.zero = nn.ModuleList([zero(nn.Linear(width, width)) for _ in range(config.blocks)])

    def copy_blocks(self, vdm: VDM) -> None:
        """Take over the VDM's weights; called once its pretrained weights are loaded."""
        self.patch_embed.load_state_dict(vdm.transformer.patch_embed.state_dict())
        for mine, theirs in zip(self.blocks, vdm.transformer.transformer_blocks, strict=False):
            mine.load_state_dict(theirs.state_dict())

    def forward(self, vdm: VDM, noisy: Tensor, time: Tensor, first: Tensor, tokens: Tensor, hint: Tensor) -> list:
        """Residuals (B, L P, width), one per copied block.

        Args:
            noisy, time, first: as in VDM.forward.
            tokens: (B, K N, D) projected codes.
            hint: (B, C, L, h, w) latents of the coarse video; no gradient flows into them.
        """
        latents, times, mask = vdm.inputs(noisy, time, first)
        transformer, rows = vdm.transformer, noisy.shape[3] // PATCH
        hidden = self.patch_embed(torch.cat([latents, mask], 1)).flatten(1, 3)
        patches = rearrange(hint.detach(), "b c l (h p) (w q) -> b (l h w) (c p q)", p=PATCH, q=PATCH)
        temb, embedded = transformer.time_embed(hidden, times.flatten())
        spread = lambda x: x.view(len(noisy), noisy.shape[2], 1, -1).expand(-1, -1, rows**2, -1).flatten(1, 2)  # noqa: E731
        temb, embedded = spread(temb), spread(embedded)
        vdm.layout.frames = noisy.shape[2]
        rope = transformer.rope(latents, fps=None)
        tokens = torch.cat([vdm.null.expand(len(noisy), -1, -1), tokens], dim=1)
        hidden = hidden + self.hint(patches)
        residuals = []
        for block, out in zip(self.blocks, self.zero, strict=True):
            hidden = block(hidden, tokens, embedded, temb, rope)
            residuals.append(self.weight * out(hidden))
        return residuals
