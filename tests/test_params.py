"""Strict typing of params.yaml: what is wrong is named in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vw2 import params
from vw2.console import UserError


@dataclass(frozen=True)
class Inner:
    levels: tuple[int, ...] | None
    dropout: float


@dataclass(frozen=True)
class Outer:
    width: int
    lr: float
    mode: Literal["off", "decoder"]
    live: bool
    name: str
    size: tuple[int, int]
    inner: Inner
    path: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    total: int = field(init=False, default=0)

    def __post_init__(self):
        if self.width % 8:
            raise ValueError(f"outer.width is {self.width}, expected a multiple of 8; change outer.width to 64")


def group(**changes):
    good = {
        "width": 64,
        "lr": 1,
        "mode": "off",
        "live": True,
        "name": "x",
        "size": [64, 48],
        "inner": {"levels": [8, 5], "dropout": 0.1},
        "path": None,
        "weights": {"l1": 1},
        "sources": ["craft"],
    }
    return good | changes


def test_build_converts_and_nests():
    built = params.build(Outer, group(), "outer")
    assert built.lr == 1.0 and isinstance(built.lr, float)
    assert built.size == (64, 48) and built.inner == Inner((8, 5), 0.1)
    assert built.weights == {"l1": 1.0} and built.sources == ["craft"] and built.path is None
    assert params.build(Outer, group(path="a/b"), "outer").path == Path("a/b")
    assert params.build(Outer, group(inner={"levels": None, "dropout": 0}), "outer").inner.levels is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widht": 3}, ["outer.widht", "unknown", "outer.width"]),
        ({"width": 64.0}, ["outer.width", "an integer", "64.0"]),
        ({"width": True}, ["outer.width", "an integer", "true"]),
        ({"width": None}, ["outer.width", "an integer", "null"]),
        ({"lr": "1e-4"}, ["outer.lr", "a number", "'1e-4'"]),
        ({"lr": False}, ["outer.lr", "a number", "false"]),
        ({"lr": float("nan")}, ["outer.lr", "a number", "nan"]),
        ({"lr": 10**400}, ["outer.lr", "a number", "an integer of more than 308 digits"]),
        ({"lr": -(10**400)}, ["outer.lr", "a number", "an integer of more than 308 digits"]),
        ({"mode": "on"}, ["outer.mode", "off, decoder", "'on'"]),
        ({"mode": False}, ["outer.mode", "off, decoder", "false"]),  # YAML 1.1 would read `off` as false
        ({"live": 1}, ["outer.live", "true or false", "1"]),
        ({"name": 7}, ["outer.name", "a string", "7"]),
        ({"size": [1, 2, 3]}, ["outer.size", "2 items", "3"]),
        ({"size": [1, "b"]}, ["outer.size[1]", "an integer", "'b'"]),
        ({"size": 64}, ["outer.size", "a list of integers", "64"]),
        ({"inner": {"levels": [8, 0.5], "dropout": 0.1}}, ["outer.inner.levels[1]", "an integer", "0.5"]),
        ({"inner": {"levels": 8, "dropout": 0.1}}, ["outer.inner.levels", "a list of integers or null", "8"]),
        ({"inner": {"levels": None}}, ["outer.inner.dropout", "missing"]),
        ({"inner": {"levels": None, "dropout": 0.1, "x": 1}}, ["outer.inner.x", "unknown"]),
        ({"inner": 3}, ["outer.inner", "a group", "3"]),
        ({"path": 3}, ["outer.path", "a path or null", "3"]),
        ({"weights": {"l1": "big"}}, ["outer.weights.l1", "a number", "'big'"]),
    ],
)
def test_build_names_the_wrong_key(changes, words):
    with pytest.raises(UserError) as caught:
        params.build(Outer, group(**changes), "outer")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("key", ["width", "path", "sources"])
def test_missing_key_is_refused_even_with_a_default(key):
    """A default that params.yaml does not show is a setting DVC cannot track."""
    broken = group()
    del broken[key]
    with pytest.raises(UserError, match=rf"outer\.{key}: .*missing"):
        params.build(Outer, broken, "outer")


def test_post_init_sentence_is_passed_on_unchanged():
    with pytest.raises(UserError, match=r"^outer\.width is 60, expected a multiple of 8; change outer\.width to 64$"):
        params.build(Outer, group(width=60), "outer")


def test_group_must_be_a_mapping():
    with pytest.raises(UserError, match="outer: expected a group"):
        params.build(Outer, None, "outer")


def test_load_reads_yaml_1_2_into_plain_types(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("ar:\n  lr: 1e-4\n  mode: off\n  levels:\n  - 8\n  - 5\n")
    tree = params.load(file)
    assert tree == {"ar": {"lr": 1e-4, "mode": "off", "levels": [8, 5]}}
    assert type(tree["ar"]) is dict and type(tree["ar"]["levels"]) is list and type(tree["ar"]["lr"]) is float


def test_the_known_groups_are_those_of_the_committed_file():
    assert tuple(params.load(Path(__file__).parents[1] / "params.yaml")) == params.GROUPS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["does not exist", "params.yaml"]),
        ("a: [1\n", ["not valid YAML", "line"]),
        ("a: 1\na: 2\n", ["not valid YAML", "duplicate"]),
        ("- 1\n", ["a mapping of groups", "[1]"]),
        ("", ["a mapping of groups"]),
        ("gatez:\n  enabled: true\n", ["gatez: unknown group", "did you mean gates?"]),
        ("seed: 4294967296\n", ["seed: expected an integer in [0, 4294967296)"]),
        ("a: 1\nseed: 2020-13-45\n", ["not valid YAML", "month must be in 1..12", "(line 2)"]),
        ('seed: !!int "abc"\n', ["not valid YAML", "'abc'", "(line 1)"]),
        ("ar:\n  lr: !!bool x\n", ["not valid YAML", "'x'", "(line 2)"]),
        (f"seed: {'9' * 400}\n", ["seed: expected an integer in", "got an integer of more than 308 digits"]),
        (f"seed: {'9' * 5000}\n", ["not valid YAML", "4300 digits", "(line 1)"]),
        (f"seed: 0x{'f' * 5000}\n", ["seed: expected an integer in", "got an integer of more than 308 digits"]),
        ("a: " + "[" * 3000, ["not valid YAML", "nested too deeply"]),
    ],
)
def test_load_refuses_what_is_no_params_file(tmp_path, text, words):
    file = tmp_path / "params.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        params.load(file)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("seed", ["abc", -1, 1.5, True, None])
def test_the_seed_is_checked_for_all_stages(tmp_path, seed):
    (tmp_path / "params.yaml").write_text(f"seed: {'null' if seed is None else str(seed).lower()}\n")
    with pytest.raises(UserError, match="seed: expected an integer in"):
        params.load(tmp_path / "params.yaml")


def test_one_value_of_another_group(tmp_path):
    (tmp_path / "params.yaml").write_text("ar:\n  use: no\n  sources: [a, b]\n")
    tree = params.load(tmp_path / "params.yaml")
    assert params.leaf(tree, "ar.sources", tuple[str, ...] | None) == ("a", "b")
    with pytest.raises(UserError, match="ar.use: expected true or false, got the string 'no'"):
        params.leaf(tree, "ar.use", bool)  # YAML 1.2 knows no "no"
    with pytest.raises(UserError, match="ar.gone: .* missing"):
        params.leaf(tree, "ar.gone", bool)


def test_fields_from_elsewhere_are_not_in_the_group():
    given = {key: value for key, value in group().items() if key != "width"}
    assert params.build(Outer, given, "outer", width=16).width == 16
    with pytest.raises(UserError, match="outer.width: unknown key"):
        params.build(Outer, group(), "outer", width=16)


def test_what_a_class_refuses_is_said_with_the_name_of_its_group():
    @dataclass(frozen=True)
    class Part:
        heads: int

        def __post_init__(self):
            if self.heads < 0:
                raise ValueError("heads must be at least 0; raise it")
            self.__dict__["each"] = 8 // self.heads

    with pytest.raises(UserError, match="^ea: heads must be at least"):  # "ea" stands in "least", but not as a word
        params.build(Part, {"heads": -1}, "ea")
    with pytest.raises(UserError, match="^ar.model: heads must"):
        params.build(Part, {"heads": -1}, "ar.model")
    with pytest.raises(UserError, match="^ar.model: .*zero"):
        params.build(Part, {"heads": 0}, "ar.model")
