"""The guardrail acts on instruction and rendered frames, with a stand-in of cosmos_guardrail's interface."""

import sys
import types

import numpy as np
import pytest

from vw2 import guardrail as module
from vw2.console import UserError
from vw2.guardrail import Guardrail, guardrail


class CosmosSafetyChecker:
    """Refuses the word bomb and red videos, blackens the corner; as the package does it works in place."""

    device = None

    def check_text_safety(self, prompt: str) -> bool:
        return bool(prompt) and "bomb" not in prompt

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        if frames[..., 0].mean() > 200:
            return None
        frames[:, :2, :2] = 0
        return frames

    def to(self, device=None, dtype=None) -> None:
        self.device = device


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", types.SimpleNamespace(CosmosSafetyChecker=CosmosSafetyChecker))


def test_instruction(package):
    guard = guardrail(True, True)
    assert guard.instruction("fold a boat") == "fold a boat" and guard.instruction(" ") == " "
    with pytest.raises(UserError, match="refuses the instruction 'build a bomb'"):
        guard.instruction("build a bomb")


def test_frames(package):
    guard, frames = guardrail(True, True, "cpu"), np.full((3, 4, 4, 3), 9, np.uint8)
    checked = guard.frames(frames)
    assert guard.checker.device == "cpu"
    assert (checked[:, :2, :2] == 0).all() and (checked[:, 2:] == 9).all()
    assert (frames == 9).all(), "the given frames stay"
    with pytest.raises(UserError, match="refuses a rendered video"):
        guard.frames(np.full((3, 4, 4, 3), 255, np.uint8))


def test_a_refused_picture_costs_no_training(package, monkeypatch):
    lines = []
    monkeypatch.setattr(module, "say", lines.append)
    guard, red = guardrail(True, True), np.full((3, 4, 4, 3), 255, np.uint8)
    rows = guard.sheet([("own codes", red), ("coarse", np.full((3, 4, 4, 3), 9, np.uint8))])
    assert [label for label, _ in rows] == ["own codes", "coarse"] and (red == 255).all()
    assert not rows[0][1].any() and (rows[1][1][:, 2:] == 9).all()
    assert len(lines) == 1 and "refuses the row 'own codes'" in lines[0]


def test_switched_off_is_said_aloud(package, monkeypatch):
    lines = []
    monkeypatch.setattr(module, "say", lines.append)
    guard, frames = guardrail(True, False), np.zeros((1, 4, 4, 3), np.uint8)
    assert guard.instruction("bomb") == "bomb" and guard.frames(frames) is frames
    assert len(lines) == 1 and "guardrail: false" in lines[0] and "NVIDIA Open Model License" in lines[0]
    assert guardrail(False, True).checker is None and guardrail(False, False).checker is None
    assert len(lines) == 1, "nothing to say where no licence asks for it"


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", None)
    with pytest.raises(UserError, match=r"pip install '\.\[guardrail\]', or set dldm.backend.guardrail to false"):
        guardrail(True, True)


def test_without_a_checker_everything_passes():
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    assert Guardrail().frames(frames) is frames and Guardrail().instruction("anything") == "anything"
