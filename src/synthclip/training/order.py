"""Which sample stands where: a pure function of the seed and the step.

So a run that resumes at step n, with any number of processes, sees what the undisturbed run sees; nothing
but the step has to be saved.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthclip.errors import SynthClipError
from synthclip.keys import seeds

I64 = NDArray[np.int64]
_ROUNDS = 6
_TOGETHER = 8192
"""Samples whose places are computed at a time."""


def shuffled(positions: ArrayLike, n: int, *, stream: str, seed: int, pass_: ArrayLike = 0) -> I64:
    """Where each position in [0, n) lands in a random permutation of [0, n), without holding the permutation.

    A Feistel network on the smallest power of four that holds n, walked until it lands in range (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Each `stream`, `seed` and `pass_` (broadcast
    to the positions) is a permutation of its own.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    landed = np.array(positions, dtype=np.uint64, ndmin=1)
    passes = np.broadcast_to(np.asarray(pass_, dtype=np.int64), landed.shape)
    walking = np.ones(landed.shape, dtype=bool)
    while walking.any():
        left, right = landed[walking] >> shift, landed[walking] & mask
        for round_ in range(_ROUNDS):
            mixed = seeds(right, stream=stream, seed=seed, index=passes[walking] * _ROUNDS + round_)
            left, right = right, left ^ (mixed & mask)
        landed[walking] = (left << shift) | right
        walking = landed >= np.uint64(n)
    return landed.astype(np.int64).reshape(np.shape(positions))


@dataclass(frozen=True)
class BatchIndices:
    """The samples of a batch: for each its source, its place in that source, and the pass over the source."""

    source_B: I64
    index_B: I64
    pass_B: I64

    def __getitem__(self, part: slice) -> "BatchIndices":
        return BatchIndices(self.source_B[part], self.index_B[part], self.pass_B[part])

    def __len__(self) -> int:
        return len(self.index_B)


class Order:
    """Batches over one or more sources, each shuffled as a whole anew for every pass.

    A batch holds a fixed number of samples of each source, in proportion to the weights. A source begins its
    next pass when what is left of it does not fill its part of a batch. An epoch is a pass over the first.
    Samples of the sources `twins` come as pairs, 2 i and 2 i + 1 in one batch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        twins: Collection[int] = (),
    ) -> None:
        self._sizes, self._seed = tuple(sizes), seed
        self._parts = parts(weights, batch_size, twins)
        self._units = [1 + (number in twins) for number in range(len(self._sizes))]
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
        self._held: tuple[int, tuple[I64, ...]] = (-1, ())
        self.steps_per_epoch = self._sizes[0] // self._parts[0]

    def batch(self, step: int) -> BatchIndices:
        """The batch of a step, its sources mixed."""
        # Shuffling has a cost a call, which batches of some hundred samples would pay each step.
        together = max(1, _TOGETHER // self.batch_size)
        block, at = divmod(step, together)
        if self._held[0] != block:
            self._held = block, self._batches(np.arange(block * together, (block + 1) * together))
        return BatchIndices(*(part_SB[at] for part_SB in self._held[1]))

    def _batches(self, step_S: I64) -> tuple[I64, I64, I64]:
        """Source, place and pass of the samples of some steps, each [S, B]."""
        source, index, passes = [], [], []
        for number, (size, part) in enumerate(zip(self._sizes, self._parts, strict=True)):
            k = self._units[number]
            units, drawn = size // k, part // k
            pass_S1, turn_S1 = np.divmod(step_S[:, None], units // drawn)
            position_SU = turn_S1 * drawn + np.arange(drawn)
            stream = f"order-{number}"
            unit_SU = shuffled(position_SU, units, stream=stream, seed=self._seed, pass_=pass_S1)
            index_SP = (k * unit_SU[:, :, None] + np.arange(k)).reshape(len(step_S), part)
            index.append(index_SP)
            source.append(np.full(index_SP.shape, number, dtype=np.int64))
            passes.append(np.broadcast_to(pass_S1, index_SP.shape))
        B = self.batch_size
        place_SB = np.broadcast_to(np.arange(B), (len(step_S), B))
        place_SB = shuffled(place_SB, B, stream="place", seed=self._seed, pass_=step_S[:, None])
        mixed = [
            np.take_along_axis(np.concatenate(p, axis=1), place_SB, axis=1) for p in (source, index, passes)
        ]
        return mixed[0], mixed[1], mixed[2]


def parts(weights: Sequence[float], batch_size: int, twins: Collection[int] = ()) -> tuple[int, ...]:
    """How many samples of each source a batch holds: in proportion to the weights, of `twins` an even number.

    Raises SynthClipError where there is none to give or take the odd one.
    """
    found = list(apportion(weights, batch_size))
    others = [number for number in range(len(found)) if number not in twins]
    for number in twins:
        if found[number] % 2:
            if not others:
                raise SynthClipError(
                    f"training source {number} gets {found[number]} samples of each batch, and holds pairs: "
                    "make training.batch_size even"
                )
            most = max(others, key=found.__getitem__)
            found[number] += 1
            found[most] -= 1
    return tuple(found)


def apportion(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Split `total` in proportion to the weights, by the largest remainders."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    parts = np.floor(shares).astype(np.int64)
    for number in np.argsort(parts - shares, kind="stable")[: total - int(parts.sum())]:
        parts[number] += 1
    return tuple(int(part) for part in parts)
