"""Patch params.yaml with a preset, or put it back.

In:   presets/NAME.yaml, nested overrides; with `base: OTHER` at its top they are laid on those of another preset.
Out:  params.yaml with only the changed values rewritten: comments, order and block style stay.
Not a node of the DAG. Tiny runs: `python -m stages.preset smoke`, and back: `python -m stages.preset mini`.

A preset is laid on what params.yaml holds. What an earlier preset or your own edit changed before is kept, and told; go
back to `mini` first for a clean switch. `mini` is params.yaml as shipped, without its comments; whoever ships other
values renews it: `python -m stages.preset --write-mini`.
"""

from __future__ import annotations

import re
from pathlib import Path

import typer

from vw2 import console
from vw2.console import UserError
from vw2.patch import leaves, parse, patch
from vw2.scratch import atomic_file

MINI = "mini"
BASE = "base"  # the one key at the top of a preset that is none of params.yaml
TITLE = """\
# params.yaml as shipped: the whole DAG on two CPU cores.
# Made by `python -m stages.preset --write-mini`, not by hand.
"""


def text_of(params: Path) -> str:
    """The text of params.yaml."""
    if not params.is_file():
        raise UserError(f"{params} does not exist; run the command in the root of the repository or pass --params")
    return params.read_text(encoding="utf-8")


def catalogue(presets: Path) -> dict[str, str]:
    """Name -> first comment line of every preset."""
    found = {}
    for file in sorted(presets.glob("*.yaml")):
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        found[file.stem] = comments[0].lstrip("# ") if comments else ""
    return found


def read(name: str, presets: Path, *above: str) -> dict:
    """Nested overrides of a preset: those of its base, if it names one, and its own in their place.

    Args:    above: the presets that are read because of this one's name, from the first on.
    Raises:  UserError for a base that does not exist or is built on this preset itself.
    """
    own = parse((presets / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")
    if BASE not in own:
        return own
    base, trail = own.pop(BASE), (*above, name)
    others = [each for each in catalogue(presets) if each not in trail]
    if base not in others:
        raise UserError(
            f"preset {name}: expected as base one of {', '.join(others) or 'none'}, which are not built on it, "
            f"got {show(base)}; change that line or remove it"
        )
    return laid(read(base, presets, *trail), own)


def laid(below: dict, own: dict) -> dict:
    """Nested values `below`, those of `own` in their place."""
    nested = lambda key: isinstance(own[key], dict) and isinstance(below.get(key), dict)  # noqa: E731
    return {**below, **{key: laid(below[key], own[key]) if nested(key) else own[key] for key in own}}


def apply(name: str, params: Path, presets: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Patch the file `params` with the preset `name`.

    Returns: one row (key, old, new) per changed value; dotted keys that still differ from the mini preset although
        this preset does not set them.
    Raises:  UserError for an unknown preset, base or key; `params` is then untouched.
    """
    text, known = text_of(params), catalogue(presets)
    if name not in known:
        names, got = ", ".join(known), name or "none"
        raise UserError(f"expected one of the presets {names}, got {got}; see python -m stages.preset --list")
    overrides = read(name, presets)
    result, old = patch(text, overrides, f"preset {name}", params.name)
    if old:
        with atomic_file(params) as temporary:
            temporary.write_text(result, encoding="utf-8")
    now, wanted = dict(leaves(parse(result, params.name))), dict(leaves(overrides))
    rows = [{"key": key, "old": show(value), "new": show(now[key])} for key, value in old.items()]
    return rows, leftovers(now, wanted, presets) if MINI in known else []


def leftovers(now: dict, wanted: dict, presets: Path) -> list[str]:
    """Keys that neither hold their mini value nor are set by the preset."""
    mini = dict(leaves(read(MINI, presets)))
    return [key for key, value in now.items() if key in mini and key not in wanted and mini[key] != value]


def mini_of(text: str, name: str) -> str:
    """The preset mini of a params.yaml: its text without comments and empty lines.

    Args:    text, name: of the file.
    Raises:  UserError if a value holds what looks like a comment.
    """
    bare = (re.sub(r"(^|\s+)#.*", "", line) for line in text.splitlines())
    result = TITLE + "".join(f"{line}\n" for line in bare if line.strip())
    if parse(result, f"{name} without comments") != parse(text, name):
        raise UserError(f"expected no value of {name} to hold a # behind a space, got one; write it without")
    return result


def show(value: object) -> str:
    """A YAML value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def main(
    name: str = typer.Argument("", help="which preset, see --list"),
    params: Path = typer.Option("params.yaml", help="file to patch"),
    presets: Path = typer.Option("presets", help="folder of NAME.yaml files"),
    list_all: bool = typer.Option(False, "--list", help="list the presets and leave"),
    write_mini: bool = typer.Option(False, "--write-mini", help="make the preset mini of params.yaml and leave"),
) -> None:
    """Patch params.yaml with the values of a preset and show what changed; `mini` restores the values as shipped."""
    if list_all:
        for each, title in catalogue(presets).items():
            typer.echo(f"{each:10s} {title}")
        return
    if write_mini:
        text = mini_of(text_of(params), params.name)
        with atomic_file(presets / f"{MINI}.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")
        console.say(f"{presets / MINI}.yaml holds the values of {params}")
        return
    rows, kept = apply(name, params, presets)
    if rows:
        console.table(f"{params}: preset {name}", rows)
    else:
        console.say(f"{params} already holds the preset {name}")
    if kept:
        console.say(f"kept from before, not mini and not set by {name}: {', '.join(kept)}")


if __name__ == "__main__":
    console.run(main)
