"""The gradient of a batch is the same in one part or several, in one process or two."""

import multiprocessing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from synthclip.models.build import build_model
from synthclip.recipe import Recipe
from synthclip.recipe.training import LossName, ParallelName
from synthclip.training.loader import Batch
from synthclip.training.losses import Gradients, build_loss
from synthclip.training.parallel import Group, build_parallel

pytestmark = pytest.mark.slow

ALONE = Group()
LOSSES = ["clip", "siglip", "multi-positive"]


def batch(n: int) -> Batch:
    """Pairs, the half of them with a hard negative, and a teacher's features."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40000, (n, 8), generator=draw)
    tokens[:, -1] = 49407
    edited = torch.where(torch.arange(n)[:, None] % 2 == 0, tokens.flip(0), 0)
    return Batch(
        torch.randint(0, 256, (n, 32, 32, 3), generator=draw, dtype=torch.uint8),
        tokens,
        torch.randint(0, 6, (n,), generator=draw),
        torch.randint(-1, 5, (n, 2), generator=draw),
        edited,
        torch.randn(n, 2, 5, generator=draw),
    )


def part(whole: Batch, rows: slice) -> Batch:
    tables = (whole.images, whole.tokens, whole.text_ids, whole.concepts, whole.edited, whole.taught)
    return Batch(*(table[rows] for table in tables if table is not None))


def model(recipe: Recipe, name: str) -> nn.Module:
    torch.manual_seed(0)
    bias = -10.0 if name == "siglip" else None
    return build_model(recipe.model.model_copy(update={"logit_bias": bias}))


def gradients(
    clip: nn.Module,
    name: str,
    data: Batch,
    micro_batch: int | None,
    group: Group = ALONE,
    parallel: ParallelName = "ddp",
) -> dict[str, Tensor]:
    wrapped = build_parallel(clip, parallel, group, torch.device("cpu"), compile=False)
    loss = build_loss(cast(LossName, name), name != "multi-positive", teacher_weight=0.3)
    compute = Gradients(wrapped, loss, group, torch.device("cpu"), torch.float32, micro_batch)
    value = compute.backward(data, seed=0, grad_scale=torch.ones(()))
    grads = {key: p.grad for key, p in clip.named_parameters() if p.grad is not None}
    whole = {key: grad.full_tensor() if isinstance(grad, DTensor) else grad for key, grad in grads.items()}
    return {**whole, "loss": group.mean(value)}


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
@pytest.mark.parametrize("name", LOSSES)
def test_grad_cache_gives_the_gradient_of_the_whole_batch(
    tiny_recipe: Recipe, name: str, micro_batch: int
) -> None:
    whole, parts = model(tiny_recipe, name), model(tiny_recipe, name)
    expected = gradients(whole, name, batch(12), None)
    got = gradients(parts, name, batch(12), micro_batch)
    assert "logit_scale" in got
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def in_group(
    rank: int, folder: Path, recipe: Recipe, name: str, micro_batch: int | None, parallel: ParallelName
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    clip = model(recipe, name)
    mine = part(batch(12), slice(rank * 6, rank * 6 + 6))
    got = gradients(clip, name, mine, micro_batch, Group(rank, 2), parallel)
    torch.save(got, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("name", "micro_batch"), [("clip", None), ("clip", 2), ("siglip", 4), ("multi-positive", None)]
)
def test_two_processes_give_the_gradient_of_one(
    tmp_path: Path, tiny_recipe: Recipe, name: str, micro_batch: int | None, parallel: ParallelName
) -> None:
    alone = model(tiny_recipe, name)
    expected = gradients(alone, name, batch(12), None)
    context = multiprocessing.get_context("fork")
    rest: tuple[Any, ...] = (tmp_path, tiny_recipe, name, micro_batch, parallel)
    processes = [context.Process(target=in_group, args=(rank, *rest)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-4, atol=1e-5)
