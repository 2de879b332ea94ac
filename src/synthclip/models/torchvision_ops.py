"""Makes `import torchvision` work beside a CPU build of torch.

The torchvision that registries serve for Linux is linked to CUDA. Beside a CPU torch its native library does
not load, and `import torchvision` then fails with "operator torchvision::nms does not exist": it registers
shape rules for operators that only that library defines. timm, open_clip and transformers import torchvision,
so they fail with it. Declaring the two operators, without a body, is enough for all that this package uses
(transforms, models); `torchvision.ops.nms` itself stays unavailable.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


@cache
def ensure() -> None:
    """Call before the first import of torchvision, timm, open_clip or transformers' CLIP. Idempotent."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(declared)


_KEPT: list[Any] = []
"""A declaration lasts as long as its library object."""
