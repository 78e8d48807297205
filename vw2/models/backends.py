"""The back ends of the VDM port by name, how each is built at random and loaded, and under which licence it stands.

mini is the small prior that this project pretrains; cosmos and wan are published models in diffusers' layout, found by
hub id and pinned commit or in a local folder, loaded from safetensors alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import vw2.torchvision_ops  # noqa: F401  (must come before the Cosmos classes are imported)

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, WanTransformer3DModel
from torch import nn

from vw2.console import UserError, say
from vw2.files import locate, read_json
from vw2.guardrail import Guardrail, check_installed, guardrail
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.hub import expect_weights, fetch, hollow, outline, read, reading
from vw2.models.port import VDM, VideoPrior, VideoVAE
from vw2.models.prior import Prior, PriorModelConfig
from vw2.models.wan import TI2V_5B, WanVDM
from vw2.models.wan_vae import WAN_2_2, WanVAE
from vw2.params import build

Get = Callable[..., nn.Module]  # (class, folder, options) -> a network of diffusers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BackendConfig:
    """Group `dldm.backend` of params.yaml: whose VAE and VDM."""

    kind: Literal["mini", "cosmos", "wan"] = "mini"
    weights: str | None = None  # hub id or local folder; None for mini
    revision: str | None = None  # commit on the hub; not looked at for a folder
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the VDM's weights; the VAE stays in float32
    device_map: Literal["auto"] | None = None  # auto: rendering spreads the VDM over GPUs, CPU and `offload`
    offload: str | None = None  # folder for weights that fit nowhere else
    # cosmos: zeros fill the context up to this many tokens, under no masks (release: 512); 0 = one learned token in
    # front of the codes, masks as dldm.self_attention and dldm.cross_attention say
    tokens: int = 0
    guardrail: bool = True  # checks instruction and rendered frames where the licence asks for it

    def __post_init__(self):
        if self.kind == "mini":
            if (self.weights, self.revision, self.dtype, self.tokens) != (None, None, "float32", 0):
                raise ValueError(
                    "dldm.backend.kind mini is the prior of the stage pretrain_prior, in float32; "
                    "set the other keys of dldm.backend back to null, 0 and float32, or choose cosmos or wan"
                )
        elif self.weights is None:
            raise ValueError(
                f"dldm.backend.kind {self.kind} needs dldm.backend.weights, a hub id or a local folder, got null"
            )
        if self.tokens < 0 or self.tokens and self.kind != "cosmos":
            raise ValueError(f"dldm.backend.tokens must be 0, or for cosmos a length, got {self.tokens}; set it to 0")
        if self.offload is not None and self.device_map is None:
            raise ValueError("dldm.backend.offload goes with dldm.backend.device_map auto, got null; set one of them")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` for diffusers' from_pretrained."""
        return DTYPES[self.dtype]

    @property
    def attention(self) -> Literal["causal", "full"]:
        """What a Cosmos is built with: tokens that are filled up (release) go with full attention."""
        return "full" if self.tokens else "causal"


class Pair(nn.Module):
    """A VAE and the VDM on its latents (vw2.models.port.VideoPrior)."""

    def __init__(self, vae: VideoVAE, vdm: VDM):
        super().__init__()
        if vae.latent != vdm.latent:
            raise UserError(
                f"the VAE has {vae.latent} latent channels, the VDM works on {vdm.latent}; "
                "set dldm.backend.weights to a model whose parts belong together"
            )
        self.vae, self.vdm = vae, vdm


def load_prior(folder: Path) -> Prior:
    """The mini prior as saved by vw2.models.prior.Prior.save, in eval mode, VAE frozen."""
    config = build(PriorModelConfig, read_json(folder / "config.json")["model"], "prior.model")
    prior = Prior(config).load(folder).eval()
    prior.vae.requires_grad_(False)
    return prior


def random_mini(config: PriorModelConfig | None = None) -> Prior:
    """A mini prior that knows nothing; without `config` of the committed size."""
    return Prior(config or PriorModelConfig())


def random_cosmos(config: CosmosConfig | None = None, vae: dict | None = None) -> Pair:
    """Cosmos-Predict2 with random weights: 2B with the VAE of Wan 2.1, or other numbers."""
    return Pair(WanVAE(AutoencoderKLWan(**vae or {})), CosmosVDM(config or CosmosConfig()))


def true_cosmos(config: BackendConfig) -> Pair:
    """Cosmos-Predict2 2B with random weights, which takes its tokens as the config of a back end says."""
    return random_cosmos(CosmosConfig(tokens=config.tokens, attention=config.attention))


def random_wan(transformer: dict | None = None, vae: dict | None = None) -> Pair:
    """Wan with random weights: 2.2 TI2V-5B, or other numbers for its two networks."""
    net = WanTransformer3DModel(**TI2V_5B | (transformer or {}))
    return Pair(WanVAE(AutoencoderKLWan(**WAN_2_2 | (vae or {}))), WanVDM(net))


PARTS = ("vae", "transformer")  # folders of a published model


def vae_alone(kind: type[nn.Module], folder: Path, **options) -> nn.Module:
    """A `Get` for those who have the transformer's weights already: it comes without any."""
    return (read if kind is AutoencoderKLWan else hollow)(kind, folder, **options)


