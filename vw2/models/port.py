"""The port behind which every video model stands: what the dLDM asks of a VAE and of a video diffusion model (VDM).

Back ends (`vw2.models.backends`) need not inherit from these protocols, only fit them; tests/test_backends.py holds
each of them to what is said here. Legend: B batch, T frames, L latent frames, K = L - 1 code steps, N codes per step,
C latent channels, h w latent pixels, P tokens of a latent frame, D width of a context token.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vw2.models.attention import Layout


@runtime_checkable
class VideoVAE(Protocol):
    """A causal video autoencoder: 4x in time, the first frame alone; latent frame l knows nothing of later frames."""

    latent: int  # C
    side: int  # pixels per latent pixel and side

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1], T = 1 + 4 (L - 1) -> (B, C, L, H / side, W / side), of about unit variance."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, 3, T, h side, w side), clamped to [-1, 1]."""


@runtime_checkable
class VDM(Protocol):
    """Velocity noise - clean of a rectified flow x_t = (1 - t) x_0 + t noise whose first latent frame is known."""

    latent: int  # C
    context: int  # D
    width: int  # of the tokens that its blocks work on
    patch: int  # latent pixels per token and side
    most: int  # tokens that its rotary embedding reaches, per side of a latent frame and over time
    layout: Layout  # shared with the attention processors of its blocks
    padding_mask: bool  # does its patch embedding read one? Always zero here
    null: Tensor  # (1, 1, D) context token that says nothing: any number of it is as none

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order."""

    @property
    def time_embed(self) -> nn.Module:
        """The embedding of times."""

    def last(self) -> dict[str, nn.Module]:
        """Layers behind the blocks that the authors' control branch holds too, by name."""

    @property
    def patch_embed(self) -> nn.Module:
        """What turns latents into tokens."""

    def __call__(
        self, noisy: Tensor, time: Tensor, first: Tensor, context: Tensor | None = None, control: list | None = None
    ) -> Tensor:
        """Predict the velocity.

        Args:
            noisy: (B, C, L, h, w) at noise level `time`; its first frame is not looked at.
            time: (B,) t in [0, 1], or (B, L) where every frame has its own; the given first one is taken as clean.
            first: (B, C, 1, h, w) clean first latent frame.
            context: (B, K N, D) projected codes, or None for none.
            control: residuals (B, L P, width) to add after the blocks, from the first on; None adds nothing.
        Returns: (B, C, L, h, w).
        """

    @property
    def transformer(self) -> nn.Module:
        """The network as diffusers has it: `vw2.models.adapt` checkpoints it, `vw2.models.spread` spreads it."""

    def fresh(self) -> "VDM":
        """The same network with random weights."""

    def begin(
        self,
        noisy: Tensor,
        time: Tensor,
        first: Tensor,
        context: Tensor | None = None,
        embed: nn.Module | None = None,
        time_embed: nn.Module | None = None,
    ) -> tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]:
        """What a pass does before its first block, for whoever runs copies of blocks beside the VDM.

        Args:
            noisy, time, first, context: as above.
            embed, time_embed: instead of the VDM's own patch and time embeddings.
        Returns: hidden (B, L P, width); run(block, hidden) -> hidden, one block with the context, times and rotary
            embeddings of this pass.
        """


class VideoPrior(Protocol):
    """A VAE and the VDM that works on its latents."""

    vae: VideoVAE
    vdm: VDM
