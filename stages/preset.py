"""Patch params.yaml with a preset, or put it back.

In:   presets/NAME.yaml, a small file of nested overrides; params.yaml.
Out:  params.yaml with only the changed values rewritten: comments, order and block style stay.
Not a node of the DAG. Tiny runs: `python -m stages.preset smoke`, and back: `python -m stages.preset mini`.

A preset is laid on what params.yaml holds. What an earlier preset or your own edit changed before is kept, and told; go
back to `mini` first for a clean switch.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import typer

from vw2 import console
from vw2.console import UserError
from vw2.patch import leaves, parse, patch
from vw2.scratch import atomic_file

MINI = "mini"


def mini_text(params: Path, presets: Path) -> str:
    """The committed mini values: presets/mini.yaml if there is one, else params.yaml as last committed."""
    if (presets / f"{MINI}.yaml").is_file():
        return (presets / f"{MINI}.yaml").read_text(encoding="utf-8")
    command = ["git", "show", f"HEAD:./{params.name}"]
    try:
        return subprocess.run(command, cwd=params.parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"Git has no committed {params} to go back to; write presets/{MINI}.yaml or commit it"
        ) from None


def catalogue(presets: Path) -> dict[str, str]:
    """Name -> first comment line of every preset."""
    found = {MINI: "the committed params.yaml: the whole DAG on two CPU cores"}
    for file in sorted(presets.glob("*.yaml")):
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        found[file.stem] = comments[0].lstrip("# ") if comments else ""
    return found


def apply(name: str, params: Path, presets: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Patch the file `params` with the preset `name`.

    Returns: one row (key, old, new) per changed value; dotted keys that still differ from the mini preset although
        this preset does not set them.
    Raises:  UserError for an unknown preset or key; `params` is then untouched.
    """
    known = catalogue(presets)
    if name not in known:
        got = name or "none"
        raise UserError(
            f"expected one of the presets {', '.join(known)}, got {got}; see python -m stages.preset --list"
        )
    if not params.is_file():
        raise UserError(f"{params} does not exist; run the command in the root of the repository or pass --params")
    text = params.read_text(encoding="utf-8")
    source = mini_text(params, presets) if name == MINI else (presets / f"{name}.yaml").read_text(encoding="utf-8")
    overrides = parse(source, f"preset {name}")
    result, old = patch(text, overrides, f"preset {name}", params.name)
    if old:
        with atomic_file(params) as temporary:
            temporary.write_text(result, encoding="utf-8")
    now, wanted = dict(leaves(parse(result, params.name))), dict(leaves(overrides))
    rows = [{"key": key, "old": show(value), "new": show(now[key])} for key, value in old.items()]
    return rows, [] if name == MINI else leftovers(now, wanted, params, presets)


def leftovers(now: dict, wanted: dict, params: Path, presets: Path) -> list[str]:
    """Keys that neither hold their mini value nor are set by the preset; none where the mini values are unknown."""
    try:
        mini = dict(leaves(parse(mini_text(params, presets), f"preset {MINI}")))
    except UserError:
        return []
    return [key for key, value in now.items() if key in mini and key not in wanted and mini[key] != value]


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
) -> None:
    """Patch params.yaml with the values of a preset and show what changed; `mini` restores the committed values."""
    if list_all:
        for each, title in catalogue(presets).items():
            typer.echo(f"{each:10s} {title}")
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
