"""Which key step does a frame show, where is the hand, how far is the flap turned? One frame at a time.

A backbone of transformers behind a small port: `mini` is a small ResNet trained from nothing, `dinov2` the paper's
DINOv2 (VideoWorld 2, sec. 5: a DINOv2 classifier detects the key steps), whose weights come from the hub or a folder.
Legend: B frames, S side of the input in pixels, C classes, D width of the features, h w cells of the feature map.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import vw2.torchvision_ops  # noqa: F401  (must come before transformers)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

from vw2.console import UserError
from vw2.files import read_json, write_json
from vw2.models.dinov2 import read_dinov2
from vw2.models.pretrained import read_weights, save_weights
from vw2.models.settings import settings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what DINOv2 was trained with
HIDDEN = 64  # width of the layer between features, and hand visible and angle
WEIGHTS, CONFIG = "classifier.safetensors", "config.json"
IGNORED = -1  # label of a frame without a class


@dataclass(frozen=True)
class BackboneConfig:
    """What turns frames into features. The first block counts for `mini` alone, the second for `dinov2`."""

    kind: Literal["mini", "dinov2"] = "mini"
    frozen: bool = False  # only the heads learn
    embedding: int = 16  # channels of the stem
    hidden: tuple[int, ...] = (16, 32, 64, 128)  # channels of the stages, each at half the resolution of the one before
    depths: tuple[int, ...] = (1, 1, 1, 1)  # residual layers of the stages
    stem_pool: bool = False  # halve the resolution once more after the stem, as ResNet does for large pictures
    weights: str = "facebook/dinov2-small"  # hub id, or a local folder
    revision: str = "ed25f3a31f01632728cabb09d1542f84ab7b0056"  # commit on the hub

    def __post_init__(self):
        if min(self.embedding, *self.hidden, *self.depths) < 1:
            raise ValueError("classifier.model.backbone: embedding, hidden and depths must be at least 1; raise them")
        if not self.hidden or len(self.hidden) != len(self.depths):
            raise ValueError(
                "classifier.model.backbone.hidden and depths need one number per stage, "
                f"got {list(self.hidden)} and {list(self.depths)}"
            )


@dataclass(frozen=True)
class ClassifierConfig:
    """A backbone with heads; the weights of the losses are our choice."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    size: int = 64  # S, pixels; a multiple of 14 for DINOv2
    label_smoothing: float = 0.0  # share of probability spread over all classes
    hand_weight: float = 2.0  # distance in fractions of the picture
    visible_weight: float = 0.3
    angle_weight: float = 1.0  # half turns

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"classifier.model.size must be at least 1, got {self.size}; raise it")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"classifier.model.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.backbone.kind == "dinov2" and self.size % 14:
            near = max(1, round(self.size / 14)) * 14
            raise ValueError(f"classifier.model.size must be a multiple of 14 for dinov2, got {self.size}; try {near}")


@dataclass(frozen=True)
class FrameBatch:
    """Frames with their truth; NaN where there is none."""

    frames: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    label: Tensor  # (B,) int64 in [0, C), or IGNORED
    hand: Tensor  # (B, 2) float32 x, y in [0, 1] of the picture, right and down
    visible: Tensor  # (B,) float32: 1 a hand is in the picture, 0 none is
    angle: Tensor  # (B,) float32 in [0, 1] half turns of the moving flap

    def to(self, device: torch.device | str) -> "FrameBatch":
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


class Backbone(nn.Module):
    """Frames (B, 3, S, S) in [-1, 1] -> features: pooled (B, D) and map (B, D, h, w)."""

    width: int  # D
    architecture: dict | None = None  # what is needed to build it without its pretrained weights

    def __init__(self, config: BackboneConfig, net: nn.Module):
        super().__init__()
        self.config, self.net = config, net
        self.requires_grad_(not config.frozen)

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(mode and not self.config.frozen)  # running statistics are frozen too


