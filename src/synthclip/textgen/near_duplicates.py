"""Captions that share nearly all their words with another: MinHash finds the candidates, the words decide.

Two captions are near duplicates where the Jaccard similarity of their sets of lower-cased words reaches a
threshold; the one with the smaller id stays. Comparing all pairs of 30 million captions is out of reach, so
MinHash with banding (Broder, 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3)
proposes pairs: each caption has a short key for every band, and only captions with the same key are compared.
Captions are short, so that many proposed pairs are not near: every pair is checked by its words.

Captions are taken in the order of their ids, which are hashes of their texts, so that the result does not
depend on how they are spread over files. Only ids, lengths and one band at a time are in memory; the keys of
the bands and the hashes of the words wait in files.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthclip import keys
from synthclip.errors import needs_extra
from synthclip.keys import U64

_PERMUTATIONS = 64
_MIN_RECALL = 0.95
"""Share found of the pairs whose similarity is just the threshold; of more similar ones it is larger, of
equal sets of words it is 1."""
_MAX_LEADERS = 32
"""Captions of one bucket that the others are compared with. Without a bound, a bucket of a million captions
that share a key but few words would take a million million comparisons."""
_PAIRS_AT_ONCE = 262_144
_ROWS_AT_ONCE = 8_192  # whose digests fit in the cache

U32 = NDArray[np.uint32]


class Sketch(NamedTuple):
    """What is held of captions [N] to compare them by."""

    lengths: NDArray[np.int64]
    """Different words of each, [N]."""
    words: U32
    """Hashes of the words, caption after caption."""
    bands: U32
    """[bands, N]: captions with equal entries in a row are candidates."""


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows of each) of the MinHash digest: as many rows as the recall at `threshold` allows.

    A pair of similarity s is proposed with probability `1 - (1 - s ** rows) ** bands`.
    """
    fits = [
        rows
        for rows in range(1, _PERMUTATIONS + 1)
        if 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) >= _MIN_RECALL
    ]
    rows = max(fits, default=1)
    return _PERMUTATIONS // rows, rows


def sketch(texts: pa.ChunkedArray, threshold: float) -> Sketch:
    """The words and the bands of each text."""
    split = pc.split_pattern_regex(pc.utf8_lower(texts), r"[^\p{L}\p{N}\p{M}]+").combine_chunks()
    coded = pc.dictionary_encode(pc.list_flatten(split))
    spelled = coded.dictionary.to_pylist()
    hashes = keys.text_ids(spelled)
    used = np.array([bool(word) for word in spelled], bool)
    rows = pc.list_parent_indices(split).to_numpy()
    codes = coded.indices.to_numpy()
    places = np.unique((rows.astype(np.int64) << 32) | codes)
    places = places[used[places & 0xFFFFFFFF]]
    codes = places & 0xFFFFFFFF
    lengths = np.bincount(places >> 32, minlength=len(texts))
    count, width = bands(threshold)
    digests = _digests(_permuted(hashes), codes, lengths)
    keys_of = np.zeros((count, len(texts)), np.uint64)
    for band in range(count):
        for column in range(band * width, (band + 1) * width):
            keys_of[band] = keys_of[band] * np.uint64(0x9E3779B97F4A7C15) + digests[:, column]
    words = (hashes >> np.uint64(32)).astype(np.uint32)[codes]
    return Sketch(lengths, words, (keys_of >> np.uint64(32)).astype(np.uint32))


