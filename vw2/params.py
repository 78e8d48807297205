"""The only reader of params.yaml: YAML -> plain dict -> frozen dataclasses, strictly typed.

Each config dataclass lives beside the class it configures; this module knows none of them. It reads YAML 1.2 with
ruamel as DVC does (PyYAML would read `1e-4` as a string).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ruamel.yaml import YAML
from ruamel.yaml.constructor import BaseConstructor, ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError

from vw2.console import UserError

Config = TypeVar("Config")


SEEDS = 2**32  # scikit-learn takes no others
GROUPS = ("seed", "runtime", "compute", "craft", "ingest", "splits", "clip", "prior", "dldm", "pretrain_ldm") + (
    "pretrain_vdm",
    "gates",
    "warmup_dldm",
    "train_dldm",
    "train_plain_ldm",
    "ar",
    "classifier",
    "rollout",
    "evaluate",
)


class Located(BaseConstructor):
    """Mixin: tells the line of a value that is none of its kind, which ruamel leaves to Python (2020-13-45)."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:
            raise ConstructorError(problem=f"cannot read the value ({error})", problem_mark=node.start_mark) from None


class _Constructor(Located, SafeConstructor):
    """Plain values, and no other objects."""


class Groups(dict):
    """The top level of params.yaml; a group that is not there is an error that names it."""

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{key} is missing in the parameter file; copy the group from the committed params.yaml")


def load(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Read a YAML file into nested dicts, lists and scalars; at the top level a missing key is a UserError.

    Raises: UserError if the file is missing, is not YAML (a key given twice included) or is not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run the command in the root of the repository or pass --params"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"expected a YAML text file at {path}, got something else; pass --params FILE") from None
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _Constructor
        tree = yaml.load(text)
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {where(error)}; mend that line") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply; mend it") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"expected {path} to hold a mapping of groups, got {_seen(tree)}; see the committed params.yaml"
        )
    seed = tree.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:  # the one key of all stages
        raise UserError(f"seed: expected an integer in [0, {SEEDS}), got {_seen(seed)}; change seed in {path}")
    for name in tree:
        if name not in GROUPS:
            close = difflib.get_close_matches(str(name), GROUPS, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            raise UserError(f"{name}: unknown group in {path}; {hint}")
    return Groups(tree)


def leaf(tree: dict[str, Any], key: str, kind: Any) -> Any:
    """One value of another stage's group, checked like a field of a dataclass.

    Args:
        key: dotted, say pretrain_ldm.use; kind: its type.
    Raises: UserError naming the key if it is missing or ill-typed.
    """
    group, name = key.split(".")
    found = tree[group]
    if not isinstance(found, dict) or name not in found:
        raise UserError(f"{key}: expected {_wanted(kind)}, but the key is missing; add it to params.yaml")
    return _convert(kind, found[name], key)


def where(error: YAMLError) -> str:
    """The problem of a YAML error with its line, on one line."""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    return f"{problem} (line {mark.line + 1})" if mark is not None else problem


def build(cls: type[Config], group: Any, name: str, **given: Any) -> Config:
    """Make the dataclass `cls` from one group of params.yaml.

    Every field must be given, also one with a default: a default that params.yaml does not show is a setting that
    DVC cannot track. Fields declared with `init=False` are left to the class.

    Args:
        cls: a (frozen) dataclass; fields may be bool, int, float, str, Path, None, Literal, unions of these, tuple,
            list, dict[str, X] and nested dataclasses. A YAML list becomes a tuple for a tuple field.
        group: what params.yaml holds under `name`.
        name: dotted name of the group, for messages.
        given: fields that come from elsewhere (the seed) and that the group must not hold.
    Raises: UserError naming the key if one is unknown, missing or ill-typed; with the sentence of a ValueError raised
        by `__post_init__`, behind the name of the group where it does not say it.
    """
    if not isinstance(group, dict):
        raise UserError(
            f"{name}: expected a group of keys, got {_seen(group)}; see {name} in the committed params.yaml"
        )
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in given]
    for key in group:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {name}.{close[0]}?" if close else "remove it"
            raise UserError(f"{name}.{key}: unknown key, expected one of {', '.join(names)}; {hint}")
    for key in names:
        if key not in group:
            raise UserError(
                f"{name}.{key}: expected {_wanted(hints[key])}, but the key is missing; add it to params.yaml"
            )
    values = {key: _convert(hints[key], group[key], f"{name}.{key}") for key in names}
    try:
        return cls(**values, **given)
    except (ValueError, ArithmeticError) as error:
        said = str(error)
        named = re.search(rf"\b{re.escape(name)}\b", said)  # as a word: "ar" stands in "learning rate" too
        raise UserError(said if named else f"{name}: {said}") from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Check `value` against the type `hint` and convert it (int -> float, list -> tuple, dict -> dataclass)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, name, hint)
    if origin is Literal:
        # 1 == True in Python, so the type has to agree too.
        if any(value == each and type(value) is type(each) for each in args):
            return value
    elif origin in (tuple, list) or hint in (tuple, list):
        if isinstance(value, list | tuple):
            return _convert_items(hint, value, name)
    elif origin is dict or hint is dict:
        if isinstance(value, dict):
            kind = args[1] if args else Any
            return {key: _convert(kind, each, f"{name}.{key}") for key, each in value.items()}
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, str):
            return Path(value)
    elif hint in (None, type(None)):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint):  # bool, str
        return value
    raise UserError(f"{name}: expected {_wanted(hint)}, got {_seen(value)}; change {name} in params.yaml")


