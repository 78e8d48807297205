"""Presets change values and nothing else in params.yaml, and unknown keys are refused by name."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from stages import preset
from vw2 import params as reader
from vw2.console import UserError
from vw2.models.dldm_config import DLDMConfig
from vw2.patch import leaves, parse, patch

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


@pytest.mark.parametrize(
    "text", ["seed: 2020-13-45\n", 'seed: !!int "abc"\n', "seed: !!bool x\n", "seed: " + "[" * 3000]
)
def test_a_value_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(UserError, match="^preset odd is not valid YAML: ") as caught:
        parse(text, "preset odd")
    assert "\n" not in str(caught.value)


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


def test_a_preset_is_laid_on_its_base(files):
    params, presets = files
    (presets / "low.yaml").write_text(
        "seed: 1\ndldm:\n  codebook: 8\n  sources: [a, b]\n  optimiser:\n    decay: 0.2\n"
    )
    (presets / "middle.yaml").write_text("base: low\nruntime:\n  workers: 4\ndldm:\n  codebook: 4096\n")
    (presets / "top.yaml").write_text("# the last\nbase: middle\ndldm:\n  sources: [c]\n  lr: 3.0e-5\n")
    rows, kept = preset.apply("top", params, presets)
    once = params.read_text()
    assert kept == [] and {row["key"]: row["new"] for row in rows} == {
        "seed": "1",
        "runtime.workers": "4",
        "dldm.codebook": "4096",
        "dldm.sources": "[c]",
        "dldm.lr": "3e-05",
        "dldm.optimiser.decay": "0.2",
    }
    params.write_text(PARAMS)
    (presets / "flat.yaml").write_text(
        "dldm:\n  lr: 3.0e-5\n  codebook: 4096\n  sources: [c]\n  optimiser:\n    decay: 0.2\n"
        "seed: 1\nruntime:\n  workers: 4\n"
    )
    preset.apply("flat", params, presets)
    assert params.read_text() == once, "byte for byte as if it had been written out"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lost", "preset lost: expected as base one of a, b, empty, itself, number, which are .*, got gone;"),
        ("a", "preset b: expected as base one of .*, which are not built on it, got a; change that line or remove it"),
        ("itself", "preset itself: .*, got itself;"),
        ("number", "preset number: .*, got 3;"),
        ("empty", "preset empty: .*, got null;"),
    ],
)
def test_circles_and_unknown_bases_are_refused(files, name, words):
    params, presets = files
    for each, base in {"lost": "gone", "a": "b", "b": "a", "itself": "itself", "number": "3", "empty": ""}.items():
        (presets / f"{each}.yaml").write_text(f"base: {base}\nseed: 1\n")
    with pytest.raises(UserError, match=words):
        preset.apply(name, params, presets)
    assert params.read_text() == PARAMS


def test_wan_is_paper_with_another_backend():
    presets = ROOT / "presets"
    paper, wan = (dict(leaves(preset.read(name, presets))) for name in ("paper", "wan"))
    differing = {key for key in paper | wan if paper.get(key) != wan.get(key)}
    assert differing == {f"dldm.backend.{key}" for key in ("kind", "weights", "revision")}
    own = {key for key, _ in leaves(parse((presets / "wan.yaml").read_text(), "wan"))}
    assert own == differing | {"base"}, "what paper says is not said again"


def test_mini_is_params_yaml_as_shipped():
    """So that it can be gone back to from any state, committed or not, and without Git."""
    shipped = preset.mini_of((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
    assert (ROOT / "presets" / "mini.yaml").read_text(encoding="utf-8") == shipped, (
        "params.yaml has other values than presets/mini.yaml: if they are to be shipped, run `python -m stages.preset "
        "--write-mini`; if they are an experiment of yours, `python -m stages.preset mini` takes them back"
    )


def test_mini_is_made_of_params_yaml(files):
    params, presets = files
    with pytest.raises(UserError, match="expected one of the presets one, got mini"):
        (presets / "one.yaml").write_text("seed: 1\n")
        preset.apply("mini", params, presets)
    with pytest.raises(UserError, match="no value of params.yaml to hold a # behind a space|is not valid YAML"):
        preset.mini_of(PARAMS, "params.yaml")
    params.write_text(PARAMS.replace(" # odd", "#odd").replace(" # quoted", ""))
    preset.main("", params, presets, list_all=False, write_mini=True)
    text = (presets / "mini.yaml").read_text()
    assert parse(text, "mini") == parse(params.read_text(), "params.yaml")
    assert "lr: 1.0e-4\n" in text and "levels: null\n" in text and text.count("# ") == 2, (
        "a title and the numbers as written"
    )
    before = params.read_text()
    preset.apply("one", params, presets)
    preset.apply("mini", params, presets)
    assert params.read_text() == before


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
    assert unknown.stderr.startswith("error: expected one of the presets one, got two")


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "presets").glob("*.yaml")))
def test_committed_presets_fit_params_yaml(name):
    text = (ROOT / "params.yaml").read_text()
    overrides = preset.read(name, ROOT / "presets")
    result, _ = patch(text, overrides, name)
    assert preset.catalogue(ROOT / "presets")[name].endswith(".")  # --list shows one line, so it is a whole sentence
    assert result.count("#") == text.count("#")
    assert reader.load(ROOT / "params.yaml").keys() == parse(result, name).keys()


# ---------------------------------------------------------------- what the comments of params.yaml say of the sources

GROUPS = ("dldm", "warmup_dldm", "train_dldm", "ar")
NUMBER = r"null|true|false|\d+(?:\.\d+)?(?:e-?\d+)?"


def comments(text: str) -> dict[str, str]:
    """Dotted key -> the comment above it and behind it, in one line."""
    found, above, path = {}, [], []
    for line in text.splitlines():
        body = line.strip()
        if body.startswith("#"):
            above.append(body.lstrip("# "))
        elif match := re.match(r"(\w+):(?:[^#]*# (.*))?", body):
            path[(len(line) - len(line.lstrip())) // 2 :] = [match[1]]
            found[".".join(path)] = " ".join([*above, match[2] or ""]).strip()
            above = []
    return found


def choices(kind: type, prefix: str) -> dict[str, tuple]:
    """Dotted key -> the words that it may be, of a config dataclass and those in it."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= choices(hint, f"{prefix}.{name}")
        elif get_origin(hint) is Literal:
            found[f"{prefix}.{name}"] = get_args(hint)
    return found


