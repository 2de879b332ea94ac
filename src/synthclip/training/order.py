"""Which sample stands where: a pure function of the seed and the step.

So a run that goes on from step n, with any number of processes, sees what the undisturbed run sees; nothing
but the step has to be saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthclip.errors import SynthClipError
from synthclip.keys import seeds

I64 = NDArray[np.int64]
_ROUNDS = 6


def shuffled(positions: ArrayLike, n: int, *, stream: str, seed: int, pass_: int = 0) -> I64:
    """Where each position in [0, n) lands in a random permutation of [0, n), without holding the permutation.

    A Feistel network on the smallest power of four that holds n, walked until it lands in range (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Each `stream`, `seed` and `pass_` is a
    permutation of its own.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    landed = np.array(positions, dtype=np.uint64, ndmin=1)
    walking = np.ones(landed.shape, dtype=bool)
    while walking.any():
        left, right = landed[walking] >> shift, landed[walking] & mask
        for round_ in range(_ROUNDS):
            mixed = seeds(right, stream=stream, seed=seed, index=pass_ * _ROUNDS + round_)
            left, right = right, left ^ (mixed & mask)
        landed[walking] = (left << shift) | right
        walking = landed >= np.uint64(n)
    return landed.astype(np.int64).reshape(np.shape(positions))


@dataclass(frozen=True)
class Slots:
    """The samples of a batch: for each its source, its place in that source, and the pass over the source."""

    source_B: I64
    index_B: I64
    pass_B: I64

    def __getitem__(self, part: slice) -> "Slots":
        return Slots(self.source_B[part], self.index_B[part], self.pass_B[part])

    def __len__(self) -> int:
        return len(self.index_B)


class Order:
    """Batches over one or more sources, each shuffled as a whole anew for every pass.

    A batch holds a fixed number of samples of each source, in proportion to the weights. A source begins its
    next pass when what is left of it does not fill its part of a batch. An epoch is a pass over the first.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int) -> None:
        self._sizes, self._seed = tuple(sizes), seed
        self._parts = apportion(weights, batch_size)
        for number, (size, part) in enumerate(zip(self._sizes, self._parts, strict=True)):
            if size < part:
                raise SynthClipError(
                    f"training source {number} holds {size} samples, fewer than the {part} of each batch: "
                    "lower training.batch_size or make more images"
                )
            if part == 0:
                raise SynthClipError(
                    f"training source {number} gets no sample of a batch of {batch_size}: raise its weight"
                )
        self.batch_size = batch_size
        self.steps_per_epoch = self._sizes[0] // self._parts[0]

    def slots(self, step: int) -> Slots:
        """The batch of a step, its sources mixed."""
        source, index, passes = [], [], []
        for number, (size, part) in enumerate(zip(self._sizes, self._parts, strict=True)):
            pass_, turn = divmod(step, size // part)
            positions = np.arange(turn * part, (turn + 1) * part)
            index.append(shuffled(positions, size, stream=f"order-{number}", seed=self._seed, pass_=pass_))
            source.append(np.full(part, number, dtype=np.int64))
            passes.append(np.full(part, pass_, dtype=np.int64))
        place = shuffled(
            np.arange(self.batch_size), self.batch_size, stream="place", seed=self._seed, pass_=step
        )
        return Slots(*(np.concatenate(parts)[place] for parts in (source, index, passes)))


def apportion(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Split `total` in proportion to the weights, by the largest remainders."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    parts = np.floor(shares).astype(np.int64)
    for number in np.argsort(parts - shares, kind="stable")[: total - int(parts.sum())]:
        parts[number] += 1
    return tuple(int(part) for part in parts)
