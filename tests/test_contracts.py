"""Rules of the house that a machine can hold: DVC files, params.yaml, layers, safety.

Every dvc.yaml of the repository is checked; paths in it are relative to its folder or to the stage's `wdir`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from params_text import as_dvc_writes
from ruamel.yaml import YAML

from vw2.closure import direct_imports, import_closure
from vw2.models.ldm import LDMConfig
from vw2.params import GROUPS
from vw2.patch import leaves

ROOT = Path(__file__).resolve().parents[1]
ALLOWED_MISSING = {"vw2/console.py"}  # prints only: it cannot change a result
COMMAND = re.compile(r"python -m stages\.(\w+)( [\w./=,${}\[\] -]+)?")
PLOT_FORMATS = {".csv", ".tsv", ".json", ".yaml", ".yml", ".png", ".jpg", ".jpeg", ".gif", ".svg", ""}  # "": a folder
PARAMS = ROOT / "params.yaml"
CHECKED = "data/checked.json"  # of the stage check, committed and always the same; read by none
SOURCES = sorted(file for package in ("vw2", "stages") for file in (ROOT / package).rglob("*.py"))
FLOOR_1 = {"console", "files", "params", "patch", "scratch", "closure", "provenance", "torchvision_ops", "variant"}
FLOOR_1 |= {"guardrail", "streams"}


def _name(path: Path) -> str:
    """Path below the root, with slashes: ids and messages."""
    return path.relative_to(ROOT).as_posix()


def _dvc_files() -> list[Path]:
    """All dvc.yaml outside hidden folders (.venv, .vw2, .dvc/tmp)."""
    found = []
    for folder, below, files in os.walk(ROOT):
        below[:] = [each for each in below if not each.startswith(".") and each != "__pycache__"]
        found += [Path(folder) / name for name in files if name == "dvc.yaml"]
    return sorted(found)


@dataclass(frozen=True)
class Stage:
    """One stage of one dvc.yaml; `base` is the folder, relative to the root, that its paths start from."""

    file: Path
    name: str
    body: dict[str, Any]
    base: str

    def path(self, written: str) -> str:
        """A path as written -> relative to the root."""
        return posixpath.normpath(posixpath.join(self.base, written))

    def entries(self, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path as written, options) of the outs, metrics, plots or deps."""
        for kind in kinds:
            for entry in self.body.get(kind) or []:
                for path, options in entry.items() if isinstance(entry, dict) else [(entry, {})]:
                    yield path, options or {}

    def params(self) -> Iterator[tuple[str, str]]:
        """(parameter file relative to the root, dotted key) of the parameters listed; "" for a whole file."""
        for entry in self.body.get("params") or []:
            for file, keys in entry.items() if isinstance(entry, dict) else [("params.yaml", [entry])]:
                yield from ((self.path(file), key) for key in keys or [""])

    def module(self) -> Path:
        """The stage file that the command runs."""
        match = COMMAND.fullmatch(self.body["cmd"])
        assert match, f"{self.name}: expected a cmd `python -m stages.<name>`, got {self.body['cmd']!r}"
        return ROOT / "stages" / f"{match.group(1)}.py"


def _stages() -> list[Stage]:
    """All stages of all dvc.yaml files; foreach and matrix stages once."""
    found = []
    for file in _dvc_files():
        tree = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")) or {}
        for name, body in (tree.get("stages") or {}).items():
            body = body.get("do", body)
            base = posixpath.normpath(posixpath.join(_name(file.parent), body.get("wdir", ".")))
            found.append(Stage(file, name, body, base))
    return found


STAGES = _stages()
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{_name(stage.file.parent)}:{stage.name}")
each_source = pytest.mark.parametrize("source", SOURCES, ids=_name)


def _get(tree: Any, dotted: str) -> bool:
    """Is there a value under the dotted key?"""
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


# DVC files


@each_stage
def test_stage_is_described_and_runs_a_module(stage):
    assert len((stage.body.get("desc") or "").split()) >= 4, f"{stage.name} has no desc that says what it makes"
    assert stage.module().is_file(), f"{stage.name}: {_name(stage.module())} does not exist"
    assert stage.base == ".", f"{stage.name}: the working directory must be the root, else `python -m stages` fails"