class MiniBackbone(Backbone):
    """A small ResNet with random weights; its stem keeps the resolution of small pictures."""

    def __init__(self, config: BackboneConfig, architecture: dict | None = None):
        resnet = ResNetConfig(
            embedding_size=config.embedding,
            hidden_sizes=list(config.hidden),
            depths=list(config.depths),
            layer_type="basic",
            downsample_in_first_stage=False,
        )
        super().__init__(config, ResNetModel(resnet))
        if not config.stem_pool:
            self.net.embedder.pooler = nn.Identity()
        self.width = config.hidden[-1]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As of Backbone."""
        out = self.net(frames.contiguous(memory_format=torch.channels_last))  # twice as fast on CPU
        return out.pooler_output.flatten(1), out.last_hidden_state


class Dinov2Backbone(Backbone):
    """DINOv2 (Oquab et al. 2023; VideoWorld 2 judges by it).

    Args: architecture: dict of a Dinov2Config; without it the pretrained weights are fetched.
    Raises: UserError if they cannot be.
    """

    def __init__(self, config: BackboneConfig, architecture: dict | None = None):
        net = (
            read_dinov2(config.weights, config.revision)
            if architecture is None
            else Dinov2Model(Dinov2Config(**architecture))
        )
        super().__init__(config, net)
        self.width, self.architecture = self.net.config.hidden_size, self.net.config.to_diff_dict()
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean * 2 - 1, persistent=False)  # in [-1, 1]
        self.register_buffer("std", std * 2, persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As of Backbone."""
        patch = self.net.config.patch_size
        rows, columns = (side // patch for side in frames.shape[-2:])
        out = self.net((frames - self.mean) / self.std)
        cells = out.last_hidden_state[:, 1:].transpose(1, 2)  # without the class token: (B, D, h w)
        return out.pooler_output, cells.unflatten(2, (rows, columns))


BACKBONES: dict[str, type[Backbone]] = {"mini": MiniBackbone, "dinov2": Dinov2Backbone}


class StepClassifier(nn.Module):
    """Backbone and three heads: class, hand, angle of the moving flap.

    Args:
        config: sizes and loss weights.
        names: the C classes, in the order of the labels.
        architecture: see `Dinov2Backbone`.
    """

    def __init__(self, config: ClassifierConfig, names: Sequence[str], architecture: dict | None = None):
        super().__init__()
        self.config, self.names = config, tuple(names)
        self.backbone = BACKBONES[config.backbone.kind](config.backbone, architecture)
        self.classes = nn.Linear(self.backbone.width, len(self.names))
        self.hand = nn.Conv2d(self.backbone.width, 3, 1)  # per cell: how likely the hand, and where in or by the cell
        self.motion = nn.Sequential(nn.Linear(self.backbone.width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
        self.to(memory_format=torch.channels_last)

    def heads(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> class logits (B, C), hand (B, 2), visible logit (B,), angle (B,) in half turns."""
        assert frames.ndim == 4 and frames.shape[1] == 3, f"expected frames (B, 3, H, W), got {tuple(frames.shape)}"
        size = (self.config.size, self.config.size)
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
        pooled, cells = self.backbone(frames)
        heat, dx, dy = self.hand(cells).float().flatten(2).unbind(1)  # each (B, h w)
        rows, columns = cells.shape[-2:]
        y = (torch.arange(rows, device=heat.device) + 0.5).repeat_interleave(columns) / rows
        x = (torch.arange(columns, device=heat.device) + 0.5).repeat(rows) / columns
        share = heat.softmax(1)
        hand = torch.stack([(share * (x + dx / columns)).sum(1), (share * (y + dy / rows)).sum(1)], 1)
        visible, angle = self.motion(pooled).float().unbind(1)  # each (B,)
        return self.classes(pooled).float(), hand, visible, angle

    def forward(self, batch: FrameBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over frames with a class, and small losses where hand and angle are known (our choice)."""
        logits, hand, visible, angle = self.heads(batch.frames)
        known = batch.label != IGNORED
        crossed = F.cross_entropy(
            logits, batch.label, ignore_index=IGNORED, reduction="sum", label_smoothing=self.config.label_smoothing
        ) / known.sum().clamp(min=1)
        told = batch.visible.isfinite()
        seen = F.binary_cross_entropy_with_logits(visible, batch.visible.nan_to_num(), reduction="none")
        there = (batch.visible == 1) & batch.hand.isfinite().all(1)
        distance = (hand - batch.hand.nan_to_num()).abs().sum(1)
        turning = batch.angle.isfinite()
        turned = (angle - batch.angle.nan_to_num()).abs()
        parts = [_mean(seen, told), _mean(distance, there), _mean(turned, turning)]
        weights = [self.config.visible_weight, self.config.hand_weight, self.config.angle_weight]
        loss = crossed + sum(weight * part for weight, part in zip(weights, parts, strict=True))
        right = _mean((logits.argmax(1) == batch.label).float(), known)
        names = ("class", "accuracy", "visible", "hand", "angle")
        return loss, dict(zip(names, [part.detach() for part in (crossed, right, *parts)], strict=True))

    @torch.inference_mode()
    def predict(self, frames: np.ndarray | Tensor, batch: int = 256) -> dict[str, np.ndarray]:
        """What the frames show.

        Args:
            frames: (M, H, W, 3) uint8, or (M, 3, H, W) float in [-1, 1].
            batch: frames at a time; does not change the result.
        Returns: "class" (M, C) probabilities, "hand" (M, 2) x, y in [0, 1], "visible" (M,) probability that a hand is
            in the picture, "angle" (M,) degrees; hand and angle mean something only where there is one.
        """
        training = self.training
        self.eval()
        device = self.classes.weight.device
        parts = []
        for begin in range(0, len(frames), batch):
            logits, hand, visible, angle = self.heads(to_frames(frames[begin : begin + batch]).to(device))
            parts.append((logits.softmax(1), hand, visible.sigmoid(), angle * 180))
        self.train(training)
        if not parts:
            parts = [(torch.zeros(0, len(self.names)), torch.zeros(0, 2), torch.zeros(0), torch.zeros(0))]
        names = ("class", "hand", "visible", "angle")
        return {name: torch.cat(part).cpu().numpy() for name, part in zip(names, zip(*parts, strict=True), strict=True)}

    def save(self, folder: Path, record: dict) -> None:
        """Write classifier.safetensors (float32) and config.json; `record` (say, parameters) is kept beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self, folder / WEIGHTS)
        head = {"model": asdict(self.config), "names": self.names, "architecture": self.backbone.architecture}
        write_json(folder / CONFIG, {**head, "record": record})


def load_classifier(folder: Path) -> StepClassifier | None:
    """The trained classifier of a folder, in eval mode; None where there were no labels to train it on.

    Raises: UserError if the folder holds no classifier.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder / CONFIG} does not exist; run `dvc repro train_classifier` first")
    head = read_json(folder / CONFIG)
    if "skipped" in head:
        return None
    config = settings(head["model"], ClassifierConfig(), "classifier.model")
    model = StepClassifier(config, head["names"], head["architecture"])
    model.load_state_dict(read_weights(folder / WEIGHTS))
    return model.eval()


def to_frames(frames: np.ndarray | Tensor) -> Tensor:
    """(M, H, W, 3) uint8 -> (M, 3, H, W) float32 in [-1, 1], channels last in memory; floats pass through."""
    frames = torch.from_numpy(np.array(frames)) if isinstance(frames, np.ndarray) else frames  # may be read-only
    if frames.dtype == torch.uint8:
        assert frames.ndim == 4 and frames.shape[3] == 3, f"expected (M, H, W, 3) uint8, got {tuple(frames.shape)}"
        return frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return frames.float()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries of a mask, 0 if there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
