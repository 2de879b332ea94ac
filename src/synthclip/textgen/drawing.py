"""The arithmetic of balancing.

The rule is MetaCLIP's (arXiv 2309.16671, Algorithm 1), which the paper takes over: with `count[e]` captions
that match concept e, each match is drawn with probability `p[e] = t / max(count[e], t)`, and a caption is
kept if any of its matches is drawn, so with probability `1 - prod(1 - p[e])`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthclip import keys
from synthclip.keys import U64

_SAMPLE = 2_000_000  # captions from which t is solved for a target size
_STEPS = 60


class Matches(NamedTuple):
    """Captions [N] and their concepts in CSR form."""

    ids: U64
    offsets: NDArray[np.int64]
    """[N + 1]"""
    concepts: NDArray[np.int32]

    def rows(self, mask: NDArray[np.bool_]) -> "Matches":
        """The captions where `mask` [N] holds."""
        lengths = np.diff(self.offsets)
        offsets = np.concatenate([[0], np.cumsum(lengths[mask])])
        return Matches(self.ids[mask], offsets, self.concepts[np.repeat(mask, lengths)])

    @staticmethod
    def concatenated(parts: Sequence["Matches"]) -> "Matches":
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return Matches(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.concepts for part in parts]),
        )


def dropped(counts: NDArray[np.int64], t: float | None) -> NDArray[np.float64] | None:
    """The chance of a match of each concept not to be drawn, float64 [concepts]; None where t is None.

    `counts` [concepts] are the captions that match each concept.
    """
    return None if t is None else 1.0 - t / np.maximum(counts, t)


def keep_probability(
    offsets: NDArray[np.int64], concept_ids: NDArray[np.int32], dropped: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The chance of each caption to be kept, float64 [N], 0 where it matches nothing.

    `offsets` [N + 1] and `concept_ids` are matches in CSR form; where `dropped` is None all that match
    anything are kept.
    """
    matched = np.diff(offsets) > 0
    if dropped is None or not len(concept_ids):
        return matched.astype(np.float64)
    kept = np.zeros(len(matched))
    kept[matched] = 1.0 - np.multiply.reduceat(dropped[concept_ids], offsets[:-1][matched])
    return kept


def draws(ids: U64, seed: int) -> NDArray[np.float64]:
    """The number in [0, 1) that each caption's probability must exceed, float64 [N]."""
    return keys.uniform(ids, stream="balance", seed=seed)


def in_sample(ids: U64, captions: int) -> NDArray[np.bool_]:
    """Which of `captions` different captions t is solved from, bool [N]: all, where they are few."""
    return keys.uniform(ids, stream="sample", seed=0) < _SAMPLE / max(captions, 1)


class Curve:
    """How many captions each t selects."""

    def __init__(self, sample: Matches, counts: NDArray[np.int64], captions: int, seed: int) -> None:
        """`sample` is what `in_sample` picks of `captions` different ones."""
        self._sample, self._counts = sample, counts
        self._share = min(1.0, _SAMPLE / max(captions, 1))
        self._draws = draws(sample.ids, seed)

    def size(self, t: float | None) -> int:
        """Exact where the sample holds all captions, else an estimate."""
        chance = keep_probability(self._sample.offsets, self._sample.concepts, dropped(self._counts, t))
        return round(int((self._draws < chance).sum()) / self._share)

    def solve(self, target: int) -> float | None:
        """The t that selects `target` captions; None, which keeps all, where there are no more."""
        if target >= self.size(None):
            return None
        low, high = 0.0, float(self._counts.max(initial=1))
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.size(middle) < target else (low, middle)
        return high

    def points(self) -> list[tuple[float, int]]:
        """(t, size) for t = 1, 2, 5, 10, … until all are selected."""
        found: list[tuple[float, int]] = []
        most = self.size(None)
        for power in range(10):
            for step in (1, 2, 5):
                if found and found[-1][1] >= most:
                    return found
                found.append((float(step * 10**power), self.size(step * 10**power)))
        return found


def first_of_equal(files: Sequence[U64]) -> list[NDArray[np.bool_]]:
    """Which rows hold an id for the first time, bool [N] for each of `files`, uint64 [N], in their order."""
    ids = np.sort(np.concatenate([np.empty(0, np.uint64), *files]))
    repeated = np.unique(ids[1:][ids[1:] == ids[:-1]])
    del ids
    seen = np.zeros(len(repeated), bool)
    masks = []
    for file in files:
        fresh = np.ones(len(file), bool)
        if len(repeated):
            place = np.minimum(np.searchsorted(repeated, file), len(repeated) - 1)
            rows = np.flatnonzero(repeated[place] == file)
            where, first = np.unique(place[rows], return_index=True)
            fresh[rows] = False
            fresh[rows[first[~seen[where]]]] = True
            seen[where] = True
        masks.append(fresh)
    return masks
