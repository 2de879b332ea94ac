import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthclip.errors import SynthClipError
from synthclip.evaluation.probes import draw_episodes, episode_accuracy, episode_interval, few_shot


def blobs(seed: int, classes: int, each: int, dim: int = 8) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(classes), each))
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return torch.from_numpy(centres[labels] + random.normal(size=(len(labels), dim))).float(), labels


def slow_accuracy(support: np.ndarray, query: np.ndarray) -> float:
    """SimpleShot for one episode: support [way, shot, D], query [way, queries, D]."""
    centre = support.reshape(-1, support.shape[-1]).mean(axis=0)
    means = []
    for images in support:
        unit = [(image - centre) / np.linalg.norm(image - centre) for image in images]
        means.append(np.mean(unit, axis=0))
    right = []
    for truth, images in enumerate(query):
        for image in images:
            unit_image = (image - centre) / np.linalg.norm(image - centre)
            distances = [np.linalg.norm(unit_image - mean) for mean in means]
            right.append(int(np.argmin(distances)) == truth)
    return float(np.mean(right))


def test_episode_by_episode_as_a_slow_reading() -> None:
    train, train_labels = blobs(1, classes=9, each=12)
    test, test_labels = blobs(2, classes=9, each=8)
    support, query = draw_episodes(train_labels, test_labels, episodes=300, seed=7)
    fast = episode_accuracy(train, test, support, query)
    slow = [
        slow_accuracy(train.double().numpy()[chosen], test.double().numpy()[asked])
        for chosen, asked in zip(support, query, strict=True)
    ]
    assert fast == pytest.approx(slow, abs=1e-12)
    assert few_shot(train, train_labels, test, test_labels, episodes=300, seed=7).value == pytest.approx(
        np.mean(slow)
    )


@settings(max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(3, 12), st.integers(4, 12)), min_size=8, max_size=12),
    seed=st.integers(0, 1000),
)
def test_draws_are_of_one_class_and_never_twice(sizes: list[tuple[int, int]], seed: int) -> None:
    able = [label for label, (shots, asked) in enumerate(sizes) if shots >= 5 and asked >= 6]
    train = np.repeat(np.arange(len(sizes)), [shots for shots, _ in sizes])
    test = np.repeat(np.arange(len(sizes)), [asked for _, asked in sizes])
    if len(able) < 5:
        with pytest.raises(SynthClipError, match="few-shot needs 5 classes"):
            draw_episodes(train, test, episodes=3, seed=seed)
        return
    support, query = draw_episodes(train, test, episodes=20, seed=seed)
    for labels, drawn in ((train, support), (test, query)):
        classes = labels[drawn]
        assert (classes == classes[..., :1]).all()
        assert all(len(np.unique(episode)) == episode.size for episode in drawn)
        assert all(len(set(episode)) == 5 for episode in classes[..., 0])
        assert set(classes.ravel().tolist()) <= set(able)


def test_every_image_is_as_likely_as_another() -> None:
    labels = np.repeat(np.arange(6), 10)
    support, query = draw_episodes(labels, labels, episodes=6000, seed=0)
    for drawn, each in ((support, 5), (query, 6)):
        counts = np.bincount(drawn.ravel(), minlength=60)
        expected = 6000 * 5 * each / 60
        assert np.abs(counts / expected - 1).max() < 0.06


def test_the_interval_is_of_other_classes_too() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        adds = random.normal(0, 0.03, 40)
        classes = random.random((1000, 40)).argpartition(4, axis=1)[:, :5]
        accuracy = random.binomial(30, np.clip(0.7 + adds[classes].sum(axis=1), 0, 1)) / 30
        low, high = episode_interval(accuracy, classes)
        inside += low <= 0.7 <= high
    assert 0.9 <= inside / 200 <= 0.99
    low, high = episode_interval(accuracy, np.tile(np.arange(5), (1000, 1)))
    assert high - low < 0.02
    assert episode_interval(np.array([0.5]), np.arange(5)[None]) == (0.0, 1.0)
