import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from synthclip.evaluation.metrics import (
    connected,
    mean_per_class,
    proportion,
    ranking,
    recall_chance,
    retrieval,
    wilson,
    zero_shot,
)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_is_scipys(n: int, share: float) -> None:
    hits = round(n * share)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(total=st.integers(1, 7), k=st.integers(1, 9), data=st.data())
def test_recall_chance_is_the_share_of_all_draws(total: int, k: int, data: st.DataObject) -> None:
    positives = data.draw(st.integers(1, total))
    draws = list(itertools.combinations(range(total), min(k, total)))
    share = sum(any(item < positives for item in draw) for draw in draws) / len(draws)
    assert recall_chance(np.array([positives]), total, k) == pytest.approx(share)


@settings(max_examples=40)
@given(texts=st.integers(2, 30), images=st.integers(2, 20), seed=st.integers(0, 10_000))
def test_recall_counts_any_positive_among_the_best(texts: int, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    queries = torch.from_numpy(random.normal(size=(texts, 6))).float()
    gallery = torch.from_numpy(random.normal(size=(images, 6))).float()
    belongs = random.random((texts, images)) < 0.2
    belongs[np.arange(texts), random.integers(0, images, texts)] = True
    measured = retrieval("image_retrieval", queries, gallery, np.argwhere(belongs), (1, 5))
    for figure, k in zip(measured, (1, 5), strict=True):
        hits = []
        for text in range(texts):
            scores = [(float(queries[text] @ gallery[image]), image) for image in range(images)]
            hits.append(any(belongs[text, image] for _, image in sorted(scores, reverse=True)[:k]))
        assert figure.items.tolist() == hits
        assert figure.value == pytest.approx(np.mean(hits))
        assert figure.metric == f"R@{k}"
        assert figure.interval[0] <= figure.value <= figure.interval[1]


def test_zero_shot_accuracies_by_hand() -> None:
    classifier = torch.eye(7)
    features = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 0, 0, 0, 0]])
    measured, ranked = zero_shot(features, np.array([0, 1, 1]), classifier)
    by_name = {figure.metric: figure for figure in measured}
    assert by_name["top1"].value == pytest.approx(2 / 3)
    assert by_name["top5"].value == pytest.approx(2 / 3)
    assert by_name["mean_per_class"].value == pytest.approx((1 + 0.5) / 2)
    assert by_name["top1"].chance == pytest.approx(1 / 7)
    assert by_name["top5"].chance == pytest.approx(5 / 7)
    assert by_name["mean_per_class"].chance == pytest.approx(1 / 7), "classes without an image can be guessed"
    assert ranked[0].tolist() == [0, 1, 2, 3, 4]


def test_no_top5_where_it_could_not_fail() -> None:
    measured, _ = zero_shot(torch.eye(5), np.arange(5), torch.eye(5))
    assert [figure.metric for figure in measured] == ["top1", "mean_per_class"]


@given(seed=st.integers(0, 10_000))
def test_mean_per_class_is_balanced_accuracy(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, 40)
    predicted = np.where(random.random(40) < 0.5, labels, random.integers(0, 5, 40))
    figure = mean_per_class("zero_shot", predicted == labels, labels)
    assert figure.value == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_mean_per_class_interval_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.2, 0.9, 20)
    labels = np.repeat(np.arange(20), 15)
    inside = 0
    for _ in range(300):
        low, high = mean_per_class("t", random.random(300) < truth[labels], labels).interval
        inside += low <= truth.mean() <= high
    assert inside >= 0.92 * 300


@pytest.mark.parametrize("each", [1, 2, 3])
def test_mean_per_class_interval_covers_the_truth_with_few_images_a_class(each: int) -> None:
    random = np.random.default_rng(each)
    labels = np.repeat(np.arange(100), each)
    inside = 0
    for _ in range(400):
        truth = random.uniform(0.2, 0.9, 100)
        low, high = mean_per_class("t", random.random(len(labels)) < truth[labels], labels).interval
        inside += low <= truth.mean() <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_images_of_one_caption_are_one_observation() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 4)
    inside = 0
    for _ in range(400):
        hits = np.repeat(random.random(80) < 0.6, 4)
        figure = proportion("t", "m", hits, 0.1, groups)
        inside += figure.interval[0] <= 0.6 <= figure.interval[1]
    assert 0.92 <= inside / 400 <= 0.98
    whole = proportion("t", "m", np.ones(320), 0.1, groups)
    assert whole.interval == wilson(80, 80)
    assert {type(end) for end in figure.interval} == {float}, (
        "a checkpoint holds the figures as plain numbers"
    )
    assert proportion("t", "m", hits, 0.1, np.arange(320)).interval == wilson(int(hits.sum()), 320)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
def test_queries_that_share_a_positive_are_one_group(pairs: list[tuple[int, int]]) -> None:
    groups = connected(np.array(pairs))
    expected = list(range(max(query for query, _ in pairs) + 1))
    for _ in expected:
        for query, item in pairs:
            for other, shared in pairs:
                if item == shared:
                    expected[query] = expected[other] = min(expected[query], expected[other])
    assert groups.tolist() == expected


def test_ranking_in_chunks_is_the_whole_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    features, against = torch.randn(50, 8), torch.randn(30, 8)
    whole = ranking(features, against, 4)
    monkeypatch.setattr("synthclip.evaluation.metrics._SCORES_PER_CHUNK", 90)
    assert (ranking(features, against, 4) == whole).all()
