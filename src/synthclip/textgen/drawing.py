"""The arithmetic of balancing.

The rule is MetaCLIP's (arXiv 2309.16671, Algorithm 1), which the paper takes over: with `count[e]` captions
that match concept e, each match is drawn with probability `p[e] = t / max(count[e], t)`, and a caption is
kept if any of its matches is drawn, so with probability `1 - prod(1 - p[e])`.
"""

from collections.abc import Iterator, Sequence
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


def keep_probability(
    offsets: NDArray[np.int64], concept_ids: NDArray[np.int32], counts: NDArray[np.int64], t: float | None
) -> NDArray[np.float64]:
    """The chance of each caption to be kept, float64 [N], 0 where it matches nothing.

    `offsets` [N + 1] and `concept_ids` are matches in CSR form, `counts` [concepts] the captions that match
    each concept; with `t` None all that match anything are kept.
    """
    matched = np.diff(offsets) > 0
    if t is None or not len(concept_ids):
        return matched.astype(np.float64)
    dropped = 1.0 - t / np.maximum(counts, t)
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
        chance = keep_probability(self._sample.offsets, self._sample.concepts, self._counts, t)
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


class Unique:
    """Tells the first occurrence of an id from its repeats, in files that are read in the same order again.

    Holds 8 bytes an id while it is built, then only the ids that occur more than once.
    """

    def __init__(self, files: Iterator[U64]) -> None:
        ids = np.concatenate([np.empty(0, np.uint64), *files])
        self.rows = len(ids)
        ids.sort()
        again = ids[1:] == ids[:-1]
        self.duplicates = int(again.sum())
        self.different = self.rows - self.duplicates
        self._repeated = np.unique(ids[1:][again])
        self.restart()

    def restart(self) -> None:
        """Begin again with the first file."""
        self._seen = np.zeros(len(self._repeated), bool)

    def first(self, ids: U64) -> NDArray[np.bool_]:
        """Which rows of the next file hold an id for the first time, bool [N]."""
        fresh = np.ones(len(ids), bool)
        if not len(self._repeated):
            return fresh
        place = np.searchsorted(self._repeated, ids)
        place[place == len(self._repeated)] = 0
        rows = np.flatnonzero(self._repeated[place] == ids)
        where, first = np.unique(place[rows], return_index=True)
        fresh[rows] = False
        fresh[rows[first[~self._seen[where]]]] = True
        self._seen[where] = True
        return fresh
