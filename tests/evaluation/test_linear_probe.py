import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Sklearn

from synthclip.evaluation.probes import LogisticRegression, fit_probe, judge_probe

pytestmark = pytest.mark.slow


def features(seed: int, n: int, classes: int = 6, dim: int = 20) -> tuple[torch.Tensor, np.ndarray]:
    """Classes that overlap, on axes of very different variance and away from the origin."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    axes = np.geomspace(1, 0.05, dim)
    centres = np.random.default_rng(5).normal(size=(classes, dim)) * axes
    noise = random.normal(size=(n, dim)) * axes * 1.5
    return torch.from_numpy(centres[labels] + noise + 0.7).float(), labels


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_the_minimum_is_scikit_learns(l2: float) -> None:
    train, labels = features(0, 600)
    test, _ = features(1, 400)
    probe = LogisticRegression(train, labels, 6).fit(l2)
    theirs = Sklearn(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=20_000).fit(train.double(), labels)
    scores = (test @ probe.weight_DC + probe.bias_C).softmax(dim=1)
    assert scores.numpy() == pytest.approx(theirs.predict_proba(test.double()), abs=2e-3)


def test_a_fit_does_not_depend_on_where_it_began() -> None:
    train, labels = features(0, 600)
    warm = LogisticRegression(train, labels, 6)
    warm.fit(10.0)
    cold = LogisticRegression(train, labels, 6)
    ours, theirs = (
        (train @ probe.weight_DC + probe.bias_C).softmax(dim=1) for probe in (warm.fit(1e-3), cold.fit(1e-3))
    )
    assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-3)


def test_accuracy_is_near_the_best_that_any_strength_reaches() -> None:
    train, train_labels = features(0, 2000)
    test, test_labels = features(1, 2000)
    top1, per_class = judge_probe(fit_probe(train, train_labels, classes=6), test, test_labels)
    best = max(
        Sklearn(C=strength, max_iter=5000).fit(train, train_labels).score(test, test_labels)
        for strength in np.geomspace(1e-3, 1e4, 8)
    )
    assert top1.value > best - 0.02
    assert top1.interval[0] < top1.value < top1.interval[1]
    assert per_class.value == pytest.approx(top1.value, abs=0.02)


def test_the_strength_is_chosen_on_the_validation_rows_given() -> None:
    train, labels = features(0, 500)
    noise = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    joined, joined_labels = torch.cat([train, noise]), np.concatenate([labels, np.zeros(200, np.int64)])
    drawn = fit_probe(joined, joined_labels, classes=6)
    chosen = fit_probe(joined, joined_labels, classes=6, validation=np.arange(400, 500, dtype=np.int64))
    assert not torch.equal(chosen.weight_DC, drawn.weight_DC)
    assert judge_probe(chosen, train, labels)[0].n == 500


def test_a_class_that_training_lacks_is_never_right() -> None:
    train, labels = features(0, 400, classes=3)
    test, test_labels = features(1, 100, classes=3)
    top1, _ = judge_probe(fit_probe(train, labels, classes=4), test, np.full(100, 3))
    assert top1.value == 0
    assert len(test_labels) == 100
