"""What the figures of an evaluation are made of: recall, its chance level, and 95 % intervals.

Shapes: Q queries, G gallery items, N images, C classes, D feature dimensions. Features have unit length.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from synthclip.models import cuda_or_cpu

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]

_Z95 = 1.959963984540054
_PRIOR = 2
"""For how many groups the variance that a stratum's is shrunk to counts."""
_WITHIN = 0.9
"""The share of the variance around the common mean that is taken to lie within strata, where no stratum has
the two groups that it is measured by."""
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
    groups: NDArray[np.int64] | None = None
    """Which items are one observation, as images of one caption are [n]; None where each is its own."""

    @property
    def n(self) -> int:
        return len(self.items)


def proportion(
    task: str, metric: str, hits: NDArray[Any], chance: float, groups: NDArray[np.int64] | None = None
) -> Measurement:
    """The share of hits, with Wilson's interval. Items of one group count as one observation."""
    if groups is None or len(np.unique(groups)) == len(hits):
        interval, groups = wilson(int(hits.sum()), len(hits)), None
    else:
        interval = group_interval(hits, np.zeros(len(hits), np.int64), groups)
    values = hits.astype(np.float64)
    return Measurement(task, metric, float(values.mean()), interval, chance, values, groups)


def wilson(hits: float, n: float) -> Interval:
    """The 95 % score interval of a proportion (Wilson, 1927). It takes the n items as independent."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half if hits else 0.0), (middle + half if hits < n else 1.0)


def group_interval(hits: NDArray[Any], strata: NDArray[np.int64], groups: NDArray[np.int64]) -> Interval:
    """The 95 % interval of the mean over strata of each one's share of hits, where only groups of items are
    independent: images painted from one caption, say. A group lies in one stratum.

    It is Wilson's for as many independent items as have the variance that is found here (Korn and Graubard,
    1998). A stratum of few groups says little of its own variance, and one of a single group nothing: it is
    shrunk towards the mean of all strata, and that towards the variance of all items around the whole mean.
    """
    _, inverse = np.unique(np.stack([strata, groups]), axis=1, return_inverse=True)
    inverse = inverse.ravel()
    items_G = np.bincount(inverse)
    hits_G = np.bincount(inverse, weights=hits)
    stratum_G = np.empty(len(items_G), np.int64)
    stratum_G[inverse] = np.unique(strata, return_inverse=True)[1]
    groups_S, items_S = np.bincount(stratum_G), np.bincount(stratum_G, weights=items_G)
    shares_S = np.bincount(stratum_G, weights=hits_G) / items_S
    value = float(shares_S.mean())
    if not 0 < value < 1 or len(items_G) < 2:
        return wilson(value * len(items_G), len(items_G))
    scale_G = (groups_S / items_S)[stratum_G]
    around_all_G = ((hits_G - value * items_G) * scale_G) ** 2
    around_own_S = np.bincount(stratum_G, weights=((hits_G - shares_S[stratum_G] * items_G) * scale_G) ** 2)
    degrees_S = groups_S - 1
    within = _WITHIN if len(groups_S) > 1 else 1.0
    overall = within * around_all_G.sum() / (len(items_G) - 1)
    pooled = (around_own_S.sum() + _PRIOR * overall) / (degrees_S.sum() + _PRIOR)
    variance_S = (around_own_S + _PRIOR * pooled) / (degrees_S + _PRIOR)
    variance = float((variance_S / groups_S).sum()) / len(groups_S) ** 2
    # Student's quantile to the normal one, nearly, where a variance is measured within strata.
    student = 1 + (_Z95**2 + 1) / (4 * int(degrees_S.sum())) if degrees_S.any() else 1.0
    n = value * (1 - value) / (variance * student**2) if variance > 1e-12 else len(items_G)
    return wilson(value * n, n)


def composition(score_NIT: NDArray[Any]) -> dict[str, tuple[NDArray[np.bool_], float]]:
    """Which items are right, and the level of chance, by metric; from the similarity of each image of an
    item to each of its captions. With two images see Winoground (arXiv 2204.03162, Section 4.1), whose
    group score guessing reaches in one item of six; with one, the last caption is the wrong one. Equal
    scores are no hits."""
    if score_NIT.shape[1] == 1:
        right = score_NIT[:, 0, :-1].min(axis=1) > score_NIT[:, 0, -1]
        return {"text_score": (right, 1 / score_NIT.shape[2])}
    own_N2 = np.einsum("nii->ni", score_NIT)
    text = (own_N2 > np.stack([score_NIT[:, 0, 1], score_NIT[:, 1, 0]], axis=1)).all(axis=1)
    image = (own_N2 > np.stack([score_NIT[:, 1, 0], score_NIT[:, 0, 1]], axis=1)).all(axis=1)
    return {"text_score": (text, 1 / 4), "image_score": (image, 1 / 4), "group_score": (text & image, 1 / 6)}


@dataclass(frozen=True)
class OverRuns:
    """A mean over S trainings, which differ in their seeds, and the items that all of them judged."""

    mean: float
    variance: float
    """Of the mean, over other seeds and over other items."""
    degrees: float
    """Of freedom, for Student's t."""
    groups: int
    """Independent observations among the items."""

    @property
    def share_interval(self) -> Interval:
        """95 % of a mean that is a share: Wilson's for as many items as have the variance found here."""
        if not 0 < self.mean < 1 or self.variance < 1e-12:
            return wilson(self.mean * self.groups, self.groups)
        student = student_quantile(self.degrees) / _Z95
        n = self.mean * (1 - self.mean) / (self.variance * student**2)
        return wilson(self.mean * n, n)

    @property
    def interval(self) -> Interval:
        """95 % of a mean that is a difference."""
        half = student_quantile(self.degrees) * math.sqrt(self.variance) if self.variance > 1e-12 else 0.0
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided, of a mean of zero."""
        if self.variance < 1e-12:
            return float(abs(self.mean) < 1e-12)
        return 2 * student_tail(abs(self.mean) / math.sqrt(self.variance), self.degrees)


def over_runs(values_SN: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> OverRuns:
    """The mean of the values of S >= 2 trainings on the same N items, an estimate for other seeds and other
    items alike: the min F' of Clark (1973, "The language-as-fixed-effect fallacy", Journal of Verbal Learning
    and Verbal Behavior 12), which adds the variance of the mean over seeds to that over items. It counts what
    a seed does to single items twice, so that the interval is never too short for that. Degrees of freedom
    are Satterthwaite's. Items of one of `groups` int64 [N] are one observation.
    """
    runs, items = values_SN.shape
    group = np.arange(items) if groups is None else np.unique(groups, return_inverse=True)[1]
    size_G = np.bincount(group)
    mean = float(values_SN.mean())
    by_seed = float(values_SN.mean(axis=1).var(ddof=1)) / runs
    around_G = np.bincount(group, weights=values_SN.mean(axis=0)) - mean * size_G
    observations = len(size_G)
    by_item = float((around_G**2).sum()) / items**2 * observations / max(1, observations - 1)
    parts = ((by_seed, runs - 1), (by_item, max(1, observations - 1)))
    spread = sum(part**2 / degrees for part, degrees in parts)
    degrees = (by_seed + by_item) ** 2 / spread if spread else 1.0
    return OverRuns(mean, by_seed + by_item, degrees, observations)


def student_tail(t: float, degrees: float) -> float:
    """The probability of more than t >= 0 under Student's distribution; degrees >= 1 may be fractions.

    With t = sqrt(degrees) tan(a) the density is proportional to cos(a)^(degrees - 1).
    """
    nodes, weights = _gauss_legendre()
    below = math.atan(t / math.sqrt(degrees))
    end = min(math.pi / 2, below + 12 / math.sqrt(degrees))  # beyond it the density is nothing
    angles = below + (end - below) * (nodes + 1) / 2
    logs = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.pi) / 2
    density = np.exp(logs + (degrees - 1) * np.log(np.cos(angles)))
    return float((weights * density).sum() * (end - below) / 2)


@functools.cache
def _gauss_legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


@functools.lru_cache(1024)
def student_quantile(degrees: float) -> float:
    """What Student's t exceeds with a probability of 2.5 %."""
    low, high = 1.0, 13.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > 0.025 else (low, middle)
    return high


