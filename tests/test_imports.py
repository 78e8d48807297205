"""The first test: everything can be imported, also where torchvision's compiled operators do not load."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("vw2", "stages")
    for file in (ROOT / package).rglob("*.py")
    if file.name != "__init__.py"
)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, so that no other test has imported anything yet."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_heavy_libraries_import_after_torchvision_ops():
    code = """
import vw2.torchvision_ops
import lpips
import transformers
from transformers import T5EncoderModel, Dinov2Model
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, WanTransformer3DModel
import torchvision
print("imported")
"""
    done = _python(code)
    assert done.returncode == 0 and "imported" in done.stdout, done.stderr[-2000:]


def test_torchvision_ops_leaves_working_operators_alone():
    """Declaring twice, or after torchvision has been imported, must neither fail nor hide compiled operators."""
    code = """
import vw2.torchvision_ops as ops
import torchvision.extension
assert bool(ops.DECLARED) != torchvision.extension._has_ops(), ops.DECLARED
assert ops.declare() == []
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_console_and_params_do_not_load_torch():
    """--help, presets and parameter errors answer at once."""
    done = _python("import sys, stages.preset, vw2.provenance, vw2.closure; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr[-2000:]


def _needs_a_fresh_process(module: str) -> bool:
    """Does the module import a library that may import torchvision, without importing vw2.torchvision_ops itself?"""
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    libraries = re.search(r"^(from|import) (diffusers|transformers|peft|accelerate)\b", text, re.MULTILINE)
    return bool(libraries) and "import vw2.torchvision_ops" not in text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_modules_import_alone():
    """No module works only because another one imported torchvision_ops before it."""
    code = f"""
import os, sys, importlib, torch
for module in {[module for module in MODULES if _needs_a_fresh_process(module)]}:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{{module}} needs `import vw2.torchvision_ops` above its other imports")
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)
