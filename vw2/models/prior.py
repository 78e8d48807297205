"""The video prior: a causal video VAE and a video diffusion transformer (VDM), both of diffusers.

The mini prior and the real backbones are the same classes with other numbers. Legend: B batch, T frames, L latent
frames (1 + (T-1)/4), C latent channels, h w latent pixels (H/8, W/8), S context tokens, D width of the context.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import vw2.torchvision_ops  # noqa: F401  (must come before the Cosmos classes are imported)

import torch
from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from vw2.models.attention import Layout, WindowRope, set_block_causal
from vw2.models.flow import over_latents
from vw2.models.haar import PATCH, blocks, unblocks

SIDE = 8  # pixels per latent pixel and side
LEAST_TIME = 0.2  # divisor's floor where a velocity is made from a predicted clean video


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

    @property
    def width(self) -> int:
        return self.heads * self.head_width


@dataclass(frozen=True)
class PriorModelConfig:
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


class VDM(nn.Module):
    """Velocity of the rectified flow for a video whose first latent frame is known.

    Self-attention is block-causal over latent frames and cross-attention causal over code steps (VideoWorld 2,
    sec. 3.3): both masks are set by `vw2.models.attention`.
    """

    def __init__(self, config: VDMConfig, latent: int):
        super().__init__()
        self.config = config
        self.layout = Layout()
        self.transformer = CosmosTransformer3DModel(
            in_channels=latent + 1,
            out_channels=latent,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            num_layers=config.layers,
            text_embed_dim=config.context,
            adaln_lora_dim=config.adaln_rank,
            max_size=(64, 128, 128),
            rope_scale=(1.0, 1.0, 1.0),
            concat_padding_mask=False,
            extra_pos_embed_type=None,
            controlnet_block_every_n=1,
        )
        self.null = nn.Parameter(torch.zeros(1, 1, config.context))  # stands where there is no code yet
        set_block_causal(self.transformer.transformer_blocks, self.layout)
        self.transformer.rope = WindowRope(self.transformer.rope, self.layout)
        if config.prediction == "change":
            nn.init.zeros_(self.transformer.proj_out.weight)

    def inputs(self, noisy: Tensor, time: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the clean first frame in place: latents, per-frame times (B, 1, L, 1, 1), condition mask."""
        given = self.layout.given  # a later window of the clip holds no given frame
        latents = torch.cat([first[:, :, :given], noisy[:, :, given:]], dim=2)
        times = over_latents(time).expand(-1, 1, noisy.shape[2], -1, -1) * self.config.time_scale
        times = torch.cat([torch.zeros_like(times[:, :, :given]), times[:, :, given:]], dim=2)
        mask = torch.zeros_like(noisy[:, :1])
        mask[:, :, :given] = 1
        return latents, times, mask

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        first: Tensor,
        context: Tensor | None = None,
        control: list[Tensor] | None = None,
    ) -> Tensor:
        """Predict the velocity noise - clean.

        Args:
            noisy: (B, C, L, h, w) (1 - t) clean + t noise; its first frame is not looked at.
            time: (B,) t in [0, 1], or (B, L), one of each latent frame.
            first: (B, C, 1, h, w) clean first latent frame.
            context: (B, K N, D) projected codes, K = L - 1 steps of N queries; none before the joint stage.
            control: residuals (B, L h w / 4, width), one per transformer block from the first on; zeros where absent.
        Returns: (B, C, L, h, w).
        """
        latents, times, mask = self.inputs(noisy, time, first)
        null = self.null.expand(len(noisy), -1, -1)
        tokens = null if context is None else torch.cat([null, context], dim=1)
        self.layout.frames = noisy.shape[2]
        residuals = None
        if control is not None:
            blocks = len(self.transformer.transformer_blocks)
            residuals = control + [torch.zeros_like(control[0])] * (blocks - len(control))
        out = self.transformer(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=tokens,
            condition_mask=mask,
            block_controlnet_hidden_states=residuals,
            return_dict=False,
        )[0]
        return self.to_velocity(out, noisy, time, first)

    def to_velocity(self, out: Tensor, noisy: Tensor, time: Tensor, first: Tensor) -> Tensor:
        """The network's output as a velocity (x_t - x_0) / t."""
        if self.config.prediction == "velocity":
            return out
        return (noisy - (first + out)) / over_latents(time).clamp(min=LEAST_TIME)


class Prior(nn.Module):
    """VAE and VDM together, with their files: vae.safetensors, transformer.safetensors, config.json."""

    def __init__(self, config: PriorModelConfig):
        super().__init__()
        self.config = config
        self.vae = VideoVAE(config.vae)
        self.vdm = VDM(config.vdm, config.vae.latent)

    def save(self, folder: Path, record: dict) -> None:
        """Write weights in bfloat16 and the config; `record` (say, the training parameters) is kept beside it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for name, module in (("vae", self.vae), ("transformer", self.vdm)):
            weights = {key: value.to(torch.bfloat16).contiguous() for key, value in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")
        text = json.dumps({"model": asdict(self.config), "record": record}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")

    def load(self, folder: Path) -> "Prior":
        """Fill the weights from `folder`, converted to float32."""
        from safetensors.torch import load_file

        for name, module in (("vae", self.vae), ("transformer", self.vdm)):
            weights = load_file(folder / f"{name}.safetensors")
            module.load_state_dict({key: value.float() for key, value in weights.items()})
        return self