def normal_interval(mean: float, variance: float) -> Interval:
    """The 95 % interval of a share whose estimate has this variance, by the normal approximation."""
    half = _Z95 * math.sqrt(variance)
    return max(0.0, mean - half), min(1.0, mean + half)


def mean_per_class(
    task: str,
    hits: NDArray[np.bool_],
    labels: NDArray[np.int64],
    classes: int | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Measurement:
    """The mean over classes of each class's share of hits; classes without an item are left out.

    `classes` is how many there are to guess from: those with items unless given.
    """
    _, inverse = np.unique(labels, return_inverse=True)
    n = np.bincount(inverse)
    value = float((np.bincount(inverse, weights=hits) / n).mean())
    interval = group_interval(hits, labels, np.arange(len(hits)) if groups is None else groups)
    chance = 1 / (classes or len(n))
    return Measurement(task, "mean_per_class", value, interval, chance, hits.astype(np.float64), groups)


def ranking(features_ND: "Tensor", against_CD: "Tensor", k: int) -> NDArray[np.int64]:
    """For each row the k highest scoring of `against`, best first: int64 [N, min(k, C)]."""
    import torch

    k = min(k, len(against_CD))
    rows = max(1, _SCORES_PER_CHUNK // max(1, len(against_CD)))
    device = cuda_or_cpu()
    against_DC = against_CD.to(device).T
    best = [(chunk.to(device) @ against_DC).topk(k, dim=1).indices.cpu() for chunk in features_ND.split(rows)]
    return torch.cat(best).numpy() if best else np.empty((0, k), np.int64)


def zero_shot(
    features_ND: "Tensor",
    labels: NDArray[np.int64],
    classifier_CD: "Tensor",
    groups: NDArray[np.int64] | None = None,
) -> tuple[list[Measurement], NDArray[np.int64]]:
    """Top-1, top-5 (where there are more than five classes) and mean per class, and the classes ranked.

    `labels` int64 [N] index the C classes; images of one of `groups` [N] count as one observation. The
    ranking is int64 [N, min(5, C)], best first.
    """
    classes = len(classifier_CD)
    ranked = ranking(features_ND, classifier_CD, 5)
    right = ranked == labels[:, None]
    top1: NDArray[np.bool_] = right[:, 0]
    measured = [proportion("zero_shot", "top1", top1, 1 / classes, groups)]
    if classes > 5:
        measured.append(proportion("zero_shot", "top5", np.any(right, axis=1), 5 / classes, groups))
    measured.append(mean_per_class("zero_shot", top1, labels, classes, groups))
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
    positives and any of them counts, as CLIP_benchmark counts. Every query needs at least one. Queries that
    share a positive, such as the captions of one image, count as one observation in the interval.
    """
    total = len(gallery_GD)
    ranked = ranking(queries_QD, gallery_GD, max(ks))
    codes = np.arange(len(queries_QD), dtype=np.int64)[:, None] * total + ranked
    right = np.isin(codes, pairs[:, 0] * total + pairs[:, 1])
    positives, groups = np.bincount(pairs[:, 0], minlength=len(queries_QD)), connected(pairs)
    return [
        proportion(task, f"R@{k}", np.any(right[:, :k], axis=1), recall_chance(positives, total, k), groups)
        for k in ks
    ]


def connected(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of each query, int64 [Q]: equal for those that share a positive, directly or through others.
    `pairs` int64 [P, 2] as in `retrieval`."""
    query, item = pairs.T
    group = np.arange(query.max() + 1)
    while True:
        lowest = np.full(item.max() + 1, len(group))
        np.minimum.at(lowest, item, group[query])
        joined = group.copy()
        np.minimum.at(joined, query, lowest[item])
        if np.array_equal(joined, group):
            return group
        group = joined


def recall_chance(positives: NDArray[np.int64], total: int, k: int) -> float:
    """Expected recall at k of a random ranking: the mean over queries with m positives of
    1 - C(total - m, k) / C(total, k)."""
    drawn = np.arange(min(k, total))
    missed = np.clip(total - positives[:, None] - drawn, 0, None) / (total - drawn)
    return float(1 - missed.prod(axis=1).mean())
