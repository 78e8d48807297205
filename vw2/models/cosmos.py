"""The VDM on diffusers' Cosmos-Predict2 transformer: the mini prior and the 2B backbone are this class, other numbers.

Legend: B batch, C latent channels, L latent frames, h w latent pixels, P = h w / patch^2 tokens of a latent frame,
K = L - 1 code steps, N codes per step, D width of a context token, S context tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import vw2.torchvision_ops  # noqa: F401  (must come before the Cosmos classes are imported)

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from vw2.models.attention import Layout, WindowRope, set_causal
from vw2.models.flow import over_latents

LEAST_TIME = 0.2  # divisor's floor where a velocity is made from a predicted clean video
FIRST_TIME = 1e-4 / (1 + 1e-4)  # the release's noise level of the given first frame: sigma 1e-4


@dataclass(frozen=True)
class CosmosConfig:
    """Numbers of the transformer and what it is told; the defaults are the release's Cosmos-Predict2 2B."""

    latent: int = 16  # C
    heads: int = 16
    head_width: int = 128
    layers: int = 28
    adaln_rank: int = 256
    context: int = 1024  # D
    max_size: tuple[int, int, int] = (128, 240, 240)  # latent frames and pixels, the most
    rope_scale: tuple[float, float, float] = (1.0, 3.0, 3.0)  # time, height, width
    padding_mask: bool = True  # one more input channel, always zero here
    tokens: int = 512  # zero tokens fill the context up to S (release); 0 = one learned token in front of the codes
    first_time: float = FIRST_TIME  # t of the given first frame
    time_scale: float = 1.0  # the network is told time_scale * t
    prediction: Literal["velocity", "change"] = "velocity"  # what comes out: noise - clean, or clean - first frame
    # masks over time: none (release), block-causal with causal cross-attention (VideoWorld 2, sec. 3.3), or the
    # release's causal cross-attention, which it never switches on
    attention: Literal["full", "causal", "release-causal"] = "full"
    mlp_ratio: float = 4.0  # width of a block's MLP, in its own
    patch: int = 2  # latent pixels per token and side
    fps: float | None = None  # what the rotary embedding is told, at 24 the same as nothing; None: nothing (release)
    norm_eps: float = 1e-6  # of the norms of queries and keys; diffusers' blocks have 1e-5

    def __post_init__(self):
        if self.attention == "causal" and self.tokens:
            raise ValueError(
                f"causal attention wants one learned token before the codes, but tokens is {self.tokens}; set it to 0"
            )
        if self.head_width % 2 or self.head_width < 12:  # its rotary embedding turns pairs, over time and two sides
            raise ValueError(f"head_width must be even and at least 12, got {self.head_width}; change it")
        if self.patch < 1 or self.fps is not None and self.fps <= 0:
            raise ValueError(
                f"patch must be at least 1 and fps above 0 or null, got {self.patch} and {self.fps}; change them"
            )

    @classmethod
    def of(cls, transformer: CosmosTransformer3DModel, **unsaid) -> "CosmosConfig":
        """The numbers of a network of diffusers; `unsaid`: what its own config has no word for."""
        theirs = transformer.config
        return cls(
            latent=theirs.out_channels,
            heads=theirs.num_attention_heads,
            head_width=theirs.attention_head_dim,
            layers=theirs.num_layers,
            adaln_rank=theirs.adaln_lora_dim,
            mlp_ratio=theirs.mlp_ratio,
            patch=theirs.patch_size[1],
            context=theirs.text_embed_dim,
            max_size=tuple(theirs.max_size),
            rope_scale=tuple(theirs.rope_scale),
            padding_mask=theirs.concat_padding_mask,
            **unsaid,
        )

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def transformer(self) -> CosmosTransformer3DModel:
        """The network with random weights."""
        return CosmosTransformer3DModel(
            in_channels=self.latent + 1,
            out_channels=self.latent,
            num_attention_heads=self.heads,
            attention_head_dim=self.head_width,
            num_layers=self.layers,
            text_embed_dim=self.context,
            adaln_lora_dim=self.adaln_rank,
            mlp_ratio=self.mlp_ratio,
            patch_size=(1, self.patch, self.patch),
            max_size=self.max_size,
            rope_scale=self.rope_scale,
            concat_padding_mask=self.padding_mask,
            extra_pos_embed_type=None,
            controlnet_block_every_n=1,
        )


