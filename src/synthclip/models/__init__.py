"""The CLIP that a recipe describes, and models of others, loaded safely.

timm, open_clip, transformers and diffusers import torchvision, which does not always import: the build that
registries serve for Linux is linked to CUDA, so beside a CPU build of torch its native library does not load,
and `import torchvision` fails with "operator torchvision::nms does not exist". All of this package therefore
imports these libraries from here (`from synthclip.models import open_clip`), where that is fixed first.
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NEED_TORCHVISION = ("diffusers", "open_clip", "timm", "torchvision", "transformers")


def __getattr__(name: str) -> Any:
    """One of the libraries that import torchvision."""
    if name not in _NEED_TORCHVISION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _declare_operators()
    _import_torchvision()
    if name in ("open_clip", "timm"):
        _import_timm()
    if name == "open_clip":
        _import_open_clip()
    return importlib.import_module(name)


def default_device() -> "torch.device":
    """The GPU of this process, NVIDIA's or Apple's, or the CPU where there is none."""
    import torch

    device = cuda_or_cpu()
    return torch.device("mps") if device.type == "cpu" and torch.backends.mps.is_available() else device


def cuda_or_cpu() -> "torch.device":
    """NVIDIA's GPU or the CPU, for what Apple's lacks: float64, and eigenvalues (`torch.linalg.eigh`)."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def _declare_operators() -> Any:
    """Make `import torchvision` work beside any build of torch.

    It registers shape rules for two operators that only its native library defines. Declaring them, without
    a body, is enough for its transforms and models; `torchvision.ops.nms` itself stays unavailable. Returns
    what has to be kept: a declaration lasts as long as its library object.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return None
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return None
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return declared


@cache
def _import_torchvision() -> None:
    """Import torchvision, but not torch's compiler with it, which takes more than a second: for the one
    function that torchvision asks of it there is one that imports the compiler when it is called.
    """
    compiler = "torch._dynamo.utils"
    if compiler in sys.modules or importlib.util.find_spec("torchvision") is None:
        return

    def is_compile_supported(device_type: str) -> bool:
        return bool(importlib.import_module(compiler).is_compile_supported(device_type))

    sys.modules[compiler] = stand_in = ModuleType(compiler)
    stand_in.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    try:
        importlib.import_module("torchvision")
    finally:
        del sys.modules[compiler]


@cache
def _import_timm() -> None:
    """Import timm, whose functions that are not to be compiled are marked so in torch's own way that imports
    the compiler when they are called."""
    import torch
    from torch._compile import _disable_dynamo as when_called

    def disable(fn: Any = None, recursive: Any = True, *, reason: Any = None) -> Any:
        return when_called(fn, recursive)

    at_once, torch.compiler.disable = torch.compiler.disable, disable
    try:
        importlib.import_module("timm")
    finally:
        torch.compiler.disable = at_once


@cache
def _import_open_clip() -> None:
    """Import open_clip, but not transformers with it, which takes a second: the first text tower that is one
    of its models does so."""
    if "transformers" in sys.modules or "open_clip" in sys.modules:
        return
    sys.modules["transformers"] = None  # type: ignore[assignment]  # as where it is not installed
    try:
        importlib.import_module("open_clip")
    finally:
        del sys.modules["transformers"]
    module = importlib.import_module("open_clip.hf_model")
    build = module.HFTextEncoder.__init__

    def build_with_transformers(tower: Any, *args: Any, **options: Any) -> None:
        if module.transformers is None:
            importlib.reload(module)  # into the names in which this very class looks for transformers
        build(tower, *args, **options)

    module.HFTextEncoder.__init__ = build_with_transformers
