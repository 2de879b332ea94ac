"""What the figures of an evaluation are made of: recall, its chance level, and 95 % intervals.

Shapes: Q queries, G gallery items, N images, C classes, D feature dimensions. Features have unit length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]

_Z95 = 1.959963984540054
_SCORES_PER_CHUNK = 1 << 25
"""Bounds the matrix of scores held at once: 128 MiB in float32."""


@dataclass(frozen=True)
class Measurement:
    """One figure of an evaluation, as a fraction in [0, 1]."""

    task: str
    metric: str
    value: float
    interval: Interval
    """95 %."""
    chance: float
    """What guessing reaches on the same items."""
    items: NDArray[np.float64]
    """What the figure was taken over [n]: 1 for a hit and 0 for a miss, or an episode's accuracy."""

    @property
    def n(self) -> int:
        return len(self.items)


def proportion(task: str, metric: str, hits: NDArray[Any], chance: float) -> Measurement:
    """The share of hits, with Wilson's interval."""
    interval = wilson(int(hits.sum()), len(hits))
    return Measurement(task, metric, float(hits.mean()), interval, chance, hits.astype(np.float64))


def wilson(hits: int, n: int) -> Interval:
    """The 95 % score interval of a proportion (Wilson, 1927). It takes the n items as independent."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half if hits else 0.0), (middle + half if hits < n else 1.0)


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """The 95 % interval of a mean by the normal approximation, for many values such as episodes."""
    half = _Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    mean = float(values.mean())
    return max(0.0, mean - half), min(1.0, mean + half)


def mean_per_class(task: str, hits: NDArray[np.bool_], labels: NDArray[np.int64]) -> Measurement:
    """The mean over classes of each class's share of hits; classes without an item are left out.

    The interval adds the variances of the classes' shares, each with one hit and one miss added (Agresti and
    Caffo, 2000), so that a class of few items is never taken as certain.
    """
    _, inverse = np.unique(labels, return_inverse=True)
    n = np.bincount(inverse)
    right = np.bincount(inverse, weights=hits)
    value = float((right / n).mean())
    smoothed = (right + 1) / (n + 2)
    half = _Z95 * math.sqrt(float((smoothed * (1 - smoothed) / (n + 2)).sum())) / len(n)
    interval = max(0.0, value - half), min(1.0, value + half)
    return Measurement(task, "mean_per_class", value, interval, 1 / len(n), hits.astype(np.float64))


def ranking(features_ND: "Tensor", against_CD: "Tensor", k: int) -> NDArray[np.int64]:
    """For each row the k highest scoring of `against`, best first: int64 [N, min(k, C)]."""
    import torch

    k = min(k, len(against_CD))
    rows = max(1, _SCORES_PER_CHUNK // max(1, len(against_CD)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    against_DC = against_CD.to(device).T
    best = [(chunk.to(device) @ against_DC).topk(k, dim=1).indices.cpu() for chunk in features_ND.split(rows)]
    return torch.cat(best).numpy() if best else np.empty((0, k), np.int64)


def zero_shot(
    features_ND: "Tensor", labels: NDArray[np.int64], classifier_CD: "Tensor"
) -> tuple[list[Measurement], NDArray[np.int64]]:
    """Top-1, top-5 (where there are more than five classes) and mean per class, and the classes ranked.

    `labels` int64 [N] index the C classes. The ranking is int64 [N, min(5, C)], best first.
    """
    classes = len(classifier_CD)
    ranked = ranking(features_ND, classifier_CD, 5)
    right = ranked == labels[:, None]
    top1: NDArray[np.bool_] = right[:, 0]
    measured = [proportion("zero_shot", "top1", top1, 1 / classes)]
    if classes > 5:
        measured.append(proportion("zero_shot", "top5", np.any(right, axis=1), 5 / classes))
    measured.append(mean_per_class("zero_shot", top1, labels))
    return measured, ranked


def retrieval(
    task: str,
    queries_QD: "Tensor",
    gallery_GD: "Tensor",
    pairs: NDArray[np.int64],
    ks: Sequence[int],
) -> list[Measurement]:
    """Recall at each k: the share of queries with any of their positives among the k best of the gallery.

    `pairs` int64 [P, 2] holds (query, gallery) indices of what belongs together; a query may have several
    positives and any of them counts, as CLIP_benchmark counts. Every query needs at least one.
    """
    total = len(gallery_GD)
    ranked = ranking(queries_QD, gallery_GD, max(ks))
    codes = np.arange(len(queries_QD), dtype=np.int64)[:, None] * total + ranked
    right = np.isin(codes, pairs[:, 0] * total + pairs[:, 1])
    positives = np.bincount(pairs[:, 0], minlength=len(queries_QD))
    return [
        proportion(task, f"R@{k}", np.any(right[:, :k], axis=1), recall_chance(positives, total, k))
        for k in ks
    ]


def recall_chance(positives: NDArray[np.int64], total: int, k: int) -> float:
    """Expected recall at k of a random ranking: the mean over queries with m positives of
    1 - C(total - m, k) / C(total, k)."""
    drawn = np.arange(min(k, total))
    missed = np.clip(total - positives[:, None] - drawn, 0, None) / (total - drawn)
    return float(1 - missed.prod(axis=1).mean())