@each_stage
def test_code_deps_are_the_import_closure(stage):
    deps = {stage.path(path) for path, _ in stage.entries("deps")}
    folders = {dep for dep in deps if dep in ("vw2", "stages") or (ROOT / dep).is_dir() and dep.startswith("vw2/")}
    assert not folders, f"{stage.name} depends on code folders {folders}; list the modules"
    listed = {dep for dep in deps if dep.endswith(".py")}
    needed = {_name(file) for file in import_closure(stage.module(), ROOT)} - ALLOWED_MISSING
    assert sorted(listed - needed) == [], f"{stage.name}: not imported, remove from deps"
    assert sorted(needed - listed) == [], f"{stage.name}: imported, add to deps"


@each_stage
def test_paths_are_relative_and_plain(stage):
    for path, _ in stage.entries("deps", "outs", "metrics", "plots"):
        assert not path.startswith(("/", "~", "./")) and "\\" not in path, f"{stage.name}: {path}"
        assert not stage.path(path).startswith(".."), f"{stage.name}: {path} lies outside the repository"
        assert path == posixpath.normpath(path), f"{stage.name}: write {posixpath.normpath(path)}, not {path}"
    assert "params.yaml" not in {path for path, _ in stage.entries("deps")}, f"{stage.name}: list parameters in params"


@each_stage
def test_params_exist_and_runtime_is_not_among_them(stage):
    for file, key in stage.params():
        assert key, f"{stage.name}: list groups or keys of {file}, not the whole file"
        tree = YAML(typ="safe", pure=True).load((ROOT / file).read_text(encoding="utf-8"))
        assert _get(tree, key), f"{stage.name}: {file} has no {key}"
        assert key.split(".")[0] != "runtime", f"{stage.name}: runtime cannot change results, so no stage lists it"


