"""Content ids and per-sample seeds.

Whatever is kept, drawn or named depends on content alone: never on a position, a worker or a clock. So the
result is the same for any number of shards, workers and machines.
"""

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]


def digest(*parts: str | bytes) -> str:
    """SHA-256 in hex over the parts, each framed by its length so that no two lists of parts collide."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.hexdigest()


def text_id(text: str) -> int:
    """The 64-bit id of a text: equal texts have equal ids."""
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def text_ids(texts: Iterable[str]) -> U64:
    """`text_id` of every text, uint64 [N]."""
    return np.fromiter((text_id(text) for text in texts), dtype=np.uint64)


def seeds(ids: ArrayLike, *, stream: str, seed: int, index: ArrayLike = 0) -> U64:
    """One uint64 seed for each id, broadcast against `index` (a variant, an attempt).

    `stream` names the use, so that two uses of one id draw independent numbers.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(ids, dtype=np.uint64) ^ np.uint64(text_id(f"{stream}\0{seed}")))
        return _mix(state + np.asarray(index, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def seed_of(text: str, *, stream: str, seed: int, index: int = 0) -> int:
    """The seed of one text: `seeds` of its id."""
    return int(seeds(text_id(text), stream=stream, seed=seed, index=index))


def uniform(ids: ArrayLike, *, stream: str, seed: int, index: ArrayLike = 0) -> NDArray[np.float64]:
    """One number in [0, 1) for each id, float64."""
    bits: Any = seeds(ids, stream=stream, seed=seed, index=index) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53, dtype=np.float64)


def image_key(caption_id: int, variant: int) -> str:
    """The name of an image in its shard: 16 hex digits of the caption id, then the variant."""
    return f"{caption_id:016x}_{variant:02d}"


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def quick_digest(path: Path) -> str:
    """A digest of a file that may be many GB: of its size, and its first and last MiB.

    Of a file of up to 64 MiB it covers every byte. Raises OSError for a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    size = path.stat().st_size
    if size <= 64 * 2**20:
        return sha256_of(path)
    with path.open("rb") as handle:
        state = hashlib.sha256(f"{size}:".encode() + handle.read(2**20))
        handle.seek(-(2**20), os.SEEK_END)
        state.update(handle.read())
    return state.hexdigest()


def _mix(state: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection that scrambles all 64 bits."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
