"""Let torchvision be imported where its compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision/_C.so; `import torchvision` then ends in
"operator torchvision::nms does not exist", and with it lpips, transformers and the Cosmos classes of diffusers. Nobody
here calls these operators, so declaring their signatures is enough. Import this module before any of those.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _load_compiled() -> bool:
    """Load torchvision's own operators as torchvision would; False where they are absent or do not fit torch."""
    spec = importlib.util.find_spec("torchvision")  # finds the package without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("_C*.*"):
            if library.suffix in (".so", ".pyd", ".dylib"):
                try:
                    torch.ops.load_library(str(library))
                    return True
                except OSError:
                    continue
    return False


def _declared(name: str) -> bool:
    """Does the operator torchvision::<name> have a schema?"""
    return bool(torch._C._jit_get_schemas_for_operator(f"torchvision::{name}"))


def declare() -> list[str]:
    """Declare the operators that torchvision's Python code needs at import and that nothing has declared yet.

    Returns: names of the operators declared now; empty where the compiled ones load. Calling one of these raises
        NotImplementedError.
    """
    if _declared("nms") or _load_compiled():  # declaring first would make a working library fail to load
        return []
    missing = [name for name in SCHEMAS if not _declared(name)]
    for name in missing:
        _library.define(SCHEMAS[name])
    return missing


_library = torch.library.Library("torchvision", "FRAGMENT")  # the declarations live as long as this object
DECLARED = declare()
