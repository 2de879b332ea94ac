"""CLIP_benchmark on a machine without a GPU: its own code, with the few words replaced that stop it there.

    python benchmarks/evaluation_clip_benchmark.py eval --task linear_probe …

is its command `clip_benchmark eval --task linear_probe …`. Two things are replaced: its `accuracy`, which
NumPy 2.4 does not run, by one that means the same; and, in the linear probe, the demand for CUDA.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from synthclip.models import torchvision  # noqa: F401  makes it importable

# isort: split
from clip_benchmark import cli
from clip_benchmark.metrics import linear_probe, zeroshot_classification


class _Cpu(str):
    """The CPU's name, which a comparison takes for CUDA's."""

    def __eq__(self, other: object) -> bool:
        return other in ("cpu", "cuda")

    __hash__ = str.__hash__


def allow_cpu() -> None:
    """Replace what stops it; to be called once."""
    theirs = linear_probe.evaluate

    def accuracy(output: torch.Tensor, target: torch.Tensor, topk: Any = (1,)) -> list[float]:
        best = output.topk(max(topk), dim=1)[1] == target[:, None]
        return [float(best[:, :k].any(dim=1).double().mean()) for k in topk]

    def evaluate(*arguments: Any, device: str, **options: Any) -> Any:
        return theirs(*arguments, device=_Cpu("cpu"), **options)

    def here(self: Any, *_: Any, **__: Any) -> Any:
        return self

    zeroshot_classification.accuracy = linear_probe.accuracy = accuracy
    linear_probe.evaluate = evaluate
    torch.nn.Module.cuda = torch.Tensor.cuda = here  # type: ignore[method-assign]


def probe(
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]], *, workers: int = 0, epochs: int = 10
) -> dict[str, Any]:
    """Its probe on features at hand: `splits` holds features [N, D] and labels [N] of train, val and test."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        for name, (features, labels) in splits.items():
            torch.save(features, folder / f"features_{name}.pt")
            torch.save(labels, folder / f"targets_{name}.pt")
        identity = torch.nn.Identity()
        found: dict[str, Any] = linear_probe.evaluate(
            identity,
            None,
            None,
            -1,
            64,
            workers,
            0.1,
            epochs,
            "model",
            0,
            scratch,
            device="cpu",
            val_dataloader=(),
            amp=False,
        )
    return found


if __name__ == "__main__":
    allow_cpu()
    cli.main()
