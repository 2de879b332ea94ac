"""The processes that train together, and how the model lies over them: whole in each (DDP), or a part in
each (FSDP2). Either way its state is saved whole, so that a run resumes in any number of processes.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from synthclip.errors import SynthClipError
from synthclip.models import default_device
from synthclip.recipe.training import ParallelName

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_TIMEOUT = timedelta(hours=2)
"""The other processes wait while one fits a probe or writes to a slow disk; NCCL by itself gives up after ten
minutes. A process that dies is noticed by torchrun at once."""
Value = TypeVar("Value")


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
        return {name: value for part in self.all(mine) for name, value in part.items()}

    def all(self, mine: Value) -> list[Value]:
        """What each process gives, in rank order."""
        if self.world_size == 1:
            return [mine]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, mine)
        return parts

    def each(self, work: Callable[[], Value]) -> list[Value]:
        """What the work of each process gives, in rank order; a SynthClipError of one is raised in all, so
        that none waits for another that has given up."""
        mine: Value | SynthClipError
        try:
            mine = work()
        except SynthClipError as error:
            mine = error
        parts = self.all(mine)
        for part in parts:
            if isinstance(part, SynthClipError):
                raise part
        return cast(list[Value], parts)


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

    The device is the process's own GPU, or the CPU where there is none of its own.
    """
    device = default_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group(), device
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=_TIMEOUT, device_id=device)
    else:
        device = torch.device("cpu")  # an Apple GPU is one device for all processes
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    return Group(dist.get_rank(), dist.get_world_size()), device


def free_port() -> int:
    """One at which processes can meet."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


class Parallel(Protocol):
    """Runs the model, and shares the gradients of its processes."""

    @property
    def module(self) -> nn.Module:
        """What a step calls."""
        ...

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Around each backward pass of a step but the last."""
        ...

    def finish_backward(self) -> None:
        """After the last backward pass of a step: `.grad` is then the mean over the processes."""
        ...


def build_parallel(
    model: nn.Module, name: ParallelName, group: Group, device: torch.device, *, compile: bool
) -> Parallel:
    """Moves the model to the device. With FSDP its parameters become parts, so optimisers are built later."""
    if name == "fsdp" and group.world_size > 1:
        return Sharded(model, group, device, compile=compile)
    return Replicated(model, group, device, compile=compile)


class Replicated:
    """The whole model in each process, by DDP where there are several."""

    def __init__(self, model: nn.Module, group: Group, device: torch.device, *, compile: bool) -> None:
        model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = torch.compile(model) if compile else model  # type: ignore[assignment]
        if group.world_size > 1:
            self.module = nn.parallel.DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.module, nn.parallel.DistributedDataParallel):
            quiet: contextlib.AbstractContextManager[None] = self.module.no_sync()
            return quiet
        return contextlib.nullcontext()

    def finish_backward(self) -> None:
        pass


class Sharded:
    """A part of every parameter, its gradient and its optimiser state in each process, by FSDP2.

    Each block is put together for as long as it runs. Gradients are summed into their parts after every
    backward pass: holding them whole until the last would cost the memory that sharding saves.
    """

    def __init__(self, model: nn.Module, group: Group, device: torch.device, *, compile: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # with torch's compiler: 2 s
        from torch.distributed.fsdp import fully_shard

        self._group = group
        # FSDP refuses scalars: every process holds the inverse temperature and the bias.
        self._scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for scalar in self._scalars:
            scalar.data = scalar.data.to(device)
        mesh = init_device_mesh(device.type, (group.world_size,))
        # Block by block before the whole moves: no device ever holds all of the model.
        for block in _blocks(model):
            if compile:
                block.compile()
            fully_shard(block, mesh=mesh)
        self.module: nn.Module = model
        fully_shard(model, mesh=mesh, ignored_params=set(self._scalars))
        model.to(device)

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def finish_backward(self) -> None:
        for scalar in self._scalars:
            if scalar.grad is not None:
                dist.all_reduce(scalar.grad)
                scalar.grad /= self._group.world_size


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that repeat: elements, with children of their own, of the outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if next(block.children(), None) is not None)
        else:
            yield from _blocks(child)


def whole(state: dict[str, Any], group: Group, *, everywhere: bool = False) -> dict[str, Any]:
    """A tree of tensors, those that are sharded put together on the CPU of the first process, or of all.

    All must call it. Where a process does not get them, None stands in their place.
    """

    def together(value: Any) -> Any:
        if not _in_parts(value):
            return value
        full = value.full_tensor()
        return full.cpu() if everywhere or group.rank == 0 else None

    joined: dict[str, Any] = tree_map(together, state)
    return joined


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names, each process its parts."""
    for name, tensor in tensors.items():
        _fill(tensor, state[name])


@torch.no_grad()
def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the whole state of an optimiser over the same parameters, each process its parts."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def placed(value: Tensor, parameter: Tensor) -> Tensor:
        """Laid out in memory as its parameter is: fused optimisers walk both as one."""
        return _fill(torch.empty_like(parameter), value) if value.shape == parameter.shape else value

    of_parameters = {
        number: {name: placed(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": of_parameters})


def _fill(tensor: Tensor, value: Tensor) -> Tensor:
    if _in_parts(tensor):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(
            value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    return tensor.copy_(value)


def _in_parts(value: Any) -> TypeGuard["DTensor"]:
    """Whether it is a `DTensor`, of which a process that shards nothing has none, nor imports the class."""
    return hasattr(value, "full_tensor")
