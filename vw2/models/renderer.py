"""One port for everything that turns codes into video: the dLDM with its VAE, or the plain LDM.

Legend: B batch, T frames, K steps, N queries. Videos are float in [-1, 1]. With these also the files of the
dLDM, <folder>/config.json and <folder>/dldm.safetensors; those of the LDM are in vw2.models.ldm_files.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vw2.files import read_json, write_json
from vw2.models.backends import BackendConfig, load_backend, vae_alone
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.ldm import LDM
from vw2.models.ldm_files import load_ldm
from vw2.models.port import VideoPrior
from vw2.models.pretrained import read_weights, save_weights
from vw2.models.settings import settings
from vw2.models.spread import spread

Autocast = Callable[[], AbstractContextManager]  # the precision to compute in, as accelerate gives it


class Renderer(Protocol):
    """What rollout, code extraction and evaluation need of a model."""

    ldm: LDM
    backend: BackendConfig  # whose weights draw, which may ask for a guardrail

    def place(self, device: torch.device, autocast: Autocast = nullcontext) -> "Renderer":
        """Move it to a device, where it renders under `autocast`."""

    def noise(self, first_frame: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        """One clip's start noise (1, ...) for a first frame like this one (1, 3, 1, H, W) and K code steps."""

    def render(self, first_frame: Tensor, index: Tensor, noise: Tensor, coarse_first: Tensor | None = None) -> Tensor:
        """(B, 3, 1, H, W), (B, K, N), noise -> (B, 3, T, H, W); `coarse_first` as in `DLDM.render`."""

    def end(self, video: Tensor, coarse_first: Tensor, index: Tensor) -> Tensor:
        """What the coarse decoder begins the next clip with, as `DLDM.end`."""


class DLDMRenderer(nn.Module):
    """VideoWorld 2: the VDM draws the clip."""

    def __init__(self, dldm: DLDM, prior: VideoPrior):
        super().__init__()
        self.dldm, self.prior, self.ldm, self.backend = dldm, prior, dldm.ldm, dldm.config.backend
        self.autocast: Autocast = nullcontext

    def place(self, device: torch.device, autocast: Autocast = nullcontext) -> "DLDMRenderer":
        """Move it to a device, the VDM of the prior included."""
        self.autocast = autocast
        for part in (*self.dldm.children(), self.prior.vae):
            part.to(device)
        return self

    def noise(self, first_frame: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        vae, (height, width) = self.prior.vae, first_frame.shape[-2:]
        shape = (1, vae.latent, steps + 1, height // vae.side, width // vae.side)
        return torch.randn(shape, generator=rng).to(first_frame.device)

    def render(self, first_frame: Tensor, index: Tensor, noise: Tensor, coarse_first: Tensor | None = None) -> Tensor:
        with self.autocast():
            return self.dldm.render(self.prior.vae, first_frame, index, noise, coarse_first).type_as(first_frame)

    def end(self, video: Tensor, coarse_first: Tensor, index: Tensor) -> Tensor:
        with self.autocast():  # so that it is what `render` drew
            return self.dldm.end(video, coarse_first, index).type_as(video)


class SpreadRenderer(DLDMRenderer):
    """One whose VDM is spread over what the machine has (`dldm.backend.device_map` auto); it cannot be trained."""

    def place(self, device: torch.device, autocast: Autocast = nullcontext) -> "SpreadRenderer":
        """Spread the VDM and move all else to a device; only then, for its weights must be the final ones."""
        self.autocast = autocast
        self.dldm.requires_grad_(False)  # of weights that could learn autocast keeps a copy each time they are fetched
        others = (part for part in self.dldm.children() if part is not self.dldm.vdm)
        for part in (*others, self.prior.vae):
            part.to(device)
        spread(self.dldm.vdm, device, self.backend.offload)
        return self


class LDMRenderer(nn.Module):
    """VideoWorld (plain LDM): the coarse decoder's video; nothing is drawn at random."""

    def __init__(self, ldm: LDM):
        super().__init__()
        self.ldm, self.backend = ldm, BackendConfig()
        self.autocast: Autocast = nullcontext

    def place(self, device: torch.device, autocast: Autocast = nullcontext) -> "LDMRenderer":
        self.autocast = autocast
        return self.to(device)

    def noise(self, first_frame: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        return torch.zeros(1, device=first_frame.device)

    def render(self, first_frame: Tensor, index: Tensor, noise: Tensor, coarse_first: Tensor | None = None) -> Tensor:
        with self.autocast():
            video = self.ldm.coarse(first_frame, index).type_as(first_frame)
        return torch.cat([first_frame, video[:, :, 1:]], dim=2)

    def end(self, video: Tensor, coarse_first: Tensor, index: Tensor) -> Tensor:
        return video[:, :, -1:]


def save_dldm(dldm: DLDM, folder: Path) -> None:
    """Write weights and config; what `load_dldm` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(dldm, folder / "dldm.safetensors")
    write_json(folder / "config.json", asdict(dldm.config))


def load_dldm(folder: Path, prior_folder: Path) -> DLDMRenderer:
    """The dLDM of a folder, with the VAE of its back end; `prior_folder` holds the mini prior."""
    # what was no choice yet when a dLDM was saved has the value that it had then, the default
    config = settings(read_json(folder / "config.json"), DLDMConfig(), "dldm")
    prior = load_backend(config.backend, prior_folder, vae_alone)  # the VDM's own weights are in the dLDM's file
    dldm = DLDM(config, prior)
    weights, hollow = read_weights(folder / "dldm.safetensors"), any(weight.is_meta for weight in dldm.parameters())
    spread_out = config.backend.device_map is not None
    if hollow:  # a copy lies as torch likes it best; what may be too large for one is read from the file as it is used
        mapped = "vdm.transformer." if spread_out else None
        weights = {key: value if mapped and key.startswith(mapped) else value.clone() for key, value in weights.items()}
    dldm.load_state_dict(weights, assign=hollow)
    return (SpreadRenderer if spread_out else DLDMRenderer)(dldm, prior).eval()


def load_renderer(folder: Path, prior_folder: Path) -> DLDMRenderer | LDMRenderer:
    """Whichever model the folder holds."""
    if (folder / "dldm.safetensors").exists():
        return load_dldm(folder, prior_folder)
    return LDMRenderer(load_ldm(folder)).eval()
