"""The video prior: a causal video VAE and a video diffusion transformer (VDM, `vw2.models.cosmos`), with their files.

Legend: B batch, T frames, L latent frames (1 + (T-1)/4), C latent channels, h w latent pixels (H/8, W/8), D width of
the context.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import vw2.torchvision_ops  # noqa: F401  (must come before the Cosmos classes are imported)

import torch
from diffusers import AutoencoderKLCosmos
from einops import rearrange
from torch import Tensor, nn

from vw2.files import write_json
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.haar import PATCH, blocks, unblocks
from vw2.models.pretrained import read_weights, save_weights

SIDE = 8  # pixels per latent pixel and side


@dataclass(frozen=True)
class VAEConfig:
    """A small causal video VAE: 8x in space, 4x in time, the first frame alone."""

    latent: int = 48  # C
    channels: tuple[int, ...] = ()  # of the Cosmos network beside the linear map, three numbers; empty = none
    layers: int = 1

    def __post_init__(self):
        if len(self.channels) not in (0, 3):
            raise ValueError(f"prior.model.vae.channels must be three numbers or none, got {list(self.channels)}")

    def network(self) -> AutoencoderKLCosmos | None:
        """A Cosmos tokenizer (Haar patches of 4, then one more halving) that starts at zero."""
        if not self.channels:
            return None
        net = AutoencoderKLCosmos(
            latent_channels=self.latent,
            encoder_block_out_channels=self.channels,
            decode_block_out_channels=self.channels,
            attention_resolutions=(),
            resolution=64,
            num_layers=self.layers,
            patch_size=4,
            patch_type="haar",
            scaling_factor=1.0,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            latents_mean=None,
            latents_std=None,
        )
        for layer in (net.quant_conv, net.decoder.conv_out.conv_t):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return net


@dataclass(frozen=True)
class VDMConfig:
    """A small Cosmos-Predict2 transformer."""

    heads: int = 4
    head_width: int = 64
    layers: int = 6
    adaln_rank: int = 32
    context: int = 128  # D
    time_scale: float = 1000.0  # the network is told time_scale * t
    # what the network's output means: the velocity (Cosmos), or the clean video's change from its first frame (our
    # choice for the mini prior: an untrained one then copies the first frame instead of making noise)
    prediction: Literal["velocity", "change"] = "change"

    def cosmos(self, latent: int) -> CosmosConfig:
        """The numbers of the transformer for C = `latent` channels."""
        return CosmosConfig(
            latent=latent,
            max_size=(64, 128, 128),
            rope_scale=(1.0, 1.0, 1.0),
            padding_mask=False,
            tokens=0,
            first_time=0.0,
            attention="causal",
            norm_eps=1e-5,  # the committed prior learned with it
            **asdict(self),
        )


@dataclass(frozen=True)
class PriorModelConfig:
    """Group `prior.model` of params.yaml."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    vdm: VDMConfig = field(default_factory=VDMConfig)


class VideoVAE(nn.Module):
    """A linear map, the principal components of 8x8x4 blocks of pixels, with a Cosmos network beside it (our choice).

    The linear map is fitted in closed form and is the best linear autoencoder of its size; a network starts at zero
    and adds what a linear map cannot. On two cores the map alone beats an hour of training a network without it, and
    a still scene has the same latents in every frame. All channels share one scale, so latent error is pixel error.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.net = config.network()
        self.latent, self.side = config.latent, SIDE
        cell = 3 * PATCH * SIDE**2  # numbers in a block
        self.register_buffer("basis", torch.zeros(cell, config.latent))
        self.register_buffer("centre", torch.zeros(cell))
        self.register_buffer("scale", torch.ones(()))

    def cells(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, L, h, w, cell) pixels of the blocks, the first frame repeated 4 times."""
        return blocks(video, SIDE).flatten(4)

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Set the linear map to the principal components of the cells of some videos (B, 3, T, H, W)."""
        count, total, square = 0, 0.0, 0.0
        for video in videos:
            cells = self.cells(video).flatten(0, 3).double()
            count, total, square = count + len(cells), total + cells.sum(0), square + cells.T @ cells
        centre = total / count
        values, vectors = torch.linalg.eigh(square / count - centre[:, None] * centre)
        latent = self.basis.shape[1]
        self.centre.copy_(centre)
        self.basis.copy_(vectors.flip(1)[:, :latent])
        self.scale.copy_((values.flip(0)[:latent].sum() / latent).sqrt())

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, C, L, h, w), T = 1 + 4 (L - 1)."""
        assert (video.shape[2] - 1) % PATCH == 0, f"expected T = 1 + 4m frames, got {video.shape[2]}"
        linear = rearrange((self.cells(video) - self.centre) @ self.basis, "b l h w c -> b c l h w") / self.scale
        return linear if self.net is None else linear + self.net.encode(video).latent_dist.mode()

    def expand(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, 3, T, H, W), not clamped."""
        cells = rearrange(latents, "b c l h w -> b l h w c") * self.scale @ self.basis.T + self.centre
        linear = unblocks(cells.unflatten(-1, (3, -1)), SIDE)
        return linear if self.net is None else linear + self.net.decode(latents).sample

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, 3, T, H, W), clamped to [-1, 1]."""
        return self.expand(latents).clamp(-1, 1)


class Prior(nn.Module):
    """VAE and VDM together, with their files: vae.safetensors, transformer.safetensors, config.json."""

    def __init__(self, config: PriorModelConfig):
        super().__init__()
        self.config = config
        self.vae = VideoVAE(config.vae)
        self.vdm = CosmosVDM(config.vdm.cosmos(config.vae.latent))

    def save(self, folder: Path, record: dict) -> None:
        """Write weights in bfloat16 and the config; `record` (say, the training parameters) is kept beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in (("vae", self.vae), ("transformer", self.vdm)):
            save_weights(module, folder / f"{name}.safetensors", torch.bfloat16)
        write_json(folder / "config.json", {"model": asdict(self.config), "record": record})

    def load(self, folder: Path) -> "Prior":
        """Fill the weights from `folder`, converted to float32."""
        for name, module in (("vae", self.vae), ("transformer", self.vdm)):
            weights = read_weights(folder / f"{name}.safetensors")
            module.load_state_dict({key: value.float() for key, value in weights.items()})
        return self
