"""Presets change values and nothing else in params.yaml, and unknown keys are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import preset
from vw2 import params as reader
from vw2.console import UserError
from vw2.patch import parse, patch

ROOT = Path(__file__).resolve().parents[1]
PARAMS = """\
# The mini preset.
seed: 0  # any integer

# joint training (VideoWorld 2, sec. 5.5)
dldm:
  # number of codes: 8, 1000, 4096, 64000
  codebook: 1000
  # digits of the quantiser, null derives them
  levels: null  # product = codebook
  # learning rate
  lr: 1.0e-4   # Table 4
  # sources to train on
  sources:
  - craft
  - 'folder # odd'
  # does the decoder keep learning: off, decoder, trunk
  decoder: "off # quoted"  # sec. 5.5
  # optimiser
  optimiser:
    # weight decay
    decay: 0.1

# results do not depend on these
runtime:
  workers: 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "presets").mkdir()
    return tmp_path / "params.yaml", tmp_path / "presets"


def test_only_the_changed_values_change():
    overrides = """
dldm:
  codebook: 4096
  levels: [8, 8, 8, 8]   # flow style becomes block style
  lr: 3.0e-5
  sources:
  # a comment of the preset
  - openx
  decoder: trunk
  optimiser:
    decay: 0.1
"""
    result, old = patch(PARAMS, parse(overrides, "x"), "preset x")
    expected = (
        PARAMS.replace("codebook: 1000", "codebook: 4096")
        .replace("levels: null  # product = codebook", "levels:  # product = codebook\n  - 8\n  - 8\n  - 8\n  - 8")
        .replace("lr: 1.0e-4   # Table 4", "lr: 3.0e-5   # Table 4")
        .replace("  - craft\n  - 'folder # odd'\n", "  - openx\n")
        .replace('"off # quoted"  # sec', "trunk  # sec")
    )
    assert result == expected
    assert old == {
        "dldm.codebook": 1000,
        "dldm.levels": None,
        "dldm.lr": 1e-4,
        "dldm.sources": ["craft", "folder # odd"],
        "dldm.decoder": "off # quoted",
    }
    back, _ = patch(result, parse(PARAMS, "mini"), "preset mini")
    assert parse(back, "back") == parse(PARAMS, "mini") and back.count("#") == PARAMS.count("#")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("1", "true", "a: true\n"),  # 1 == True in Python, not in YAML
        ("1", "1.0", "a: 1.0\n"),
        ("[1, 2]  # c", "null", "a: null  # c\n"),
        ("x", "[]", "a: []\n"),
        ("x", "'yes: # no'", "a: 'yes: # no'\n"),
        ("1", "1", "a: 1\n"),
    ],
)
def test_kinds_of_values(old, new, text):
    result, _ = patch(f"a: {old}\n", parse(f"a: {new}", "x"), "x")
    assert result == text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("dldm:\n  codebok: 8\n", "dldm.codebok is not a key of params.yaml"),
        ("dlmd:\n  codebook: 8\n", "dlmd is not a key"),
        ("dldm:\n  codebook:\n    deep: 8\n", "dldm.codebook.deep is not a key"),
        ("dldm:\n  optimiser: adam\n", "expected keys below dldm.optimiser"),
    ],
)
def test_unknown_keys_are_named(files, overrides, words):
    params, presets = files
    (presets / "bad.yaml").write_text(overrides)
    with pytest.raises(UserError, match=words):
        preset.apply("bad", params, presets)
    assert params.read_text() == PARAMS


def test_value_that_cannot_be_patched_is_refused():
    with pytest.raises(UserError, match="cannot set a"):
        patch("a: >-\n  long\n  text\nb: 1\n", {"a": "short"}, "preset x")


def test_mini_from_a_file_and_what_is_kept(files):
    params, presets = files
    (presets / "mini.yaml").write_text(PARAMS)
    (presets / "one.yaml").write_text("# the first\nseed: 1\n")
    (presets / "two.yaml").write_text("dldm:\n  codebook: 8\n")
    assert preset.apply("one", params, presets) == ([{"key": "seed", "old": "0", "new": "1"}], [])
    rows, kept = preset.apply("two", params, presets)
    assert [row["key"] for row in rows] == ["dldm.codebook"] and kept == ["seed"]
    preset.apply("mini", params, presets)
    assert params.read_text() == PARAMS
    assert preset.apply("mini", params, presets) == ([], [])
    assert list(preset.catalogue(presets)) == ["mini", "one", "two"]
    assert preset.catalogue(presets)["one"] == "the first"


def test_mini_from_the_last_commit(files):
    params, presets = files
    (presets / "one.yaml").write_text("seed: 1\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    preset.apply("one", params, presets)
    with pytest.raises(UserError, match="no committed"):
        preset.apply("mini", params, presets)
    params.write_text(PARAMS)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=params.parent, check=True)
    preset.apply("one", params, presets)
    preset.apply("mini", params, presets)
    assert params.read_text() == PARAMS


def test_command_line(files):
    params, presets = files
    (presets / "one.yaml").write_text("# the first\nseed: 1\n")
    command = [sys.executable, "-m", "stages.preset", "--params", str(params), "--presets", str(presets)]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ | {"COLUMNS": "100"}}
    listed = subprocess.run([*command, "--list"], **options)
    assert listed.returncode == 0 and "one" in listed.stdout and "the first" in listed.stdout
    done = subprocess.run([*command, "one"], **options)
    assert done.returncode == 0 and "seed" in done.stderr and "old" in done.stderr
    assert params.read_text() == PARAMS.replace("seed: 0", "seed: 1")
    unknown = subprocess.run([*command, "two"], **options)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: expected one of the presets mini, one, got two")


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "presets").glob("*.yaml")))
def test_committed_presets_fit_params_yaml(name):
    text = (ROOT / "params.yaml").read_text()
    overrides = parse((ROOT / "presets" / f"{name}.yaml").read_text(), name)
    result, _ = patch(text, overrides, name)
    assert result.count("#") == text.count("#")
    assert reader.load(ROOT / "params.yaml").keys() == parse(result, name).keys()
