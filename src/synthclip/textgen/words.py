"""Texts cut into words, many at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BEYOND = 8
"""So many bytes stand behind the last word, so that eight can be read where it ends."""

_SPACE, _MARK = 1, 2


class Words(NamedTuple):
    """The words of N texts, each text's behind those of the one before."""

    data: NDArray[np.uint8]
    """All texts in UTF-8, and `BEYOND` bytes more."""
    starts_W: NDArray[np.int64]
    """Where each word begins in `data`."""
    ends_W: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """int64 [N + 1]: text i has the words from `offsets[i]` to `offsets[i + 1]`: at least one, as an empty
    text is one empty word."""


class Cut:
    """Which bytes part words: a space stands between two, a mark is a word of its own."""

    def __init__(self, spaces: bytes, marks: bytes) -> None:
        kinds = bytearray(256)
        for bytes_, kind in ((spaces, _SPACE), (marks, _MARK)):
            for byte in bytes_:
                kinds[byte] = kind
        self._kinds = bytes(kinds)

    def __call__(self, data: bytes, bounds: NDArray[np.int64]) -> Words:
        """Text i is `data[bounds[i]:bounds[i + 1]]`; `bounds` begins with 0 and ends with the last byte."""
        kinds = np.frombuffer(data.translate(self._kinds), np.uint8)
        at = np.flatnonzero(kinds)
        # A space ends a word and begins one; a mark does so before it and again behind it.
        times = kinds[at].astype(np.int64)
        ended = np.cumsum(times)
        before = np.concatenate([[0], ended])[np.searchsorted(at, bounds)]
        offsets = before + np.arange(len(bounds))
        ends, begins = np.repeat(at, times), np.repeat(at, times)
        ends[ended[times == _MARK] - 1] += 1
        begins[ended - 1] += 1
        word = np.arange(len(ends)) + np.repeat(np.arange(len(bounds) - 1), np.diff(before))
        starts_W, ends_W = np.empty((2, offsets[-1]), np.int64)
        starts_W[offsets[:-1]], starts_W[word + 1] = bounds[:-1], begins
        ends_W[offsets[1:] - 1], ends_W[word] = bounds[1:], ends
        return Words(np.frombuffer(data + bytes(BEYOND), np.uint8), starts_W, ends_W, offsets)


def utf8(texts: Sequence[str] | pa.Array) -> tuple[bytes, NDArray[np.int64]]:
    """(all texts one behind the other, where each begins and the last ends: int64 [N + 1]).

    Raises ValueError for a text with half a surrogate pair.
    """
    try:
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half a surrogate pair, which is no Unicode") from error
    array = array.cast(pa.large_string())
    _, bounds, data = array.buffers()
    if data is None or not len(array):
        return b"", np.zeros(len(array) + 1, np.int64)
    all_bounds = np.frombuffer(bounds, np.int64)[array.offset : array.offset + len(array) + 1]
    first, last = int(all_bounds[0]), int(all_bounds[-1])
    return data[first:last].to_pybytes(), all_bounds - first