def find(sketches: Iterable[tuple[U64, Sketch]], threshold: float, folder: Path) -> tuple[U64, U64]:
    """(ids of the captions to leave out, ascending; for each the id of the one it is near to).

    `sketches` are captions' ids, each once, with their sketches; in whatever order they come, the result is
    the same. `folder` is for files that are gone again after. Memory: about 40 bytes a caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"band{band:02d}" for band in range(bands(threshold)[0])]
    words_path = folder / "words"
    all_ids, all_lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    try:
        handles = [path.open("wb") for path in (*paths, words_path)]
        try:
            for ids, each in sketches:
                all_ids.append(ids)
                all_lengths.append(each.lengths)
                for handle, values in zip(handles, (*each.bands, each.words), strict=True):
                    values.tofile(handle)
        finally:
            for handle in handles:
                handle.close()
        ids, lengths = np.concatenate(all_ids), np.concatenate(all_lengths)
        del all_ids, all_lengths
        if not words_path.stat().st_size:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        order = np.argsort(ids)
        words = _Words(
            np.memmap(words_path, np.uint32, "r"), (np.cumsum(lengths) - lengths)[order], lengths[order]
        )
        near = _near(lambda band: np.fromfile(paths[band], np.uint32)[order], len(paths), words, threshold)
        gone = np.flatnonzero(near >= 0)
        ids = ids[order]
        return ids[gone], ids[near[gone]]
    finally:
        for path in (*paths, words_path):
            path.unlink(missing_ok=True)
        folder.rmdir()


class _Words(NamedTuple):
    """Sets of words: those of caption k are `words[starts[k] : starts[k] + lengths[k]]`."""

    words: U32
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def jaccard(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """The similarity of the pairs (a[k], b[k]), float64 [pairs]."""
        starts = np.concatenate([self.starts[a], self.starts[b]])
        lengths = np.concatenate([self.lengths[a], self.lengths[b]])
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        words = self.words[np.repeat(starts, lengths) + within].astype(np.int64)
        pair = np.tile(np.arange(len(a)), 2)
        both = np.sort((np.repeat(pair, lengths) << 32) | words)
        shared = np.bincount(both[1:][both[1:] == both[:-1]] >> 32, minlength=len(a))
        union = self.lengths[a] + self.lengths[b] - shared
        return np.asarray(shared / union, np.float64)


def _near(band: Callable[[int], U32], count: int, words: _Words, threshold: float) -> NDArray[np.int64]:
    """For each caption the one that it is near to, -1 where it stays. Captions ascend by id.

    Band by band, captions with equal keys form a bucket. The first of a bucket leads: the others are compared
    with it, those that are near are settled, and the rest form a smaller bucket with a leader of its own. All
    buckets of a band advance together, one array operation for each round of leaders.
    """
    near = np.full(len(words.lengths), -1, np.int64)
    for number in range(count):
        open_ = np.flatnonzero((near < 0) & (words.lengths > 0))
        # Key and caption in one integer: one sort groups the buckets, each ascending by id.
        buckets = (band(number)[open_].astype(np.uint64) << np.uint64(32)) | open_.astype(np.uint64)
        buckets.sort()
        bucket = (buckets >> np.uint64(32)).astype(np.int64)
        member = (buckets & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for _ in range(_MAX_LEADERS):
            leads = np.concatenate([[True], bucket[1:] != bucket[:-1]])[: len(bucket)]
            followers = np.flatnonzero(~leads)
            if not len(followers):
                break
            leader = np.maximum.accumulate(np.where(leads, np.arange(len(bucket)), 0))[followers]
            same = _similar(words, member[leader], member[followers], threshold)
            near[member[followers[same]]] = member[leader[same]]
            followers = followers[~same]
            bucket, member = bucket[followers], member[followers]
    return near


def _similar(
    words: _Words, a: NDArray[np.int64], b: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """Which of the pairs reach the threshold, bool [pairs]."""
    shorter, longer = np.sort([words.lengths[a], words.lengths[b]], axis=0)
    found = shorter >= threshold * longer  # the similarity is at most the ratio of the lengths
    some = np.flatnonzero(found)
    for chunk in _chunks(some):
        found[chunk] = words.jaccard(a[chunk], b[chunk]) >= threshold
    return np.asarray(found, bool)


def _chunks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[first : first + _PAIRS_AT_ONCE] for first in range(0, len(rows), _PAIRS_AT_ONCE))


def _permuted(hashes: U64) -> U32:
    """The MinHash digests of single words, uint32 [words, permutations]; that of a set is their minimum."""
    with needs_extra("dedup", "balance.near_duplicates"):
        from rensa import RMinHash
    singles = np.arange(len(hashes) + 1, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, singles, _PERMUTATIONS, 0)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(hashes), _PERMUTATIONS)


def _digests(permuted: U32, codes: NDArray[np.int64], lengths: NDArray[np.int64]) -> U32:
    """The minimum over each set's words, uint32 [N, permutations]; all ones for an empty set.

    Sets are taken longest first, word by word: those that have a next word are always the first rows, so that
    each step is one minimum over a block without gaps.
    """
    starts = np.cumsum(lengths) - lengths
    longest_first = np.argsort(-lengths, kind="stable")
    digests = np.full((len(lengths), _PERMUTATIONS), 0xFFFFFFFF, np.uint32)
    for first in range(0, len(lengths), _ROWS_AT_ONCE):
        rows = longest_first[first : first + _ROWS_AT_ONCE]
        least = digests[rows]
        for place in range(int(lengths[rows[0]])):
            there = int(np.searchsorted(-lengths[rows], -place))
            np.minimum(least[:there], permuted[codes[starts[rows[:there]] + place]], out=least[:there])
        digests[rows] = least
    return digests