def _reads_of_params(code: ast.Module) -> set[str]:
    """Groups and dotted keys that a stage reads: tree["a"], tree.get("a"), leaf(tree, "a.b"), tree = load(...).

    A key with parts in braces (an f-string) counts as its group, a variable as all groups.
    """
    keys: list[ast.expr] = []
    for function in (node for node in ast.walk(code) if isinstance(node, ast.FunctionDef | ast.Module)):
        inside = [node for part in function.body for node in ast.walk(part) if not isinstance(part, ast.FunctionDef)]
        trees = {
            target.id
            for node in inside
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("parameters.load(")
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in inside:
            if isinstance(node, ast.Subscript):
                tree, found = node.value, node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "parameters.leaf":
                tree, found = node.args[:2]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                tree, found = node.func.value, node.args[0]
            else:
                continue
            keys += [found] if isinstance(tree, ast.Name) and tree.id in trees else []
    read = set()
    for key in keys:
        if isinstance(key, ast.Name):  # in a loop over groups
            read |= set(GROUPS) - {"runtime"}
            continue
        whole = isinstance(key, ast.Constant)
        start = key.values[0] if isinstance(key, ast.JoinedStr) else key
        assert isinstance(start, ast.Constant), f"{ast.unparse(key)}: write the key out, so that this test can see it"
        read.add(start.value if whole else start.value.split(".")[0])
    return read


@each_stage
def test_every_params_group_the_stage_reads_is_listed(stage):
    """What a stage reads of params.yaml and does not list gives stale results."""
    read = _reads_of_params(_parse(stage.module()))
    assert read or not stage.body.get("params"), (
        f"{stage.name}: no `x = parameters.load(...)` found; teach this test its form"
    )
    listed = {key for _, key in stage.params()}
    groups = {key.split(".")[0] for key in listed}
    known = lambda key: key in listed or key.split(".")[0] in listed or "." not in key and key in groups  # noqa: E731
    unlisted = {key for key in read if not known(key) and not key.startswith("runtime")}
    assert sorted(unlisted) == [], f"{stage.name} reads these, add them to its params"


@each_stage
def test_who_lists_some_keys_of_the_ldm_lists_all(stage):
    """A key that a stage trains by but does not list gives stale results, as no group is missing."""
    listed = {key for _, key in stage.params() if key.startswith("dldm.")}
    wanted = {f"dldm.{each.name}" for each in dataclasses.fields(LDMConfig)}
    assert not listed or listed == wanted, f"{stage.name}: {sorted(listed ^ wanted)}"


@each_stage
def test_outputs_are_cached_as_they_should(stage):
    for path, options in stage.entries("outs", "metrics", "plots"):
        assert not options.get("persist") or path == CHECKED, (
            f"{stage.name}: {path} persists: a changed parameter would resume the old run"
        )
    for path, options in stage.entries("metrics"):
        assert options.get("cache") is False, f"{stage.name}: metrics {path} needs cache: false, Git keeps it"
        assert path.endswith(".json"), f"{stage.name}: metrics {path} is not JSON"
        assert not path.startswith("metrics/runtime"), f"{stage.name}: {path} differs in every run, so it is no output"
    for path, options in stage.entries("outs"):
        frozen = stage.body.get("frozen") and stage.name.startswith("pretrain")
        # `dvc repro` leaves the plain LDM alone, so `dvc checkout` of a fresh clone finds its outs in no cache
        aside = stage.file.parent.name == "plain_ldm"
        assert not (aside and options.get("cache", True)), f"{stage.name}: out {path} needs cache: false"
        assert options.get("cache", True) or frozen or aside or path == CHECKED, (
            f"{stage.name}: out {path} without a cache ends the run cache"
        )
    for path, _ in stage.entries("plots"):
        assert Path(path).suffix in PLOT_FORMATS, f"{stage.name}: DVC cannot plot {path}"
    if stage.body.get("frozen"):
        assert stage.name.startswith("pretrain"), f"{stage.name}: only pretrained artefacts are frozen"


@pytest.mark.parametrize("file", _dvc_files(), ids=_name)
def test_top_level_plots_are_readable(file):
    tree = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")) or {}
    plots = tree.get("plots") or []
    for entry in plots if isinstance(plots, list) else [{name: body} for name, body in plots.items()]:
        for name, body in entry.items() if isinstance(entry, dict) else [(entry, {})]:
            y = (body or {}).get("y")
            for path in list(y) if isinstance(y, dict) else [name] if "/" in name else []:
                assert Path(path).suffix in PLOT_FORMATS, f"{_name(file)}: DVC cannot plot {path}"


def _constant_paths(code: ast.Module) -> set[str]:
    """Paths that module-level assignments build from Path("...") and earlier names with `/`."""
    known: dict[str, str] = {}
    found: set[str] = set()

    def value(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path" and len(node.args) == 1:
            return node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            left = value(node.left)
            return None if left is None else f"{left}/{node.right.value}"
        return None

    for node in code.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            items = node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [node.value]
            paths = [path for path in map(value, items) if path is not None]
            found.update(paths)
            if len(targets) == 1 and isinstance(targets[0], ast.Name) and len(items) == len(paths) == 1:
                known[targets[0].id] = paths[0]
            elif len(targets) == 1 and isinstance(targets[0], ast.Tuple) and len(targets[0].elts) == len(paths):
                known |= {t.id: p for t, p in zip(targets[0].elts, paths, strict=True) if isinstance(t, ast.Name)}
    return found


@each_stage
def test_path_constants_agree_with_dvc(stage):
    """A stage without arguments names its data deps and outs as module constants, and reads and writes no others."""
    if COMMAND.fullmatch(stage.body["cmd"]).group(2) or "matrix" in stage.body:
        pytest.skip("the paths depend on the arguments")
    constants = _constant_paths(_parse(stage.module()))
    written = {path for path, _ in stage.entries("deps", "outs", "plots") if not path.endswith(".py")}
    written -= {CHECKED} if stage.name != "check" else set()
    metrics = {path for path, _ in stage.entries("metrics")}

    def inside(path: str, folder: str) -> bool:
        return path == folder or path.startswith(f"{folder}/")

    named = set(constants)
    if ROOT / "vw2" / "variant.py" in import_closure(stage.module(), ROOT):  # it names the folders for these stages
        from vw2.variant import paths

        named |= {value.as_posix() for value in vars(paths("vw2")).values() if isinstance(value, Path)}
    absent = {path for path in written if not any(inside(c, path) or inside(path, c) for c in named)}
    assert sorted(absent) == [], f"{stage.name}: in dvc.yaml, but no constant of {_name(stage.module())}"
    places = {c for c in constants if c.startswith(("data/", "plots/", "metrics/", "plain_ldm/"))}
    unknown = {c for c in places if not any(inside(c, path) or inside(path, c) for path in written | metrics)}
    assert sorted(unknown) == [], f"{stage.name}: constants of {_name(stage.module())}, but not in dvc.yaml"


def test_no_output_is_made_twice():
    made: dict[str, str] = {}
    for stage in STAGES:
        for path, _ in stage.entries("outs", "metrics", "plots"):
            owner = f"{_name(stage.file)}:{stage.name}"
            assert made.setdefault(stage.path(path), owner) == owner, f"{path}: {made[stage.path(path)]} and {owner}"


def test_dvcignore_hides_caches():
    lines = (ROOT / ".dvcignore").read_text().splitlines()
    assert "__pycache__" in lines and "*.pyc" in lines


# params.yaml


def _params_lines() -> list[str]:
    return PARAMS.read_text(encoding="utf-8").splitlines() if PARAMS.is_file() else []


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line)


needs_params = pytest.mark.skipif(not PARAMS.is_file(), reason="params.yaml is not written yet")


@needs_params
def test_every_param_has_a_comment():
    """On its line, or on the line above."""
    tree, lines = YAML().load(PARAMS.read_text(encoding="utf-8")), _params_lines()
    bare = []
    for dotted, _ in leaves(tree):
        *groups, key = dotted.split(".")
        node = tree
        for group in groups:
            node = node[group]
        line = node.lc.key(key)[0]
        above = lines[line - 1].strip() if line else ""
        if not above.startswith("#") and _without_comment(lines[line]) == lines[line]:
            bare.append(dotted)
    assert bare == [], "these keys need a comment: unit, allowed values, source"


@needs_params
def test_params_are_in_block_style():
    """`dvc exp run -S` rewrites flow lists as block lists: a file in block style has quiet diffs."""

    def flow(node: Any, name: str) -> Iterator[str]:
        if isinstance(node, dict | list) and len(node):
            if node.fa.flow_style():
                yield name
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                yield from flow(value, f"{name}.{key}".lstrip("."))

    assert list(flow(YAML().load(PARAMS.read_text(encoding="utf-8")), "")) == []


def _set_by_dvc(text: str, folder: Path) -> list[str]:
    """Lines that `dvc exp run -S seed=...` changes beside the seed's; an explicit null, which it drops, not counted."""
    from dvc.utils.hydra import apply_overrides

    file = folder / "params.yaml"
    file.write_text(text, encoding="utf-8")
    apply_overrides(file, ["seed=987654321"])

    before, after = as_dvc_writes(text), as_dvc_writes(file.read_text(encoding="utf-8"))
    return [line for line in difflib.ndiff(before, after) if line[0] in "+-" and not re.match(r"..seed:", line)]


@needs_params
def test_params_survive_a_set_by_dvc(tmp_path):
    """`dvc exp run -S` moves indented lists and drops what stands between a block list and the next key.

    So lists are flush with their key, and the key after a list has its comment at the end of its line; a list cannot
    be the last key of a group.
    """
    changed = _set_by_dvc(PARAMS.read_text(encoding="utf-8"), tmp_path)
    assert changed == [], "write lists flush with their key, and after a list only a key with its comment on its line"


@pytest.mark.parametrize("file", [PARAMS, *sorted((ROOT / "presets").glob("*.yaml"))], ids=_name)
def test_floats_are_floats_for_every_parser(file):
    """PyYAML reads 1e-4 as a string: write 1.0e-4."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    bare = [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"(?:^|[\s:\[,])[-+]?(?:\d+[eE][-+]?\d+|\d*\.\d*[eE]\d+)(?=$|[\s,\]])", _without_comment(line))
    ]
    assert bare == []


# Layers


@pytest.mark.parametrize("file", [f for f in SOURCES if f.name == "__init__.py"], ids=_name)
def test_init_files_hold_no_code_of_ours(file):
    if file == ROOT / "stages" / "__init__.py":  # Ctrl-C before the libraries are loaded can be heard nowhere else
        imported = {name.name for node in ast.walk(ast.parse(file.read_text())) for name in getattr(node, "names", [])}
        assert imported == {"signal", "sys"}
    else:
        assert file.read_text() == "", "a stage would depend on everything that is imported here"


def _area(file: Path) -> str:
    """Which part of the house a file belongs to: stages, floor1, media, data, worlds, models, ... or rollout."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "stages":
        return "stages"
    return "floor1" if len(parts) == 2 and parts[1] in FLOOR_1 | {"__init__"} else parts[1]


LOWER = {"floor1", "media", "worlds", "data", "models"}
UPPER = ("evaluation", "training", "rollout")  # each may use those before it
BELOW = {
    "floor1": set(),
    "media": {"floor1"},
    "worlds": {"floor1", "media"},
    "data": {"floor1", "media", "worlds"},
    "models": {"floor1", "media"},
    **{area: LOWER | set(UPPER[:floor]) for floor, area in enumerate(UPPER)},
    "interop": LOWER,
}


@each_source
def test_arrows_point_down(source):
    area = _area(source)
    if area == "stages":
        return
    assert area in BELOW, f"{_name(source)}: {area} is no room of the house; add it here with what it may import"
    wrong = [_name(file) for file in direct_imports(source, ROOT) if _area(file) not in BELOW[area] | {area}]
    assert wrong == [], f"{_name(source)} may import {', '.join(sorted(BELOW[area] | {area}))} only"


@functools.cache
def _parse(source: Path) -> ast.Module:
    """Syntax tree of a source file, parsed once for all tests."""
    return ast.parse(source.read_text(encoding="utf-8"))


def _imported_libraries(source: Path) -> dict[str, int]:
    """Top-level names of the libraries imported anywhere in a file -> first line."""
    found: dict[str, int] = {}
    for node in ast.walk(_parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            key = "vw2.torchvision_ops" if name.startswith("vw2.torchvision_ops") else name.split(".")[0]
            found[key] = min(node.lineno, found.get(key, node.lineno))
    return found


@pytest.mark.parametrize("source", [s for s in SOURCES if _area(s) == "worlds"], ids=_name)
def test_worlds_know_nothing_of_learning(source):
    closure = import_closure(source, ROOT)
    learned = {
        _name(file) for file in closure if {"torch", "diffusers", "transformers"} & set(_imported_libraries(file))
    }
    assert learned == set()


@each_source
def test_torchvision_ops_come_first(source):
    """torchvision and what always imports it needs `import vw2.torchvision_ops  # noqa: F401` above it.

    Parts of diffusers and transformers do without torchvision: tests/test_imports.py tries those in a fresh process.
    """
    libraries = _imported_libraries(source)
    for library in {"torchvision", "lpips", "timm"} & set(libraries):
        before = libraries.get("vw2.torchvision_ops")
        assert before and before < libraries[library], f"{_name(source)}: {library} in line {libraries[library]}"


def test_no_circular_imports():
    graph = {file: direct_imports(file, ROOT) - {file} for file in SOURCES}
    done: set[Path] = set()

    def visit(file: Path, trail: tuple[Path, ...]) -> None:
        assert file not in trail, "circle: " + " -> ".join(map(_name, (*trail[trail.index(file) :], file)))
        if file not in done:
            for each in graph.get(file, ()):
                visit(each, (*trail, file))
            done.add(file)

    for file in SOURCES:
        visit(file, ())


@each_source
def test_only_params_reads_params_yaml(source):
    """Others get dataclasses; stages call params.load."""
    name, libraries = _name(source), _imported_libraries(source)
    if name not in ("vw2/params.py", "vw2/patch.py", "stages/deps.py"):  # the last one rewrites dvc.yaml
        assert not {"yaml", "ruamel", "omegaconf", "hydra", "dvc"} & set(libraries), f"{name} reads YAML by itself"
    if _area(source) not in ("stages", "floor1"):
        assert "params.yaml" not in {
            node.value for node in ast.walk(_parse(source)) if isinstance(node, ast.Constant)
        }, f"{name} names params.yaml"


# Safety


def _calls(source: Path) -> Iterator[ast.Call]:
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.Call):
            yield node


def _unsafe(source: Path) -> list[str]:
    """Calls that may run code from a data file, and imports that escape the import closure."""
    found = []
    for call in _calls(source):
        function = ast.unparse(call.func)
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        own = call.args and ast.unparse(call.args[0]).startswith("pickle.dumps(")  # a copy of our own object
        if re.fullmatch(r"(c?[pP]ickle|dill|cloudpickle|joblib|marshal)\.(loads?|Unpickler)", function) and not own:
            found.append(f"line {call.lineno}: {function}")
        if function == "torch.load" and options.get("weights_only") != "True":
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if options.get("allow_pickle") == "True":
            found.append(f"line {call.lineno}: allow_pickle=True")
        if "trust_remote_code" in options and options["trust_remote_code"] != "False":
            found.append(f"line {call.lineno}: trust_remote_code")
        if function in ("importlib.import_module", "import_module", "__import__", "eval", "exec"):
            found.append(f"line {call.lineno}: {function} hides a dependency")
    return found


@each_source
def test_nothing_unsafe_is_loaded(source):
    assert _unsafe(source) == []


# The contracts themselves: the checks above see what they should


@each_source
def test_public_functions_say_what_they_take(source):
    """Arguments are annotated, public functions and classes described, and `forward` says shapes."""
    code, missing = _parse(source), []
    for node in code.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            missing += [] if ast.get_docstring(node) else [f"{node.name} has no docstring"]
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            bare = [each.arg for each in node.args.args + node.args.kwonlyargs if each.annotation is None]
            missing += [f"{node.name}: {', '.join(bare)} without a type"] if bare else []
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef) and inner.name == "forward" and not ast.get_docstring(inner):
                missing.append(f"{node.name}.forward does not say shapes")
    assert missing == [], _name(source)