def named(comment: str, source: str, words: tuple = ()) -> list:
    """The value that a comment names for a source, if it says so in a way that can be read off; else none.

    A word is the last possible one before "(paper)"; a number stands as in "(paper: 93)", "0 = none (paper)" or
    "true: its own (release)".
    """
    if words:
        before = re.match(rf"(.*?)\({source}[);:]", comment)
        return re.findall(rf"\b({'|'.join(words)})\b", before[1])[-1:] if before else []
    match = re.search(rf"\b{source}: ({NUMBER})(?=[,;)]| of )", comment)
    match = match or re.search(rf"(?:^|[,;] )({NUMBER})(?:(?: =|:) [^;(]*)? \({source}[);]", comment)
    return [{"null": None, "true": True, "false": False}.get(match[1], match[1])] if match else []


def said(source: str) -> dict:
    """Dotted key -> value that the comments of params.yaml name for a source, in the groups of the models."""
    words = choices(DLDMConfig, "dldm")
    texts = {key: text for key, text in comments((ROOT / "params.yaml").read_text()).items() if text}
    read = {key: named(text, source, words.get(key, ())) for key, text in texts.items() if key.split(".")[0] in GROUPS}
    # what only the frame parts look at says nothing of presets with the causal ones
    values = {key: value[0] for key, value in read.items() if value and not texts[key].startswith("frames:")}
    return {key: float(value) if re.match(r"\d", str(value)) else value for key, value in values.items()}


def text_of(name: str) -> str:
    """The committed params.yaml with a preset's values."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return patch(text, preset.read(name, ROOT / "presets"), name)[0]


def test_comments_are_read():
    paper, release = said("paper"), said("release")
    some = {"dldm.sampling_start": 1, "dldm.reconstruction_loss": "l2", "ar.optim.muon": None, "ar.optim.warmup": 5000}
    some |= {"dldm.causal.connector": 0, "dldm.causal.view": "prefix", "train_dldm.optim.batch": 128}
    assert paper | some == paper and len(paper) > 25
    some = {"dldm.sampling_solver": "ab2", "dldm.control.own_time": True, "dldm.control.blocks": 3, "dldm.guidance": 7}
    some |= {"dldm.control.hint": "mlp", "train_dldm.optim.steps": 30000, "dldm.cross_attention": "full"}
    assert release | some == release and len(release) > 15


@pytest.mark.parametrize("name, source", [("paper", "paper"), ("wan", "paper"), ("release", "release")])
def test_presets_hold_what_the_comments_say(name, source):
    """No key whose comment names the source's value keeps another one of the mini."""
    text = text_of(name)
    now = dict(leaves(parse(text, name)))
    assert {key: now[key] for key in said(source)} == said(source)


@pytest.mark.parametrize("name", ["paper", "release", "wan", "mini"])
def test_the_plain_ldm_is_trained_as_long_as_the_dldm(name):
    """Same steps and clips after the warm-up, or it is no baseline."""
    values = parse(text_of(name), name)
    plain, joint, warm = values["train_plain_ldm"], values["train_dldm"]["optim"], values["warmup_dldm"]
    assert (plain["steps"], plain["batch"]) == (joint["steps"], joint["batch"])
    assert plain["micro_batch"] == warm["micro_batch"], "what fits in the warm-up fits here"
