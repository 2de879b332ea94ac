"""The processes that train together: what they tell each other."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=2)
"""The other processes wait while the first evaluates; NCCL by itself gives up after ten minutes. A process
that dies is noticed by torchrun at once."""


@dataclass(frozen=True)
class Group:
    """This process among `world_size`. One process alone needs no torch.distributed."""

    rank: int = 0
    world_size: int = 1

    def gather(self, part: Tensor) -> Tensor:
        """The rows of all processes, in rank order; the gradient flows back to each."""
        if self.world_size == 1:
            return part
        gathered: Tensor = _Gather.apply(part, self)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says yes; all get the same answer."""
        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def union(self, mine: dict[str, str]) -> dict[str, str]:
        """The entries of all processes."""
        if self.world_size == 1:
            return mine
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, mine)
        return {name: value for part in parts for name, value in part.items()}


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = part.new_empty((len(part) * group.world_size, *part.shape[1:]))
        dist.all_gather(list(out.chunk(group.world_size)), part.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        part = grad.new_empty((len(grad) // ctx.group.world_size, *grad.shape[1:]))
        dist.reduce_scatter(part, list(grad.chunk(ctx.group.world_size)))
        return part, None


def join() -> tuple[Group, torch.device]:
    """Join the group that torchrun describes in the environment; a process started otherwise is alone.

    The device is the process's own GPU, or the CPU where there is none.
    """
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group(), device
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE, device_id=device if cuda else None)
    return Group(dist.get_rank(), dist.get_world_size()), device