def make_vae(folder: Path, get: Get) -> WanVAE:
    """The VAE of a folder with published weights. Args, raises: as make_cosmos."""
    with reading(AutoencoderKLWan, folder / "vae"):
        return WanVAE(get(AutoencoderKLWan, folder / "vae"))


def make_cosmos(config: BackendConfig, folder: Path, get: Get = read) -> Pair:
    """Cosmos-Predict2 of a folder. Raises: UserError if it is not there, or is another network.

    Args: get: how a network comes out of its folder: `read` or `outline` of vw2.models.hub, or `vae_alone`.
    """
    vae = make_vae(folder, get)
    place, options = folder / "transformer", {"controlnet_block_every_n": 1, "torch_dtype": config.torch_dtype}
    with reading(CosmosTransformer3DModel, place):
        net = get(CosmosTransformer3DModel, place, **options)
        return Pair(vae, CosmosVDM.around(net, tokens=config.tokens, attention=config.attention))


def make_wan(config: BackendConfig, folder: Path, get: Get = read) -> Pair:
    """Wan of a folder. Args, raises: as make_cosmos."""
    vae, place = make_vae(folder, get), folder / "transformer"
    with reading(WanTransformer3DModel, place):
        return Pair(vae, WanVDM(get(WanTransformer3DModel, place, torch_dtype=config.torch_dtype)))


@dataclass(frozen=True)
class Backend:
    """What the registry knows of a back end."""

    title: str
    licence: str
    random: Callable[[BackendConfig], VideoPrior]  # at true size
    make: Callable[..., VideoPrior]  # (config, folder of the weights, Get)
    guarded: bool = False  # does the licence ask for a guardrail?


BACKENDS = {
    "mini": Backend(
        "mini prior",
        "Apache-2.0 (this project, LICENSE)",
        lambda _: random_mini(),
        lambda _, folder, get=read: load_prior(folder),
    ),
    "cosmos": Backend(
        "Cosmos-Predict2",
        "NVIDIA Open Model License, "
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
        true_cosmos,
        make_cosmos,
        guarded=True,
    ),
    "wan": Backend(
        "Wan 2.2",
        "Apache-2.0, https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        lambda _: random_wan(),
        make_wan,
    ),
}


@cache
def show_licence(kind: str) -> None:
    """Print the licence of a back end, once in a process."""
    say(f"licence of the {BACKENDS[kind].title} weights: {BACKENDS[kind].licence}")


def load_backend(config: BackendConfig, prior: Path, get: Get = read) -> VideoPrior:
    """VAE (frozen) and VDM of a back end, in eval mode; its licence is shown first.

    Args:
        prior: folder of the mini prior, which has all its weights whatever `get` is.
        get: `read`, or `vae_alone`, which leaves gigabytes where they are.
    Raises: UserError if the weights are not there, not pinned or of another kind.
    """
    show_licence(config.kind)
    whole = 2 if get is read else 1
    mini = config.kind == "mini"
    folder = prior if mini else fetch(config.weights, config.revision, PARTS[:whole], PARTS[whole:])
    pair = BACKENDS[config.kind].make(config, folder, get).eval()
    pair.vae.requires_grad_(False)
    return pair


PUBLISHED = {"cosmos": "nvidia/Cosmos-Predict2-2B-Video2World", "wan": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}


def sketch(config: BackendConfig, prior: Path) -> VideoPrior | None:
    """The back end as far as it is known before its weights are fetched: on the meta device, by the published sizes, or
    by those that a local folder names.

    Args: prior: as in `load_backend`; the mini is loaded.
    Returns: None for other hub ids than PUBLISHED, whose networks may have any size.
    Raises: UserError if the folder holds another network.
    """
    if config.kind == "mini":
        return load_backend(config, prior)
    backend = BACKENDS[config.kind]
    if (folder := locate(config.weights)).is_dir():
        with torch.device("meta"):
            pair = backend.make(config, folder, outline)
        for part in PARTS:
            expect_weights(folder / part)
        return pair
    if config.weights != PUBLISHED[config.kind]:
        return None
    with torch.device("meta"):
        return backend.random(config)


def check_size(pair: VideoPrior, height: int, width: int, latents: int = 1) -> None:
    """Raise UserError unless pictures of this size, pixels, divide into the tokens of the VDM, and not too many.

    Args: latents: most latent frames that the VDM sees at once.
    """
    if latents > pair.vdm.most:
        raise UserError(
            f"this back end draws at most {pair.vdm.most} latent frames at once, got {latents}; lower dldm.window"
        )
    side = pair.vae.side * pair.vdm.patch
    if max(height, width) > (most := side * pair.vdm.most):
        raise UserError(
            f"this back end needs clip.height and clip.width to be at most {most} pixels, got {height} and {width}"
        )
    if height % side or width % side:
        raise UserError(
            f"this back end needs clip.height and clip.width to be multiples of {side} pixels, got {height} and {width}"
        )


def check_guardrail(config: BackendConfig) -> None:
    """Raise UserError unless the guardrail that `guardrail_of` would give is installed."""
    if BACKENDS[config.kind].guarded and config.guardrail:
        check_installed()


def guardrail_of(config: BackendConfig, device: torch.device | str = "cpu") -> Guardrail:
    """The guardrail that the licence of a back end asks for; without one, or switched off, it lets all through."""
    return guardrail(BACKENDS[config.kind].guarded, config.guardrail, device)
