"""What is learned from frozen features: a linear probe, and few-shot episodes.

The probe is a multinomial logistic regression, its regularisation swept on validation as in Radford et al.
(2021), appendix A.3: decades first, then finer steps around the best.

Few-shot follows the paper's protocol, El Banani et al. (2023): 5,000 episodes of 5 classes, 5 images of each
from the training split to learn from and 6 from the test split to judge on, classified as SimpleShot does
(Wang et al., 2019): features centred by the mean of the episode's support, scaled to unit length, the nearest
mean. All episodes are taken at once.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Interval, Measurement, mean_per_class, normal_interval, proportion
from synthclip.models import cuda_or_cpu

if TYPE_CHECKING:
    from torch import Tensor

WAY, SHOT, QUERIES, EPISODES = 5, 5, 6, 5000

Indices = NDArray[np.int64]

_EPISODES_PER_CHUNK = 256

_DECADES = tuple(10.0**power for power in range(1, -7, -1))
"""Strengths of the sweep, strong to weak, for features of mean variance one."""
_VALIDATION_SHARE = 0.2
_WORSE = 3
"""Decades in a row, all worse than the best, that end the sweep: weaker strengths take longer to fit."""
_MAX_ITERATIONS, _HISTORY = 1000, 20
_LEAST_SLOPE, _LEAST_CHANGE, _LEAST_CURVATURE = 1e-5, 1e-8, 1e-8
_DESCENT, _ROUNDING, _LEAST_LENGTH = 1e-4, 1e-7, 1e-4
"""Of the descent that the slope foretells, what a step has to reach; float32's error of the loss."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features."""

    weight_DC: "Tensor"
    bias_C: "Tensor"

    def predict(self, features_ND: "Tensor") -> Indices:
        """The class of each row, int64 [N]."""
        device = self.weight_DC.device
        scores_NC = features_ND.to(device) @ self.weight_DC + self.bias_C
        return np.asarray(scores_NC.argmax(dim=1).cpu().numpy())


class LogisticRegression:
    """Finds, for any strength, the minimum of

        mean cross-entropy(features @ W + b, labels) + l2 / 2 * |W|^2

    with the bias left free: scikit-learn's `LogisticRegression(C=1 / (l2 * N))`. Prepared once for a set of
    features, then `fit` for each strength, each from where the last ended.

    L-BFGS runs in the features' principal axes, each weight scaled by the curvature along it where the fit
    begins. That changes no minimum, only how soon it is reached.
    """

    def __init__(self, features_ND: "Tensor", labels: Indices, classes: int) -> None:
        import torch

        device = cuda_or_cpu()
        features_ND = features_ND.to(device)
        self._mean_D = features_ND.mean(dim=0)
        centred_ND = features_ND - self._mean_D
        variance_D, self._axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
        one_1 = torch.ones(1, device=device)
        # The bias is the weight of a last feature that is always one.
        self._square_D1 = torch.cat([variance_D.clamp(min=0), one_1])[:, None]
        self._rotated_ND = torch.cat([centred_ND @ self._axes_DD, one_1.expand(len(centred_ND), 1)], dim=1)
        self._held_D1 = torch.ones_like(self._square_D1)
        self._held_D1[-1] = 0
        self._place_N2 = torch.arange(len(labels), device=device), torch.from_numpy(labels).to(device)
        self._weight_DC = torch.zeros(len(self._square_D1), classes, device=device)

    def fit(self, l2: float) -> Probe:
        """The minimum for one strength."""
        penalty_D1 = l2 * self._held_D1
        share_NC = (self._rotated_ND @ self._weight_DC).softmax(dim=1)
        curvature_C = (share_NC * (1 - share_NC)).mean(dim=0).clamp(min=_LEAST_CURVATURE)
        scale_DC = (self._square_D1 * curvature_C + penalty_D1).rsqrt()

        def loss(scaled_DC: "Tensor") -> "tuple[float, Tensor]":
            """The loss and its gradient."""
            weight_DC = scaled_DC * scale_DC
            share_NC = (self._rotated_ND @ weight_DC).log_softmax(dim=1)
            entropy = -share_NC[self._place_N2].mean()
            value = entropy + (penalty_D1 * weight_DC.square()).sum() / 2
            share_NC.exp_()[self._place_N2] -= 1
            slope_DC = self._rotated_ND.T @ share_NC / len(share_NC) + penalty_D1 * weight_DC
            return float(value), slope_DC * scale_DC

        self._weight_DC = _minimum(loss, self._weight_DC / scale_DC) * scale_DC
        weight_DC = self._axes_DD @ self._weight_DC[:-1]
        return Probe(weight_DC, self._weight_DC[-1] - self._mean_D @ weight_DC)


