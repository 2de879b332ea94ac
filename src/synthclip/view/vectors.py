"""Features of a run's images as they are stored, one file a shard, and the exact search in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.run.durable import sync
from synthclip.samples.files import replacing

_ERROR = 1e-3
"""By so much a product in float16 of vectors of unit length may be off: the query rounded, and the result."""
_MOST = 50_000
"""Images at most that are compared again in float32."""


def write(path: Path, features_ND: NDArray[np.float32]) -> None:
    """Store features as float16, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        with partial.open("wb") as handle:
            np.save(handle, features_ND.astype(np.float16))
        sync(partial)


def read(path: Path) -> NDArray[np.float16] | None:
    """Features [N, D], mapped; None where there are none, or the file is cut off."""
    try:
        found: Any = np.load(path, mmap_mode="c")  # torch takes only what can be written
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.float16 and found.ndim == 2 else None


def nearest(
    shards: Sequence[tuple[int, NDArray[np.float16]]], query_D: NDArray[np.float32], count: int
) -> list[tuple[int, float]]:
    """(id, cosine) of the images most similar to the query, the most similar first.

    Each shard is the id of its first image and features float16 [N, D] of unit length, NaN where an image has
    none. All are compared in float16; those that may be among the first are then compared in float32.
    """
    import torch

    if not shards:
        return []
    half_D = torch.from_numpy(query_D).half()
    coarse = torch.cat([torch.from_numpy(features) @ half_D for _, features in shards]).float().numpy()
    np.nan_to_num(coarse, copy=False, nan=-np.inf)
    count = min(count, len(coarse))
    least = np.partition(coarse, len(coarse) - count)[len(coarse) - count] - 2 * _ERROR
    candidates = np.flatnonzero((coarse >= least) & np.isfinite(coarse))
    if len(candidates) > _MOST:
        most = max(_MOST, count)
        candidates = np.sort(candidates[np.argsort(-coarse[candidates], kind="stable")[:most]])
    ends = np.cumsum([len(features) for _, features in shards])
    of_shard = np.searchsorted(ends, candidates, side="right")
    ids, scores = np.empty(len(candidates), np.int64), np.empty(len(candidates), np.float32)
    for shard in np.unique(of_shard):
        first, features = shards[shard]
        at = np.flatnonzero(of_shard == shard)
        rows = candidates[at] - (ends[shard] - len(features))
        ids[at], scores[at] = first + rows, features[rows].astype(np.float32) @ query_D
    order = np.lexsort((ids, -scores))[:count]
    return list(zip(ids[order].tolist(), scores[order].tolist(), strict=True))
