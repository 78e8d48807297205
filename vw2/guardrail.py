"""The guardrail that NVIDIA's licence asks for where Cosmos weights render: on the instruction and on the frames.

It is the package cosmos-guardrail (an extra of this project), used as diffusers' Cosmos pipelines use it.
"""

from typing import Protocol

import numpy as np
import torch

from vw2.console import UserError, say

NOTICE = (
    "guardrail off (dldm.backend.guardrail: false): under the NVIDIA Open Model License your rights to the Cosmos "
    "weights end unless you put a substantially similar guardrail in its place"
)


class Checker(Protocol):
    """What is used of cosmos_guardrail.CosmosSafetyChecker."""

    def check_text_safety(self, prompt: str) -> bool:
        """Is the text harmless?"""

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        """(T, H, W, 3) uint8 -> the same with faces made unrecognisable; None if the video is unsafe."""


class Guardrail:
    """Checks what goes in and what comes out; without a checker it lets everything through."""

    def __init__(self, checker: Checker | None = None):
        self.checker = checker

    def instruction(self, text: str) -> str:
        """The instruction as it was; an empty one says nothing that could be checked.

        Raises: UserError if it is unsafe.
        """
        if self.checker is not None and text.strip() and not self.checker.check_text_safety(text):
            raise UserError(f"the guardrail refuses the instruction {text!r}; word it differently")
        return text

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 rendered frames, faces made unrecognisable; the given ones stay as they are.

        Raises: UserError if the video is unsafe.
        """
        if self.checker is None:
            return frames
        checked = self.checker.check_video_safety(frames.copy())
        if checked is None:
            raise UserError("the guardrail refuses a rendered video as unsafe; roll out from another picture")
        return checked

    def sheet(self, rows: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
        """Rows of a contact sheet, (label, frames (T, H, W, 3) uint8): black where they are refused, so that what was
        trained is not lost for a picture of it."""
        return [(label, self.or_black(label, frames)) for label, frames in rows]

    def or_black(self, label: str, frames: np.ndarray) -> np.ndarray:
        try:
            return self.frames(frames)
        except UserError:
            say(f"the guardrail refuses the row {label!r} of a picture as unsafe; it is left black there")
            return np.zeros_like(frames)


def check_installed() -> None:
    """Raise UserError unless the package of the guardrail is there."""
    try:
        import vw2.torchvision_ops  # noqa: F401

        import cosmos_guardrail  # noqa: F401
    except ImportError:
        raise UserError(
            "the licence of the Cosmos weights asks for a guardrail, whose package is missing; "
            "pip install '.[guardrail]', or set dldm.backend.guardrail to false and answer for it yourself"
        ) from None


def guardrail(needed: bool, enabled: bool, device: torch.device | str = "cpu") -> Guardrail:
    """The guardrail for some weights.

    Args:
        needed: does their licence ask for one?
        enabled: dldm.backend.guardrail; false is taken at its word, with a notice.
        device: where its models run.
    Raises: UserError if the package is not installed.
    """
    if not needed:
        return Guardrail()
    if not enabled:
        say(NOTICE)
        return Guardrail()
    check_installed()
    from cosmos_guardrail import CosmosSafetyChecker

    checker = CosmosSafetyChecker()
    checker.to(device)
    return Guardrail(checker)