def _minimum(loss: "Callable[[Tensor], tuple[float, Tensor]]", start: "Tensor") -> "Tensor":
    """Where a convex function, given as its value and gradient, is least, by L-BFGS (Nocedal and Wright,
    2006, algorithm 7.4) with steps halved until they descend.

    torch's own imports its compiler, and its search of a step needs more values of the function.
    """
    point, (value, slope) = start, loss(start)
    moves: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)
    for _ in range(_MAX_ITERATIONS):
        if slope.abs().max() <= _LEAST_SLOPE:
            break
        ahead, shares = -slope, []
        for step, bend, product in reversed(moves):
            shares.append((step * ahead).sum() / product)
            ahead = ahead - shares[-1] * bend
        if moves:
            _, bend, product = moves[-1]
            ahead = ahead * (product / bend.square().sum())
        for (step, bend, product), share in zip(moves, reversed(shares), strict=True):
            ahead = ahead + step * (share - (bend * ahead).sum() / product)
        descent, length = float((ahead * slope).sum()), 1.0
        found, found_slope = loss(point + ahead)
        while found > value + _DESCENT * length * descent + _ROUNDING * abs(value) and length > _LEAST_LENGTH:
            length /= 2
            found, found_slope = loss(point + length * ahead)
        step, bend, change = length * ahead, found_slope - slope, abs(found - value)
        point, value, slope = point + step, found, found_slope
        if change < _LEAST_CHANGE or step.abs().max() < _LEAST_CHANGE:
            break
        if (product := (step * bend).sum()) > 0:
            moves.append((step, bend, product))
    return point


def fit_probe(
    train_ND: "Tensor",
    labels: Indices,
    *,
    classes: int,
    validation: Indices | None = None,
) -> Probe:
    """A probe fitted on all of the training split.

    `validation` int64 [V] names the rows on which the strength is chosen; without it a fifth of each class is
    drawn. The features are scaled by one number to mean variance one, so that the same strengths suit every
    model; the probe takes them as they are.
    """
    if validation is None:
        validation = _draw_validation(labels)
    scale = train_ND.var(dim=0).mean().rsqrt()
    train_ND = train_ND * scale
    l2 = choose_strength(train_ND, labels, validation, classes)
    fitted = LogisticRegression(train_ND, labels, classes).fit(l2)
    return Probe(fitted.weight_DC * scale.to(fitted.weight_DC.device), fitted.bias_C)


def judge_probe(probe: Probe, test_MD: "Tensor", labels: Indices) -> list[Measurement]:
    """Top-1 and mean per class on the test split."""
    right = probe.predict(test_MD) == labels
    chance = 1 / len(probe.bias_C)
    return [
        proportion("linear_probe", "top1", right, chance),
        mean_per_class("linear_probe", right, labels, len(probe.bias_C)),
    ]


def choose_strength(features_ND: "Tensor", labels: Indices, validation: Indices, classes: int) -> float:
    """The l2 whose fit on the other rows is most accurate on the validation rows; the stronger of equals."""
    fitted = np.setdiff1d(np.arange(len(labels)), validation)
    regression = LogisticRegression(features_ND[fitted], labels[fitted], classes)
    held_VD, truth = features_ND[validation], labels[validation]

    def right(l2: float) -> int:
        return int((regression.fit(l2).predict(held_VD) == truth).sum())

    scores: dict[float, int] = {}
    for l2 in _DECADES:
        scores[l2] = right(l2)
        if len(scores) > _WORSE and max(list(scores.values())[-_WORSE:]) < max(scores.values()):
            break
    for l2 in _between(_best(scores)):
        scores[l2] = right(l2)
    return _best(scores)


def _between(l2: float) -> Iterator[float]:
    """Thirds of a decade around a strength, strong to weak."""
    for third in (2, 1, -1, -2):
        yield l2 * 10 ** (third / 3)


def _best(scores: dict[float, int]) -> float:
    return max(scores, key=lambda l2: (scores[l2], l2))


def _draw_validation(labels: Indices) -> Indices:
    """A fifth of each class, at least one where it has two, and never all of it."""
    random = np.random.Generator(np.random.Philox(0))
    order = random.permutation(len(labels))
    drawn = []
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        drawn.append(mine[: min(max(1, round(len(mine) * _VALIDATION_SHARE)), len(mine) - 1)])
    return np.sort(np.concatenate(drawn))


def few_shot(
    support_ND: "Tensor",
    support_labels: Indices,
    query_MD: "Tensor",
    query_labels: Indices,
    *,
    episodes: int = EPISODES,
    seed: int = 0,
) -> Measurement:
    """Mean accuracy over the episodes. Its interval is that of other classes as well as of other episodes."""
    support, query = draw_episodes(support_labels, query_labels, episodes=episodes, seed=seed)
    accuracy = episode_accuracy(support_ND, query_MD, support, query)
    interval = episode_interval(accuracy, query_labels[query[:, :, 0]])
    return Measurement("few_shot", "top1", float(accuracy.mean()), interval, 1 / WAY, accuracy)


