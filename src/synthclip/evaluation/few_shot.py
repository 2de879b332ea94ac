"""Few-shot classification on frozen features, all episodes at once.

The paper's protocol is El Banani et al. (2023): 5,000 episodes of 5 classes, 5 images of each from the
training split to learn from and 6 from the test split to judge on, classified as SimpleShot does (Wang et
al., 2019): features centred by the mean of the episode's support, scaled to unit length, the nearest mean.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Measurement, mean_interval

if TYPE_CHECKING:
    from torch import Tensor

WAY, SHOT, QUERIES, EPISODES = 5, 5, 6, 5000

Indices = NDArray[np.int64]

_EPISODES_PER_CHUNK = 256


def few_shot(
    support_ND: "Tensor",
    support_labels: Indices,
    query_MD: "Tensor",
    query_labels: Indices,
    *,
    episodes: int = EPISODES,
    seed: int = 0,
) -> Measurement:
    """Mean accuracy over the episodes; the interval is over episodes."""
    support, query = draw_episodes(support_labels, query_labels, episodes=episodes, seed=seed)
    accuracy = episode_accuracy(support_ND, query_MD, support, query)
    return Measurement("few_shot", "top1", float(accuracy.mean()), mean_interval(accuracy), 1 / WAY, accuracy)


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

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
