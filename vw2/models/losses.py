"""Losses between the coarse video and the real one: L2 (paper), or L1 and VGG features (release).

Legend: B batch, T frames, H W pixels, k a stage of VGG16.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import vw2.torchvision_ops  # noqa: F401  (must come before torchvision is imported)

import torch
from torch import Tensor, nn

from vw2.files import locate
from vw2.models.flow import motion_weight

FILE = "vgg16-397923af.pth"  # torchvision's file; the last part of its name starts its SHA-256
STAGES = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)  # w_k of the release
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1], as in LPIPS
LEAST_SIDE = 16  # pixels: four halvings before the last stage


class Loss(Protocol):
    """A reconstruction loss."""

    def ready(self) -> None:
        """Raise what a first call would, before any training."""

    def __call__(self, coarse: Tensor, video: Tensor) -> Tensor:
        """Both (B, 3, T, H, W) in [-1, 1] -> ()."""


@dataclass(frozen=True)
class L2:
    """Mean squared error over all frames (VideoWorld 2, table 4), `motion` times more where the video moves."""

    motion: float

    def ready(self) -> None:
        pass

    def __call__(self, coarse: Tensor, video: Tensor) -> Tensor:
        return ((coarse.float() - video) ** 2 * motion_weight(video, self.motion)).mean()


@dataclass(frozen=True)
class L1VGG:
    """mean |x - x^| + share * sum_k w_k mean |VGG_k(x) - VGG_k(x^)| (release); pixels weigh more where they move."""

    motion: float
    share: float
    file: str | None

    def ready(self) -> None:
        vgg_features(self.file)

    def __call__(self, coarse: Tensor, video: Tensor) -> Tensor:
        vgg = vgg_features(self.file).to(video.device)
        frames = lambda x: x.float().transpose(1, 2).flatten(0, 1)  # noqa: E731  (B T, 3, H, W)
        pixels = ((coarse.float() - video).abs() * motion_weight(video, self.motion)).mean()
        with torch.no_grad():
            real = vgg(frames(video))
        pairs = zip(WEIGHTS, vgg(frames(coarse)), real, strict=True)
        return pixels + self.share * sum(weight * (a - b).abs().mean() for weight, a, b in pairs)


def reconstruction_loss(kind: str, motion: float, share: float, file: str | None) -> Loss:
    """The loss of a name.

    Args:
        kind: "l2" or "l1_vgg".
        motion: how much more pixels count where the video moves; 0 = plain mean.
        share: factor on the VGG part.
        file: torchvision's VGG16 weights; None for the torch hub cache.
    """
    return {"l2": L2(motion), "l1_vgg": L1VGG(motion, share, file)}[kind]


class VGGFeatures(nn.Module):
    """The convolutions of torchvision's VGG16 after each of its five stages; weights are random until loaded."""

    def __init__(self):
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        self.features = make_layers(cfgs["D"])[: STAGES[-1] + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1], H and W >= 16 -> five feature maps (B, channels, H / 2^k, W / 2^k)."""
        hidden, found = (frames - self.shift) / self.scale, []
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in STAGES:
                found.append(hidden)
        return found


@cache
def vgg_features(file: str | None) -> VGGFeatures:
    """VGG16 with its trained weights, frozen. Never downloads.

    Args: file: as torchvision saves it; None for the torch hub cache, where the file's checksum must be right.
    Raises: ValueError if there is no such file or it holds something else.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE if file is None else locate(file)
    wanted = f"expected torchvision's VGG16 weights ({FILE}) for dldm.reconstruction_loss l1_vgg"
    remedy = "put the file there, name it in dldm.vgg_file, or set dldm.reconstruction_loss l2"
    if not path.is_file():
        raise ValueError(f"{wanted}, but {path} does not exist; {remedy}")
    if file is None and not _digest(path).startswith(FILE.removesuffix(".pth").rsplit("-", 1)[1]):
        raise ValueError(f"{wanted}, but {path} has another checksum; {remedy}")
    model = VGGFeatures()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict({key: weights[key] for key in model.state_dict()})
    except Exception as error:
        raise ValueError(f"{wanted}, but {path} holds something else ({type(error).__name__}); {remedy}") from error
    return model.eval().requires_grad_(False)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