def episode_interval(accuracy: NDArray[np.float64], classes: Indices) -> Interval:
    """The 95 % interval of the mean accuracy [E] of episodes of these classes [E, way].

    Thousands of episodes share few classes, so the classes are the independent observations. What a class
    adds to its episodes is the mean of the episodes with it less the mean of all (Hájek's projection), scaled
    to what it would add beside classes drawn from endlessly many. Where there are only as many classes as an
    episode takes, that cannot be seen, and the interval is that of the draw of episodes.
    """
    episodes, way = classes.shape
    noise = float(accuracy.var(ddof=1)) if episodes > 1 else 1.0
    names, index = np.unique(classes, return_inverse=True)
    if len(names) <= way:
        return normal_interval(float(accuracy.mean()), noise / episodes)
    shown = np.bincount(index.ravel())
    means = np.bincount(index.ravel(), weights=np.repeat(accuracy, way)) / shown
    added = max(0.0, float(means.var(ddof=1) - (noise / shown).mean()))
    added *= ((len(names) - 1) / (len(names) - way)) ** 2
    return normal_interval(float(accuracy.mean()), noise / episodes + way**2 * added / len(names))


def draw_episodes(
    support_labels: Indices, query_labels: Indices, *, episodes: int, seed: int
) -> tuple[Indices, Indices]:
    """Indices of each episode's support [E, way, shot] and queries [E, way, queries], none drawn twice.

    Classes with too few images in either split are never drawn. Raises SynthClipError where fewer than
    five classes are left.
    """
    classes = max(support_labels.max(initial=-1), query_labels.max(initial=-1)) + 1
    in_support = np.bincount(support_labels, minlength=classes)
    in_query = np.bincount(query_labels, minlength=classes)
    able = np.flatnonzero((in_support >= SHOT) & (in_query >= QUERIES))
    if len(able) < WAY:
        raise SynthClipError(
            f"few-shot needs {WAY} classes with {SHOT} training and {QUERIES} test images each: "
            f"{len(able)} have them"
        )
    random = np.random.Generator(np.random.Philox(seed))
    chosen = able[random.random((episodes, len(able))).argpartition(WAY - 1, axis=1)[:, :WAY]]
    return (
        _draw_members(support_labels, in_support, chosen, SHOT, random),
        _draw_members(query_labels, in_query, chosen, QUERIES, random),
    )


def _draw_members(
    labels: Indices, sizes: Indices, chosen: Indices, count: int, random: np.random.Generator
) -> Indices:
    """`count` members of each chosen class, without replacement, by Floyd's algorithm (Bentley and Floyd,
    1987) on all episodes at once: [E, way, count]."""
    members = np.argsort(labels, kind="stable")
    starts = np.cumsum(sizes) - sizes
    size = sizes[chosen]
    drawn = np.empty((*chosen.shape, count), np.int64)
    for turn in range(count):
        last = size - count + turn
        candidate = (random.random(chosen.shape) * (last + 1)).astype(np.int64)
        taken = (drawn[..., :turn] == candidate[..., None]).any(axis=-1)
        drawn[..., turn] = np.where(taken, last, candidate)
    return np.asarray(members[starts[chosen][..., None] + drawn])


def episode_accuracy(
    support_ND: "Tensor", query_MD: "Tensor", support: Indices, query: Indices
) -> NDArray[np.float64]:
    """The accuracy of each episode, float64 [E]; `support` [E, way, shot] and `query` [E, way, queries]
    index the rows of the features."""
    import torch
    from torch.nn.functional import normalize

    device = cuda_or_cpu()
    support_ND, query_MD = support_ND.to(device), query_MD.to(device)
    truth_W1 = torch.arange(support.shape[1], device=device)[:, None]
    accuracy = []
    for start in range(0, len(support), _EPISODES_PER_CHUNK):
        chunk = slice(start, start + _EPISODES_PER_CHUNK)
        support_EWSD = support_ND[torch.from_numpy(support[chunk]).to(device)]
        query_EWQD = query_MD[torch.from_numpy(query[chunk]).to(device)]
        mean_E11D = support_EWSD.mean(dim=(1, 2), keepdim=True)
        means_EWD = normalize(support_EWSD - mean_E11D, dim=-1).mean(dim=2)
        query_EPD = normalize(query_EWQD - mean_E11D, dim=-1).flatten(1, 2)
        nearest_EP = torch.cdist(query_EPD, means_EWD).argmin(dim=-1)
        right_EWQ = nearest_EP.view(query_EWQD.shape[:3]) == truth_W1
        accuracy.append(right_EWQ.flatten(1).double().mean(dim=1).cpu())
    return torch.cat(accuracy).numpy()
