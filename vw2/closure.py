"""Which project files does a module import, directly or not?

DVC does not follow imports (treeverse/dvc issue 9195), so every stage lists its modules by hand; this walk is what the
contract test compares the lists with, and what goes into the fingerprint of a stage's scratch directory.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("vw2", "stages")


def imported_names(file: Path, root: Path) -> Iterator[str]:
    """Dotted names of project modules, or of attributes in them, that `file` imports anywhere (functions included)."""
    package = file.resolve().relative_to(root.resolve()).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from ..x import y` at level n starts n - 1 packages above the file's own.
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def _locate(name: str, root: Path) -> Iterator[Path]:
    """Files that importing the dotted `name` executes: non-empty package __init__.py files and the module itself."""
    path = root
    for part in name.split("."):
        path = path / part
        if path.is_dir():
            init = path / "__init__.py"
            # An empty __init__.py can change nothing, so nobody need list it.
            if init.is_file() and init.read_text(encoding="utf-8").strip():
                yield init
        else:
            if path.with_suffix(".py").is_file():
                yield path.with_suffix(".py")
            return  # what follows is an attribute of the module


def direct_imports(file: Path, root: Path) -> set[Path]:
    """Project files that `file` imports itself, as `root / ...` paths."""
    return {found for name in imported_names(file, root) for found in _locate(name, root)}


def import_closure(module_file: Path, root: Path = Path(".")) -> list[Path]:
    """All project files that `module_file` needs: itself and its transitive imports of vw2 and stages.

    Args:
        module_file: a Python file below `root`, for example Path(__file__) of a stage.
        root: the directory that holds the packages.
    Returns: sorted `root / ...` paths (relative ones for the default root); empty __init__.py files are left out.
    Raises: ValueError if `module_file` does not lie below `root`.
    """
    start = root / Path(module_file).resolve().relative_to(root.resolve())
    found, todo = set(), [start]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo.extend(direct_imports(file, root))
    return sorted(found)