def check_network(config: Mapping[str, Any]) -> None:
    """Refuse networks of the Cosmos family that are told other things than this one. Raises: ValueError.

    Args:
        config: of a CosmosTransformer3DModel.
    """
    side = max(1, config["patch_size"][-1])
    wanted = {
        "in_channels": config["out_channels"] + 1,  # the given first frame is marked (image or video to world)
        "patch_size": (1, side, side),
        "extra_pos_embed_type": None,
        "use_crossattn_projection": False,
        "img_context_dim_in": None,
    }
    for key, value in wanted.items():
        got = config.get(key, value)
        if (tuple(got) if isinstance(got, list) else got) != value:
            raise ValueError(f"expected a Cosmos-Predict2 Video2World transformer, with {key} {value}, got {got}")


class ReleaseCausalCross(CosmosAttnProcessor2_0):
    """The release's causal cross-attention: frame t sees keys 0..t of the first L keys, and all keys behind them.

    Right only for one code per latent frame; off in every released configuration, kept to compare with.
    """

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        frames, device = self.layout.frames, hidden_states.device
        frame = torch.arange(hidden_states.shape[1], device=device) * frames // hidden_states.shape[1]
        key = torch.arange(encoder_hidden_states.shape[1], device=device)
        mask = (key[None, :] <= frame[:, None]) | (key[None, :] >= frames)  # (L P, S)
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


