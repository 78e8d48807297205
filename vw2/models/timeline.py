"""How the frames of a clip divide into steps, and the steps of a long clip into the windows that the VDM draws at once.

Legend: T frames, L latent frames, K = L - 1 steps. A step has `stride` frames: 4, or 1 in clips of two frames.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vw2.models.haar import PATCH as STRIDE

PAIR = 2  # frames of the shortest clip


def fill(video: Tensor, time: int = STRIDE) -> Tensor:
    """(B, C, T, H, W), T = 1 + time m as it is; of two frames the second is shown `time` times (our choice).

    So a clip of two frames has L = 2 and K = 1 for every causal encoder that compresses time by so much; `stride` 1
    drops the copies when decoding.
    """
    return torch.cat([video[:, :, :1], video[:, :, 1:].expand(-1, -1, time, -1, -1)], 2) if is_pair(video) else video


def is_pair(video: Tensor) -> bool:
    """Whether clips (B, C, T, H, W) have two frames."""
    return video.shape[2] == PAIR


def stride_of(stride: int | None, frames: int, max_steps: int) -> int:
    """Frames per step for clips of T frames: 1 for T = 2 and else 4 (VideoWorld 2, sec. 3).

    Args:
        stride: `dldm.stride`; None to derive it.
        frames: T.
        max_steps: `dldm.max_steps`.
    Raises: ValueError if they contradict each other, T is no length of a clip or has more than `max_steps` steps.
    """
    if frames != PAIR and (frames <= STRIDE or frames % STRIDE != 1):
        raise ValueError(
            f"clips must have {PAIR} frames or 1 + {STRIDE}m, at least {1 + STRIDE}, got {frames}; change clip.frames"
        )
    derived = 1 if frames == PAIR else STRIDE
    if stride not in (None, derived):
        raise ValueError(
            f"clips of {frames} frames have {derived} frames a step but dldm.stride is {stride}; leave it null"
        )
    steps = (frames - 1) // derived
    if steps > max_steps:
        raise ValueError(f"clips of {frames} frames have {steps} steps but dldm.max_steps is {max_steps}; raise it")
    return derived


@dataclass(frozen=True)
class Window:
    """Steps [begin, end) of a clip, drawn at once; it begins with the last frame of the window before."""

    begin: int
    end: int
    number: int  # of windows before it
    stride: int  # frames per step

    @property
    def frames(self) -> slice:
        """Of the clip's frames, the first known one included."""
        return slice(self.stride * self.begin, self.stride * self.end + 1)

    @property
    def steps(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def noise(self) -> slice:
        """Of the clip's L latent frames."""
        return slice(self.begin, self.end + 1)


def windows(steps: int, most: int, stride: int) -> list[Window]:
    """The K steps of a clip in as few windows as hold at most `most` frames each, of equal length or 1 step less.

    Args:
        most: frames, the first known one included.
        stride: frames per step.
    """
    count = math.ceil(steps / ((most - 1) // stride))
    edges = [math.ceil(steps * i / count) for i in range(count + 1)]
    return [Window(*edges[i : i + 2], i, stride) for i in range(count)]


def draw_window(parts: list[Window], rng: torch.Generator) -> Window:
    """One window at random; nothing is drawn where there is but one."""
    return parts[0] if len(parts) == 1 else parts[int(torch.randint(len(parts), (), generator=rng))]
