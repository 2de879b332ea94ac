"""Each loss against a slow one written pair by pair, from its paper; in parts over processes too."""

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from synthclip.recipe.training import LossName
from synthclip.training.losses import Features, build_loss
from synthclip.training.parallel import Group


def batch(n: int, width: int, seed: int, texts: int) -> Features:
    draw = torch.Generator().manual_seed(seed)
    image = torch.nn.functional.normalize(torch.randn(n, width, generator=draw, dtype=torch.float64), dim=1)
    text = torch.nn.functional.normalize(torch.randn(n, width, generator=draw, dtype=torch.float64), dim=1)
    return Features(
        image.requires_grad_(),
        text.requires_grad_(),
        torch.tensor(7.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-3.0, dtype=torch.float64, requires_grad=True),
        torch.randint(0, texts, (n,), generator=draw),
        torch.randint(-1, 6, (n, 2), generator=draw),
        torch.nn.functional.normalize(torch.randn(n, width, generator=draw, dtype=torch.float64), dim=1),
        torch.rand(n, generator=draw) < 0.5,
    )


def oracle(name: str, x: Features, mask: bool) -> Tensor:
    """The mean over rows, with Python's loops and no trick."""
    n = len(x.image_BE)
    assert x.bias is not None
    assert x.edited_BE is not None
    assert x.is_edited_B is not None
    edited = [x.edited_BE[j] for j in range(n) if x.is_edited_B[j]]
    wrong = [[x.scale * (x.image_BE[i] * text).sum() for text in edited] for i in range(n)]
    similarity = [[x.scale * (x.image_BE[i] * x.text_BE[j]).sum() for j in range(n)] for i in range(n)]

    def negative(i: int, j: int) -> bool:
        shared = {int(c) for c in x.concept_BK[i]} & {int(c) for c in x.concept_BK[j]} - {-1}
        return not mask or not (shared or x.text_id_B[i] == x.text_id_B[j])

    def positives(i: int) -> list[int]:
        return [j for j in range(n) if x.text_id_B[i] == x.text_id_B[j]] if name == "multi-positive" else [i]

    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        if name == "siglip":
            for j in range(n):
                if i == j or negative(i, j):
                    sign = 1 if i == j else -1
                    total = total + torch.log1p(torch.exp(-sign * (similarity[i][j] + x.bias))) / n
            total = total + sum(torch.log1p(torch.exp(logit + x.bias)) for logit in wrong[i]) / n
            continue
        kept = [j for j in range(n) if j in positives(i) or negative(i, j)]
        by_text: list[Tensor] = []
        rows = (
            ([similarity[i][j] for j in range(n)], wrong[i]),
            ([similarity[j][i] for j in range(n)], by_text),
        )
        for logits, more in rows:
            zero = torch.zeros((), dtype=torch.float64)
            partition = sum((torch.exp(logit) for logit in [*(logits[j] for j in kept), *more]), start=zero)
            for j in positives(i):
                total = total - (logits[j] - torch.log(partition)) / len(positives(i)) / n / 2
    return total


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["clip", "siglip", "multi-positive"])
@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 9), width=st.integers(2, 5), seed=st.integers(0, 1000), texts=st.integers(2, 20))
def test_value_and_gradient_equal_the_oracles(
    name: str, mask: bool, n: int, width: int, seed: int, texts: int
) -> None:
    x = batch(n, width, seed, texts)
    inputs = [x.image_BE, x.text_BE, x.scale]
    loss = build_loss(cast(LossName, name), mask)(x, Group())
    expected = oracle(name, x, mask)
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def divergence(x: Features, taught: NDArray[np.float64], mask: bool) -> float:
    """KL(teacher || student) of both directions, by NumPy, row by row over the pairs that are not masked."""
    image, text = (one.detach().numpy() for one in (x.image_BE, x.text_BE))
    student, teacher = float(x.scale.detach()) * image @ text.T, taught[:, 0] @ taught[:, 1].T
    total, n = 0.0, len(image)
    for by_student, by_teacher in ((student, teacher), (student.T, teacher.T)):
        for i in range(n):
            concepts = [set(row.tolist()) - {-1} for row in x.concept_BK]
            kept = [
                j
                for j in range(n)
                if i == j or not mask or not (concepts[i] & concepts[j] or x.text_id_B[i] == x.text_id_B[j])
            ]
            p, q = (np.exp(one[i, kept] - one[i, kept].max()) for one in (by_teacher, by_student))
            total += float((p / p.sum() * np.log((p / p.sum()) / (q / q.sum()))).sum()) / n / 2
    return total


@pytest.mark.parametrize("mask", [False, True])
@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 1000), weight=st.floats(0.1, 1), texts=st.integers(2, 20))
def test_a_teachers_part_of_the_loss_equals_numpys(
    mask: bool, n: int, seed: int, weight: float, texts: int
) -> None:
    taught = np.random.default_rng(seed).normal(size=(n, 2, 6))
    x = replace(batch(n, 4, seed, texts), taught_B2E=torch.from_numpy(taught))
    pairs = build_loss("clip", mask)(x, Group()).item()
    loss = build_loss("clip", mask, weight)
    expected = (1 - weight) * pairs + weight * divergence(x, taught, mask)
    assert loss(x, Group()).item() == pytest.approx(expected, rel=1e-9)
    if n < 4:

        def of(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            return loss(replace(x, image_BE=image, text_BE=text, scale=scale), Group())

        assert torch.autograd.gradcheck(of, (x.image_BE, x.text_BE, x.scale))


def test_clip_at_chance_is_the_logarithm_of_the_batch() -> None:
    same = torch.nn.functional.normalize(torch.ones(6, 4), dim=1)
    x = Features(same, same, torch.tensor(10.0), None, torch.arange(6), torch.empty(6, 0, dtype=torch.long))
    assert build_loss("clip", False)(x, Group()).item() == pytest.approx(math.log(6))