class CosmosVDM(nn.Module):
    """Velocity of the rectified flow for a video whose first latent frame is known.

    Self-attention is block-causal over latent frames and cross-attention causal over code steps where `attention` is
    causal (VideoWorld 2, sec. 3.3); both masks are attention processors of `vw2.models.attention`.
    """

    def __init__(self, config: CosmosConfig, transformer: CosmosTransformer3DModel | None = None):
        super().__init__()
        self.config = config
        self.layout = Layout()
        self.transformer = config.transformer() if transformer is None else transformer
        self.transformer.rope = WindowRope(self.transformer.rope, self.layout)
        for block in self.blocks:  # diffusers has no setting for it
            for attention in (block.attn1, block.attn2):
                attention.norm_q.eps = attention.norm_k.eps = config.norm_eps
        null = torch.zeros(1, 1, config.context)
        if config.tokens:
            self.register_buffer("null", null, persistent=False)  # as those that fill the context
        else:
            self.null = nn.Parameter(null)  # stands where there is no code yet
        if config.attention == "causal":
            set_causal(self.blocks, self.layout)
        if config.attention == "release-causal":
            for block in self.blocks:
                block.attn2.set_processor(ReleaseCausalCross(self.layout))
        if config.prediction == "change" and transformer is None:
            nn.init.zeros_(self.transformer.proj_out.weight)  # at first it copies the first frame

    def fresh(self) -> "CosmosVDM":
        """The same network with random weights."""
        return CosmosVDM(self.config)

    @classmethod
    def around(cls, transformer: CosmosTransformer3DModel, *, tokens: int = 512, attention: str = "full"):
        """A network of diffusers as the VDM; it was made with controlnet_block_every_n = 1, so that each block takes
        what the control branch adds.

        Args: tokens, attention: as in CosmosConfig.
        Raises: ValueError if the network is another of the Cosmos family.
        """
        check_network(transformer.config)
        return cls(CosmosConfig.of(transformer, tokens=tokens, attention=attention), transformer)

    @property
    def latent(self) -> int:
        return self.config.latent

    @property
    def most(self) -> int:
        frames, *sides = self.config.max_size
        return max(frames, *(side // self.patch for side in sides))

    @property
    def patch(self) -> int:
        return self.config.patch

    @property
    def padding_mask(self) -> bool:
        return self.config.padding_mask

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.transformer_blocks

    @property
    def patch_embed(self) -> nn.Module:
        return self.transformer.patch_embed

    @property
    def time_embed(self) -> nn.Module:
        return self.transformer.time_embed

    def last(self) -> dict[str, nn.Module]:
        """The layers behind the blocks, by name."""
        return {"norm_out": self.transformer.norm_out, "proj_out": self.transformer.proj_out}

    def inputs(self, noisy: Tensor, time: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the clean first frame in place: latents, per-frame times (B, 1, L, 1, 1), condition mask.

        Latents and mask are of the weights' dtype, times as precise as they came.
        """
        config, frames, given = self.config, noisy.shape[2], self.layout.given  # a later window holds no given frame
        self.layout.frames = frames
        latents = torch.cat([first[:, :, :given], noisy[:, :, given:]], dim=2)
        times = over_latents(time).expand(-1, -1, frames, -1, -1) * config.time_scale
        known = torch.full_like(times[:, :, :given], config.first_time * config.time_scale)
        latents = latents.to(self.patch_embed.proj.weight.dtype)
        mask = torch.zeros_like(latents[:, :1])
        mask[:, :, :given] = 1
        return latents, torch.cat([known, times[:, :, given:]], dim=2), mask

    def tokens(self, context: Tensor | None, like: Tensor) -> Tensor:
        """The context (B, K N, D) as the network reads it (B, S, D): behind the learned token, or filled up with zeros.

        Its dtype becomes that of `like`, the latents. Zero tokens take their part in the softmax, so their number
        matters to the released weights.
        """
        if not self.config.tokens:
            null = self.null.expand(len(like), -1, -1).type_as(like)
            return null if context is None else torch.cat([null, context.type_as(like)], dim=1)
        given = like.new_zeros(len(like), 0, self.context) if context is None else context
        room = self.config.tokens - given.shape[1]
        assert room >= 0, f"expected at most {self.config.tokens} context tokens, got {given.shape[1]}"
        return pad(given.type_as(like), (0, 0, 0, room))

    def begin(
        self,
        noisy: Tensor,
        time: Tensor,
        first: Tensor,
        context: Tensor | None = None,
        embed: nn.Module | None = None,
        time_embed: nn.Module | None = None,
    ) -> tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]:
        """What a pass does before its first block, for whoever runs blocks beside the VDM.

        Args:
            noisy, time, first, context: as in `forward`.
            embed, time_embed: instead of the VDM's own patch and time embeddings.
        Returns: hidden (B, L P, width); run(block, hidden) -> hidden, one block with the context, times and rotary
            embeddings of this pass.
        """
        config, (latents, times, mask) = self.config, self.inputs(noisy, time, first)
        channels = [latents, mask, torch.zeros_like(mask)] if config.padding_mask else [latents, mask]
        hidden = (embed or self.patch_embed)(torch.cat(channels, dim=1)).flatten(1, 3)
        each = hidden.shape[1] // noisy.shape[2]  # P
        temb, embedded = (
            x.unflatten(0, (len(noisy), -1)).repeat_interleave(each, dim=1)  # (B L, .) -> (B, L P, .)
            for x in (time_embed or self.time_embed)(hidden, times.flatten())
        )
        rope, tokens = self.transformer.rope(latents, fps=config.fps), self.tokens(context, latents)

        def run(block: nn.Module, hidden: Tensor) -> Tensor:
            if torch.is_grad_enabled() and self.transformer.gradient_checkpointing:
                return checkpoint(block, hidden, tokens, embedded, temb, rope, use_reentrant=False)
            return block(hidden, tokens, embedded, temb, rope)

        return hidden, run

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
            time: (B,) t in [0, 1], or (B, L), one of each latent frame; the given first frame has `first_time`.
            first: (B, C, 1, h, w) clean first latent frame.
            context: (B, K N, D) projected codes, K = L - 1 steps of N queries; none before the joint stage.
            control: residuals (B, L P, width) to add after the transformer blocks, from the first on;
                None adds nothing.
        Returns: (B, C, L, h, w).
        """
        latents, times, mask = self.inputs(noisy, time, first)
        # diffusers counts residuals by block: none for the blocks behind those that have one
        residuals = None if control is None else [*control, *[None] * (len(self.blocks) - len(control))]
        out = self.transformer(
            hidden_states=latents,
            timestep=times,
            fps=self.config.fps,
            encoder_hidden_states=self.tokens(context, latents),
            condition_mask=mask,
            padding_mask=torch.zeros_like(mask[:1, :, 0]),
            block_controlnet_hidden_states=residuals,
            return_dict=False,
        )[0]
        return self.to_velocity(out.type_as(noisy), noisy, time, first)

    def to_velocity(self, out: Tensor, noisy: Tensor, time: Tensor, first: Tensor) -> Tensor:
        """The network's output as a velocity (x_t - x_0) / t."""
        if self.config.prediction == "velocity":
            return out
        return (noisy - (first + out)) / over_latents(time).clamp(min=LEAST_TIME)
