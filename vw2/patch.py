"""Change values in a YAML text and nothing else: comments, order, block style and number formats stay.

ruamel's own round trip moves or loses comments when a list takes the place of a scalar or of another list (they hang on
the last item), so ruamel only says where a value stands and the lines are replaced; the result is parsed to check it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError

from vw2.console import UserError
from vw2.params import Located, where

Leaves = dict[str, Any]


class _Constructor(Located, RoundTripConstructor):
    """Values with their comments and places."""


# `key: value  # comment`: a scalar ends where " #" begins, unless it is quoted.
LINE = re.compile(r"""[^:]+:(?:\s+(?:"[^"]*"|'[^']*'|(?!#).*?))?(\s+#.*)?$""")


def leaves(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is not itself a non-empty mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def parse(text: str, name: str) -> Any:
    """Round-trip tree of a YAML text, {} if it is empty; UserError if it is not a mapping."""
    yaml = YAML()
    yaml.Constructor = _Constructor
    try:
        tree = yaml.load(text)
    except RecursionError:
        raise UserError(f"{name} is not valid YAML: it is nested too deeply; mend it") from None
    except YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {where(error)}; mend that line") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"expected {name} to hold a mapping of groups, got {tree!r}; write `group:` and keys below it")
    return {} if tree is None else tree


def _last_line(node: Any, line: int) -> int:
    """Last line that a value occupies, 0-based; `line` is where it begins."""
    if isinstance(node, list):
        return max([line, *(_last_line(item, node.lc.item(i)[0]) for i, item in enumerate(node))])
    if isinstance(node, dict):
        return max([line, *(_last_line(node[key], node.lc.value(key)[0]) for key in node)])
    return line


def _plain(value: Any) -> Any:
    """A ruamel value without its comments and flow style; scalars keep their format (1.0e-4)."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def _entry(key: str, value: Any, indent: int, comment: str) -> list[str]:
    """Lines of `key: value` in block style; lists flush with their key, as DVC writes them."""
    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 2**16
    yaml.dump({key: _plain(value)}, stream)
    first, *rest = stream.getvalue().rstrip("\n").split("\n")
    first = f"{key}: null" if value is None else first
    return [" " * indent + first + comment, *(" " * indent + line for line in rest)]


def _same(one: Any, other: Any) -> bool:
    """Equal, and not merely as 1 == True == 1.0 are."""
    kinds = [next(kind for kind in (bool, int, float, object) if isinstance(each, kind)) for each in (one, other)]
    return one == other and kinds[0] is kinds[1]


def patch(text: str, overrides: Any, source: str, target: str = "params.yaml") -> tuple[str, Leaves]:
    """Lay nested `overrides` on a YAML text, rewriting only the lines of the values that change.

    Args:    text: the YAML; overrides: nested mapping from `parse`; source, target: names of both, for messages.
    Returns: the new text; the old values of the changed leaves by dotted key.
    Raises:  UserError naming the first key that the text does not have, or that is a group in one and not in the other.
    """
    tree, lines, edits, old = parse(text, target), text.split("\n"), [], {}
    for dotted, value in leaves(overrides):
        path, node = dotted.split("."), tree
        for depth, key in enumerate(path):
            if not isinstance(node, dict) or key not in node:
                raise UserError(f"{source}: {'.'.join(path[: depth + 1])} is not a key of {target}; remove or mend it")
            parent, node = node, node[key]
        if isinstance(node, dict) and node:
            raise UserError(f"{source}: expected keys below {dotted}, which is a group of {target}, got {value!r}")
        if _same(node, value):
            continue
        old[dotted] = node
        line, indent = parent.lc.key(path[-1])
        match = LINE.match(lines[line])
        comment = (match.group(1) or "") if match else ""
        edits.append((line, _last_line(node, line), _entry(path[-1], value, indent, comment)))
    for first, last, new in sorted(edits, key=lambda edit: edit[0], reverse=True):  # from below, so that lines stay put
        lines[first : last + 1] = new
    result = "\n".join(lines)
    _check(parse(result, target), dict(leaves(tree)) | dict(leaves(overrides)), source, target)
    return result, old


def _check(tree: Any, expected: Leaves, source: str, target: str) -> None:
    """Refuse a patch that did not come out as meant (a value over several lines, an anchor)."""
    found = dict(leaves(tree))
    for key in found.keys() | expected.keys():
        if key not in found or key not in expected or found[key] != expected[key]:
            raise UserError(f"{source}: cannot set {key}; write it in {target} on one line or as a block list first")
