"""The paper's optimiser, against formulas written from its description."""

import math

import numpy as np
import pytest
import torch

from synthclip.models.build import build_model
from synthclip.recipe import Recipe
from synthclip.recipe.training import TrainingConfig
from synthclip.training.loop import build_optimizer, clamp_logit_scale, learning_rate

PAPER = TrainingConfig()


def test_the_defaults_are_the_papers() -> None:
    assert (PAPER.epochs, PAPER.batch_size, PAPER.lr, PAPER.weight_decay) == (40, 4096, 5e-4, 0.5)
    assert (PAPER.lr_start, PAPER.lr_end, PAPER.warmup_epochs) == (1e-6, 1e-5, 1)
    assert (PAPER.beta1, PAPER.beta2, PAPER.eps, PAPER.crop_scale) == (0.9, 0.98, 1e-8, (0.5, 1.0))
    assert TrainingConfig.model_validate("paper") == PAPER
    assert (PAPER.loss, PAPER.mask_false_negatives, PAPER.ema_decay, PAPER.text_masking) == (
        "clip",
        None,
        None,
        0,
    )


def test_every_iterations_learning_rate() -> None:
    per_epoch, epochs = 25, 40
    steps = per_epoch * epochs
    warmup = np.linspace(1e-6, 5e-4, per_epoch)
    rest = np.arange(steps - per_epoch)
    cosine = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + np.cos(np.pi * rest / len(rest)))
    expected = np.concatenate([warmup, cosine])
    got = [learning_rate(step, steps, per_epoch, PAPER) for step in range(steps)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_decay_spares_vectors_scalars_biases_and_norms(tiny_recipe: Recipe) -> None:
    model = build_model(tiny_recipe.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = build_optimizer(model, PAPER).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    for parameter in decayed["params"]:
        name = names[id(parameter)]
        assert parameter.ndim >= 2
        assert not any(part in name for part in ("bias", "ln", "bn"))
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert {"logit_scale", "ln_final.weight", "transformer.resblocks.0.attn.in_proj_bias"} <= spared_names
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_step_is_adamw_by_hand() -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, in float64, three steps."""
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 2)), rng.normal(size=(3, 3, 2))
    layer = torch.nn.Linear(2, 3, bias=False).double()
    layer.weight.data = torch.from_numpy(start.copy())
    optimizer = build_optimizer(layer, PAPER)
    expected, m, v = start.copy(), np.zeros((3, 2)), np.zeros((3, 2))
    for t, grad in enumerate(grads, 1):
        lr = learning_rate(t - 1, 100, 10, PAPER)
        optimizer.param_groups[0]["lr"] = lr
        layer.weight.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad**2
        update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        expected = expected - lr * 0.5 * expected - lr * update
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("before", "after"), [(-1.0, 0.0), (2.0, 2.0), (9.0, 4.6052)])
def test_the_inverse_temperature_stays_between_1_and_100(
    tiny_recipe: Recipe, before: float, after: float
) -> None:
    model = build_model(tiny_recipe.model)
    scale = model.get_parameter("logit_scale")
    assert scale.item() == pytest.approx(math.log(1 / 0.07))
    scale.data.fill_(before)
    clamp_logit_scale(model)
    assert scale.item() == pytest.approx(after)
