"""The guardrail acts on instruction and rendered frames, with a stand-in of cosmos_guardrail's interface.

That the stages hand it all that they should is tested here and in test_rollout_stage.py.
"""

import sys
import types

import numpy as np
import pytest
from test_rollout import Counter, make_row
from tiny_stages import make_folder, write_params

from stages import train_dldm, warmup_dldm
from vw2 import guardrail as module
from vw2.console import UserError
from vw2.guardrail import Guardrail, guardrail
from vw2.models import backends
from vw2.models.backends import BackendConfig, guardrail_of
from vw2.rollout import render_batch


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


# ---------------------------------------------------------------- who is checked


class Recorder:
    """Keeps all that it is shown and lets it pass, every video as grey."""

    GREY = 99

    def __init__(self):
        self.texts: list[str] = []
        self.videos: list[np.ndarray] = []

    def check_text_safety(self, prompt: str) -> bool:
        self.texts.append(prompt)
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        self.videos.append(frames.copy())
        return np.full_like(frames, self.GREY)


@pytest.mark.parametrize("kind, asked", [("cosmos", True), ("wan", False), ("mini", False)])
def test_whose_licence_asks_for_it(package, kind, asked):
    given = {} if kind == "mini" else {"weights": "folder"}
    assert isinstance(guardrail_of(BackendConfig(kind, **given)).checker, CosmosSafetyChecker) == asked
    assert guardrail_of(BackendConfig(kind, **given, guardrail=False)).checker is None


def test_every_rendered_video_is_checked():
    checker, rows = Recorder(), [make_row("a", 2), make_row("b", 1, (1,)), make_row("c", 3, (2,))]
    plain = render_batch(Counter(), rows, 0)
    videos = render_batch(Counter(), rows, 0, Guardrail(checker))
    assert len(checker.videos) == 3
    for shown, wanted, video in zip(checker.videos, plain, videos, strict=True):
        assert np.array_equal(shown, wanted), "all its frames, at its end"
        assert (video == Recorder.GREY).all(), "what the guardrail made of it is handed on"


def test_the_joint_stage_shows_nothing_unchecked(tmp_path, monkeypatch):
    checker, sheets = Recorder(), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(backends, "guardrail", lambda needed, enabled, device: Guardrail(checker))
    monkeypatch.setattr(train_dldm, "write_sheet", lambda path, rows: sheets.append(rows))
    make_folder(tmp_path, frames=9)
    params = write_params(tmp_path, {})
    warmup_dldm.main(params)
    train_dldm.main(params)
    (rows,) = sheets
    assert len(rows) == len(checker.videos) > 1
    assert all((frames == Recorder.GREY).all() for _, frames in rows)