def test_checks_see_what_they_should(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle, torch, numpy as np\npickle.load(f)\ntorch.load(f)\ntorch.load(f, weights_only=True)\n"
        "np.load(f, allow_pickle=True)\nA.from_pretrained(x, trust_remote_code=True)\nmodel.eval()\n"
    )
    assert [line.split(":")[0] for line in _unsafe(bad)] == ["line 2", "line 3", "line 5", "line 6"]
    code = ast.parse('A = Path("data/clips")\nB = A / "index.parquet"\nC, D = Path("x/y"), B\nE = f()\n')
    assert _constant_paths(code) == {"data/clips", "data/clips/index.parquet", "x/y"}
    code = ast.parse(
        'v = parameters.load(p)\nv["a"], v.get("b"), parameters.leaf(v, "c.d", int), parameters.leaf(v, f"e.{k}", x)\n'
        'w = other(p)\nw["f"], w.get("g"), "v".get("h")\ndef f():\n    v["i"]\n'
    )
    assert _reads_of_params(code) == {"a", "b", "c.d", "e"}
    loop = ast.parse("v = parameters.load(p)\nfor group in x:\n    v[group]\n")
    assert _reads_of_params(loop) == set(GROUPS) - {"runtime"}
    wdir = Stage(ROOT / "plain_ldm" / "dvc.yaml", "x", {"deps": ["vw2/console.py", {"data/x": None}]}, ".")
    assert [wdir.path(path) for path, _ in wdir.entries("deps")] == ["vw2/console.py", "data/x"]
    outs = Stage(
        ROOT / "dvc.yaml", "x", {"outs": ["a", {"b": {"cache": False}}], "params": ["a.b", {"p.yaml": None}]}, "."
    )
    assert list(outs.entries("outs")) == [("a", {}), ("b", {"cache": False})]
    assert list(outs.params()) == [("params.yaml", "a.b"), ("p.yaml", "")]


