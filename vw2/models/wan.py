"""The VDM on Wan 2.2 TI2V-5B: diffusers' WanTransformer3DModel with codes in place of text, and causal masks.

The model is told a time per token and given the first frame clean, as its authors do (their `expand_timesteps`).
Legend: B batch, C latent channels, L latent frames, h w latent pixels, P = (h / patch)(w / patch) tokens of a latent
frame, K = L - 1 code steps, N codes per step, D width of a context token.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import vw2.torchvision_ops  # noqa: F401  (diffusers imports transformers)

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vw2.models.attention import Layout, WindowRope, set_causal
from vw2.models.flow import over_latents

TIME_SCALE = 1000.0  # the network is told 1000 t
TI2V_5B = {  # 4,999,787,712 parameters
    "in_channels": 48,
    "out_channels": 48,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 30,
    "ffn_dim": 14336,
    "text_dim": 4096,
}


class WanBlockCausalProcessor:
    """Attention of a Wan block under the layout's masks: self-attention without a context, else cross-attention.

    Unlike Cosmos, Wan normalises queries and keys over all heads together and turns neighbouring channels as pairs.
    """

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda x: x.unflatten(2, (attn.heads, -1)).transpose(1, 2)  # noqa: E731  (B, heads, tokens, width)
        query, key = split(attn.norm_q(attn.to_q(hidden_states))), split(attn.norm_k(attn.to_k(source)))
        value = split(attn.to_v(source))
        if rotary_emb is not None:
            tables = [table[0, :, 0] for table in rotary_emb]  # (1, tokens, 1, width) -> (tokens, width)
            query, key = (apply_rotary_emb(x, tables, use_real=True, use_real_unbind_dim=-1) for x in (query, key))
        query, key = query.type_as(value), key.type_as(value)  # under autocast norm and rope leave them in float32
        if encoder_hidden_states is None:
            mixed = self.layout.attend_frames(self, query, key, value)
        else:
            mixed = self.layout.attend_codes(query, key, value)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3).type_as(hidden_states)))


@contextmanager
def added(blocks: nn.ModuleList, residuals: list[Tensor | None] | None) -> Iterator[None]:
    """Within it the first blocks add the residuals (B, L P, width) to what they return, by forward hooks.

    A block that gradient checkpointing runs again in the backward pass no longer adds its residual; that changes
    nothing, as an addition keeps no tensor for its gradient.
    """
    with ExitStack() as hooks:
        for block, residual in zip(blocks, residuals or [], strict=False):
            if residual is None:
                continue
            handle = block.register_forward_hook(lambda _, __, out, more=residual: out + more.to(out))
            hooks.callback(handle.remove)
        yield


class WanVDM(nn.Module):
    """Velocity of the rectified flow for a video whose first latent frame is known.

    Self-attention is block-causal over latent frames and cross-attention causal over code steps (VideoWorld 2,
    sec. 3.3), by attention processors.
    """

    padding_mask = False

    def __init__(self, transformer: WanTransformer3DModel):
        """Wrap a network, pretrained or random.

        Raises: ValueError if the network is one of Wan's others, which take the first frame in extra channels, or its
            tokens are no squares of one latent frame.
        """
        super().__init__()
        config = transformer.config
        patch = config.patch_size[-1:]
        if min(patch, default=0) < 1 or tuple(config.patch_size) != (1, *patch, *patch):
            raise ValueError(f"expected a Wan transformer with patch_size (1, p, p), got {tuple(config.patch_size)}")
        if config.in_channels != config.out_channels or config.image_dim is not None:
            raise ValueError(
                "expected a Wan transformer that is given the first frame clean (in_channels = out_channels, no "
                f"image_dim, as in Wan 2.2 TI2V-5B), got in_channels {config.in_channels}, out_channels "
                f"{config.out_channels} and image_dim {config.image_dim}; choose other weights"
            )
        self.transformer = transformer
        self.layout = Layout()
        self.latent, self.context = config.in_channels, config.text_dim
        self.width = config.num_attention_heads * config.attention_head_dim
        self.patch, self.most = config.patch_size[1], config.rope_max_seq_len
        # stands where there is no code yet; zero, as the tokens that fill up Wan's text
        self.null = nn.Parameter(torch.zeros(1, 1, self.context))
        set_causal(self.blocks, self.layout, WanBlockCausalProcessor)
        transformer.rope = WindowRope(transformer.rope, self.layout, axis=1)

    def fresh(self) -> "WanVDM":
        """The same network with random weights."""
        return WanVDM(WanTransformer3DModel.from_config(self.transformer.config))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks

    @property
    def patch_embed(self) -> nn.Module:
        return self.transformer.patch_embedding

    @property
    def time_embed(self) -> nn.Module:
        """The embedding of times; in Wan the same module takes the context to the blocks' width."""
        return self.transformer.condition_embedder

    def last(self) -> dict[str, nn.Module]:
        """None: the authors have no control branch for Wan."""
        return {}

    def inputs(
        self, noisy: Tensor, time: Tensor, first: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the clean first frame and the null token in place.

        Returns: latents (B, C, L, h, w), times (B, L P) of the tokens, context tokens (B, 1 + K N, D).
        """
        batch, _, frames, height, width = noisy.shape
        self.layout.frames = frames
        given = self.layout.given  # a later window of the clip holds no given frame
        latents = torch.cat([first[:, :, :given], noisy[:, :, given:]], dim=2)
        times = over_latents(time).flatten(1).expand(-1, frames) * TIME_SCALE  # (B, L)
        times = torch.cat([torch.zeros_like(times[:, :given]), times[:, given:]], dim=1)
        times = times.repeat_interleave((height // self.patch) * (width // self.patch), dim=1)
        null = self.null.expand(batch, -1, -1)
        tokens = null if context is None else torch.cat([null, context.type_as(null)], dim=1)
        dtype = self.patch_embed.weight.dtype
        return latents.to(dtype), times, tokens.to(dtype)

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
            time: (B,) t in [0, 1], or (B, L) one per latent frame; the first frame's is 0.
            first: (B, C, 1, h, w) clean first latent frame.
            context: (B, K N, D) projected codes, K = L - 1 steps of N queries; none before the joint stage.
            control: residuals (B, L P, width) to add after the transformer blocks, from the first on;
                None adds nothing.
        Returns: (B, C, L, h, w).
        """
        latents, times, tokens = self.inputs(noisy, time, first, context)
        with added(self.blocks, control):
            return self.transformer(latents, times, tokens, return_dict=False)[0].type_as(noisy)

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
        latents, times, tokens = self.inputs(noisy, time, first, context)
        hidden = (embed or self.patch_embed)(latents).flatten(2).transpose(1, 2).contiguous()  # (B, L P, width)
        rope = self.transformer.rope(latents)
        _, shifts, tokens, _ = (time_embed or self.time_embed)(times.flatten(), tokens, timestep_seq_len=times.shape[1])
        shifts = shifts.unflatten(2, (6, -1))  # (B, L P, 6, width)

        def run(block: nn.Module, hidden: Tensor) -> Tensor:
            if torch.is_grad_enabled() and self.transformer.gradient_checkpointing:
                return checkpoint(block, hidden, tokens, shifts, rope, use_reentrant=False)
            return block(hidden, tokens, shifts, rope)

        return hidden, run
