"""LDM, prior and dLDM of a few thousand parameters, awake: no weight is left at a zero that would hide a path."""

from dataclasses import fields

import torch
from torch import nn

from vw2.models.causal import CausalConfig
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.dldm import DLDM, JointBatch
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.prior import Prior, PriorModelConfig, VAEConfig, VDMConfig
from vw2.models.projection import ProjectionConfig
from vw2.training.compute import generator

SMALL = {
    "codebook": 1000,
    "queries": 2,
    "size": 16,
    "width": 16,
    "query_width": 16,
    "query_layers": 1,
    "history_width": 16,
    "max_steps": 4,
}
CAUSAL = {"channels": 4, "multipliers": (2, 4, 4), "z_channels": 6, "connector": 10}
SIDE, FRAMES, STEPS, LATENT = 32, 9, 2, 6  # pixels, T, K, latent channels


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers that depend on shape and seed alone."""
    return torch.randn(shape, generator=generator(seed))


def clip(batch: int = 2, frames: int = FRAMES, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """(B, 3, T, side, side) in [-1, 1]."""
    return torch.rand(batch, 3, frames, side, side, generator=generator(seed)) * 2 - 1


def wake(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Add noise to every parameter."""
    rng = generator(seed, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng))
    return module


def taught(module: nn.Module) -> set[str]:
    """Names of the parameters that got a gradient other than zero."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def names(module: nn.Module) -> set[str]:
    """Names of all parameters."""
    return {name for name, _ in module.named_parameters()}


def tiny_ldm(**changes) -> LDM:
    torch.manual_seed(0)
    return wake(LDM(LDMConfig(**SMALL | changes))).eval()


def causal_settings(**changes) -> dict:
    """What makes an LDM of small causal parts; `changes` to it, or to them."""
    own = {each.name for each in fields(CausalConfig)}
    inner = {key: value for key, value in changes.items() if key in own}
    outer = {key: value for key, value in changes.items() if key not in own}
    return {"parts": "causal", "size": 32, "causal": CausalConfig(**CAUSAL | inner)} | outer


def causal_ldm(seed: int = 0, **changes) -> LDM:
    """As it is made, in train mode."""
    torch.manual_seed(seed)
    return LDM(LDMConfig(**causal_settings(**changes)))


def tiny_prior(prediction: str = "change", layers: int = 2, awake: bool = True) -> Prior:
    torch.manual_seed(0)
    vdm = VDMConfig(heads=2, head_width=16, layers=layers, adaln_rank=4, context=12, prediction=prediction)
    prior = Prior(PriorModelConfig(VAEConfig(latent=LATENT), vdm)).eval()
    prior.vae.fit([clip(4, seed=9)])
    prior.vae.requires_grad_(False)
    if awake:
        wake(prior.vdm)
    return prior


def tiny_config(**changes) -> DLDMConfig:
    parts = {"projection": ProjectionConfig(width=16, layers=1, max_steps=4), "control": ControlConfig()}
    return DLDMConfig(**SMALL | parts | {"sampling_steps": 2} | changes)


def tiny_dldm(awake: bool = True, prediction: str = "change", **changes) -> tuple[DLDM, Prior]:
    """A dLDM in eval mode and its prior; asleep it is as `stages.train_dldm` starts it, with a pretrained VDM."""
    prior = tiny_prior(prediction)
    torch.manual_seed(1)
    dldm = DLDM(tiny_config(**changes), prior).eval()
    return (wake(dldm, 2) if awake else dldm), prior


def tiny_batch(prior: Prior, batch: int = 2, seed: int = 0) -> JointBatch:
    """What the joint stage eats: random clips."""
    video = clip(batch, seed=seed)
    return JointBatch(video, video[:, :, :1])


def tiny_latents(prior: Prior) -> torch.Tensor:
    """(B, C, L, h, w), the clips of `tiny_batch`."""
    return prior.vae.encode(clip(2))


def copy_blocks(branch: ControlBranch, vdm: nn.Module) -> None:
    """Give the branch the VDM's weights, as one has them that is made after the VDM's were loaded."""
    pairs = [(branch.patch_embed, vdm.patch_embed), (branch.time_embed, vdm.time_embed)]
    pairs += [(mine, vdm.last()[name]) for name, mine in branch.last.items()]
    pairs += [(block, vdm.blocks[int(number)]) for number, block in branch.blocks.items()]
    for mine, theirs in pairs:
        if mine is not None:
            mine.load_state_dict(theirs.state_dict())