def test_set_by_dvc_sees_lost_comments(tmp_path):
    good = "seed: 0\na:\n  b:\n  - 1.0e-4\n  c: null  # after a list\n  # d\n  d: off\n\n# group\ne: 1.0e-4\n"
    assert _set_by_dvc(good, tmp_path) == []
    assert _set_by_dvc(good.replace("- 1", "  - 1"), tmp_path) != []
    assert _set_by_dvc(good.replace("  c: null  # after a list\n", ""), tmp_path) != []


def test_import_closure_follows_every_form(tmp_path):
    for name, text in {
        "stages/__init__.py": "",
        "stages/a.py": "from vw2 import b\nfrom vw2.sub.c import thing\nimport os\n",
        "vw2/__init__.py": "",
        "vw2/b.py": "def f():\n    import vw2.late\n",
        "vw2/late.py": "from . import e\n",
        "vw2/e.py": "",
        "vw2/unused.py": "",
        "vw2/sub/__init__.py": "# not empty\n",
        "vw2/sub/c.py": "from .d import x\nfrom ..e import y\nthing = 1\n",
        "vw2/sub/d.py": "x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = [path.relative_to(tmp_path).as_posix() for path in import_closure(tmp_path / "stages/a.py", tmp_path)]
    modules = ["vw2/b.py", "vw2/e.py", "vw2/late.py", "vw2/sub/__init__.py", "vw2/sub/c.py", "vw2/sub/d.py"]
    assert names == ["stages/a.py", *modules]
    with pytest.raises(ValueError):
        import_closure(Path("/etc/hosts"), tmp_path)