def _convert_union(args: tuple[Any, ...], value: Any, name: str, hint: Any) -> Any:
    """The first alternative that fits; null only where None is one of them."""
    if value is None and type(None) in args:
        return None
    rest = [each for each in args if each is not type(None)]
    if len(rest) == 1 and value is not None:
        try:
            return _convert(rest[0], value, name)
        except UserError:
            # A nested message names the deeper key; a scalar one should mention that null is allowed too.
            if isinstance(value, dict | list):
                raise
    for each in rest:
        try:
            return _convert(each, value, name)
        except UserError:
            continue
    raise UserError(f"{name}: expected {_wanted(hint)}, got {_seen(value)}; change {name} in params.yaml")


def _convert_items(hint: Any, value: Any, name: str) -> Any:
    """Items of a list or tuple, each checked: list[int], tuple[int, ...] or tuple[int, float]."""
    kind = typing.get_origin(hint) or hint
    args = typing.get_args(hint)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise UserError(f"{name}: expected {len(args)} items, got {len(value)}; change {name} in params.yaml")
        hints = list(args)
    else:
        hints = [args[0] if args else Any] * len(value)
    return kind(_convert(each, item, f"{name}[{i}]") for i, (each, item) in enumerate(zip(hints, value, strict=True)))


def _wanted(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "a group of keys"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_wanted(each) for each in args))
    if origin is Literal:
        return "one of " + ", ".join(str(each) for each in args)
    if origin in (tuple, list) or hint in (tuple, list):
        return f"a list of {_plural(args[0])}" if args else "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}
    return "null" if hint in (None, type(None)) else words.get(hint, str(hint))


def _plural(hint: Any) -> str:
    """A type in words, plural."""
    words = {int: "integers", float: "numbers", str: "strings", bool: "true or false", Path: "paths"}
    return words.get(hint, f"items, each {_wanted(hint)}")


def _seen(value: Any) -> str:
    """A value as the user wrote it, with its kind."""
    if value is None:
        return "null (or nothing)"
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return f"the list {list(value)}"
    if isinstance(value, int) and value.bit_length() > 1024:  # Python may refuse to write it out
        return "an integer of more than 308 digits"
    kind = {bool: "", int: "", float: "", str: "the string "}.get(type(value), f"{type(value).__name__} ")
    return f"{kind}{value!r}" if not isinstance(value, bool) else str(value).lower()
