"""All settings are checked within seconds, before the long trainings."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_stages import link_frozen

from stages import check
from stages.preset import read
from vw2.console import UserError
from vw2.patch import patch

ROOT = Path(__file__).parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """params.yaml and the frozen outputs that are committed."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    link_frozen(tmp_path)
    monkeypatch.chdir(tmp_path)


def checked(**changes) -> str:
    """Change params.yaml (dots as double underscores) and check it. Returns: what is written."""
    tree: dict = {}
    for key, value in changes.items():
        *groups, name = key.split("__")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(patch(text, tree, "the test", "params.yaml")[0])
    check.main(Path("params.yaml"))
    return check.OUT.read_text()


def test_the_committed_settings_and_others_leave_the_same(workspace):
    assert json.loads(checked()) == {"checked": True}
    assert checked(rollout__samples=1, dldm__codebook=4096, gates__token_margin=None) == check.OUT.read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pretrain_ldm__use": False}, "pretrain_vdm.use is true and pretrain_ldm.use false"),
        ({"prior__clips": 9999}, "made with prior.clips"),
        ({"pretrain_vdm__clips": 7}, "pretrain_vdm.clips .* params.yaml says 7"),
        ({"pretrain_ldm__rounds": 9}, "pretrain_ldm.rounds .* params.yaml says 9"),
        ({"clip__height": 72}, "multiples of 16 pixels, got 72"),
        ({"clip__height": 1280, "clip__width": 2048}, "at most 1024 pixels, got 1280 and 2048"),
        ({"clip__frames": 257, "dldm__window": 257}, "at most 64 latent frames at once, got 65; lower dldm.window"),
        (
            {"dldm__sampling_solver": "ab2", "dldm__sampling_start": 0.001},
            "sampling_start must lie above it, got 0.001",
        ),
        ({"gates__used_share": 1.5}, r"gates.used_share must lie in \[0, 1\], got 1.5"),
        ({"gates__dead_digits": -1}, "gates.dead_digits and gates.motion_share must be at least 0, got -1"),
        ({"clip__frames": 2, "warmup_dldm__batch": 1}, "at least 2 steps in a batch"),
        ({"dldm__control__blocks": 99}, "dldm.control.blocks must lie in"),
        ({"dldm__control__weights": "none.safetensors"}, "dldm.control.weights: none.safetensors does not exist"),
        ({"ar__model__heads": -6}, "ar.model.heads, both above 0"),
        ({"classifier__model__label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\)"),
        ({"classifier__model__backbone__embedding": 0}, "embedding, hidden and depths must be at least 1"),
        ({"evaluate__order": "lose"}, "evaluate.order"),
        ({"rollout__samples": 0}, "rollout.samples must be at least 1"),
        ({"ingest__path": "../videos"}, "ingest.source craft renders its own videos"),
        ({"clip__frames": 18}, "clip.frames must be"),
        ({"ar__sources": ["carft"]}, "^ar.sources: expected some of the sources craft, got carft"),
        ({"train_dldm__sources": ["craft", "folder"]}, "^train_dldm.sources: .* sources craft, got folder"),
        ({"warmup_dldm__sources": []}, "^warmup_dldm.sources: .* sources craft, got none"),
        ({"runtime__workers": 0}, "runtime.workers must be at least 1, got 0"),
        ({"evaluate__lpips_weights": "none.pth"}, "^evaluate.lpips_weights: none.pth does not exist"),
    ],
)
def test_what_would_stop_a_later_stage_is_told_at_once(workspace, changes, told):
    with pytest.raises(UserError, match=told):
        checked(**changes)
    assert not check.OUT.exists()


def test_sources_of_a_mixture_are_known_by_name_or_source(workspace):
    listed = [{"source": "folder", "path": "films", "weight": 1, "name": "near"}, {"source": "craft", "weight": 1}]
    listed.append({"source": "rlds", "path": "bridge", "weight": 1})
    assert checked(ingest__source=listed, warmup_dldm__sources=["near", "craft"], ar__sources=["rlds"])
    with pytest.raises(UserError, match="^ar.sources: expected some of the sources craft, near, rlds, got folder"):
        checked(ar__sources=["folder"])


@pytest.mark.parametrize("group", ["prior", "ar"])
def test_a_group_that_is_none(workspace, group):
    text = Path("params.yaml").read_text().splitlines()
    begin = text.index(f"{group}:")
    end = next(i for i in range(begin + 1, len(text)) if text[i] and not text[i].startswith((" ", "#")))
    Path("params.yaml").write_text("\n".join([*text[:begin], f"{group}: 3", *text[end:]]) + "\n")
    with pytest.raises(UserError, match=f"{group}: expected a group of keys, got"):
        check.main(Path("params.yaml"))


@pytest.fixture
def preset(workspace, monkeypatch):
    """A function that lays a preset over params.yaml; what has to be installed or downloaded first is not asked for."""
    monkeypatch.setattr(check, "check_guardrail", lambda backend: None)
    monkeypatch.setattr(check.DLDMConfig, "loss", lambda self: None, raising=False)
    monkeypatch.setattr(check, "fit", lambda config, frames: config.for_clips(frames))

    def choose(name: str) -> None:
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(patch(text, read(name, ROOT / "presets"), name, "params.yaml")[0])

    return choose


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_goes_together(preset, name):
    preset(name)
    check.main(Path("params.yaml"))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("paper", {"clip__height": 488}, "multiples of 16 pixels, got 488"),
        ("wan", {"clip__height": 496}, "multiples of 32 pixels, got 496"),
        ("release", {"dldm__control__blocks": 99}, "dldm.control.blocks must lie in"),
        ("wan", {"dldm__control__blocks": 99}, "dldm.control.blocks must lie in"),
    ],
)
def test_published_sizes_are_known_before_the_weights(preset, name, changes, told):
    preset(name)
    with pytest.raises(UserError, match=told):
        checked(**changes)
