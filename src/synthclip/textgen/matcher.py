"""Which concepts of a bank a text names: exact n-gram matching, as MetaCLIP and the paper do it.

The official rule looks for every concept as a substring of every text: 30 million captions times 500,000
concepts. The same answer comes faster from words: a concept stands in a text where the concept's words are
consecutive words of the text. So texts are cut into words (`_Cut`) and walk down a trie of the bank's words
(`_Trie`). Both work on thousands of texts at once, in NumPy arrays, because a step in Python for each word
would take most of the time; and all that the trie consists of is two flat arrays, so that the workers of a
machine map one copy of it from a file.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthclip.keys import U64

_TEXTS_AT_ONCE = 2048  # the arrays of one pass stay in the cache
_SPACE, _MARK = 1, 2  # kinds of bytes: a space stands between two words, a mark is a word of its own
_PADDING = 8  # bytes behind the last word, so that eight can be read wherever a word ends

_HEAD_BYTES, _CHUNK_BYTES = 7, 4
_HEAD, _CHUNK, _EDGE = (np.uint64(1 << bit) for bit in (56, 62, 63))
_UPPER = np.uint64(32)
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth, TAOCP 3, section 6.4

_Slots = NDArray[np.int64]


class ConceptMatcher:
    """Finds every concept in every text.

    A concept is found where it stands between single spaces once the text is padded with a space on each
    side, each of `,.;:?!` and the backquote has a space put around it, and tab, newline and carriage return
    are turned into a space (MetaCLIP, arXiv 2309.16671, Algorithm 1). Case counts unless `lowercase`.

    >>> matcher = ConceptMatcher(["dog", "red", "red ball"])
    >>> offsets, concept_ids = matcher.match(["A dog, a red ball.", "dogs"])
    >>> offsets.tolist(), concept_ids.tolist()
    ([0, 3, 3], [0, 1, 2])
    """

    def __init__(self, concepts: Sequence[str], *, lowercase: bool = False) -> None:
        """Concepts may repeat: each is found under all its positions."""
        texts = (concept.lower() if lowercase else concept for concept in concepts)
        # Half a surrogate pair is in no text: a concept that holds one is found nowhere.
        coded = [text.encode("utf-8", "surrogatepass") for text in texts]
        bounds = np.fromiter(accumulate(map(len, coded), initial=0), np.int64, len(coded) + 1)
        self._lowercase = lowercase
        self._trie, name = _Trie.of(_CONCEPT(b"".join(coded), bounds))
        self._positions = np.argsort(name, kind="stable").astype(np.int32)
        self._repeats = np.bincount(name)

    def match(self, texts: Sequence[str] | pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(offsets int64 [N + 1], concept_ids int32 [offsets[-1]]) in CSR form.

        The concepts of text i are `concept_ids[offsets[i]:offsets[i + 1]]`: positions in `concepts`,
        ascending, each once. Texts may be an Arrow array of strings. Raises ValueError for a text with
        half a surrogate pair, which is no Unicode.
        """
        counts, found = [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[first : first + _TEXTS_AT_ONCE]
            text_of, concept = self._pairs(some)
            counts.append(np.bincount(text_of, minlength=len(some)))
            found.append(concept)
        return np.cumsum(np.concatenate(counts)), np.concatenate(found)

    def _pairs(self, texts: Sequence[str] | pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(text, concept) of every match, ascending, each pair once."""
        if (
            self._lowercase
        ):  # as Python does, whose rules depend on what stands beside a letter; Arrow's do not
            listed = texts.to_pylist() if isinstance(texts, pa.Array) else texts
            texts = [text.lower() for text in listed]
        words = _TEXT(*_utf8(texts))
        word, name = self._trie.find(words)
        text_of = np.repeat(np.arange(len(texts)), np.diff(words.offsets))[word]
        if len(self._repeats) == len(self._positions):
            concept = self._positions[name]
        else:
            repeats = self._repeats[name]
            text_of, name = np.repeat(text_of, repeats), np.repeat(name, repeats)
            within = np.arange(len(name)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            concept = self._positions[self._starts[name] + within]
        pairs = (text_of << 32) | concept
        pairs.sort()
        pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
        return pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where the positions of each name begin in `_positions`."""
        return np.cumsum(self._repeats) - self._repeats

    def save(self, path: Path) -> None:
        """Write the matcher for `load`."""
        parts = self._trie.keys, self._repeats, self._trie.names, self._positions
        with path.open("wb") as handle:
            np.array([self._lowercase, *(len(part) for part in parts)], np.int64).tofile(handle)
            for part in parts:
                part.tofile(handle)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Map what `save` wrote on a machine of the same byte order: processes share one copy of it."""
        data = np.memmap(path, np.uint8, "r")
        lowercase, *lengths = np.frombuffer(data, np.int64, 5).tolist()
        parts: list[NDArray[Any]] = []
        at = 5 * 8
        for length, kind in zip(lengths, (np.uint64, np.int64, np.int32, np.int32), strict=True):
            parts.append(np.frombuffer(data, kind, length, at))
            at += parts[-1].nbytes
        matcher = cls.__new__(cls)
        matcher._lowercase = bool(lowercase)
        keys, matcher._repeats, names, matcher._positions = parts
        matcher._trie = _Trie(keys, names)
        return matcher


class _Words(NamedTuple):
    """The words of N texts, each text's behind those of the one before."""

    data: NDArray[np.uint8]
    """All texts in UTF-8, and `_PADDING` bytes more."""
    starts_W: NDArray[np.int64]
    """Where each word begins in `data`."""
    ends_W: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """int64 [N + 1]: text i has the words from `offsets[i]` to `offsets[i + 1]`: at least one, as an empty
    text is one empty word."""


class _Cut:
    """Cuts texts into words at the bytes given: a space stands between two words, a mark is one itself.

    All of a batch is one string of bytes, and the ends of all its words come from the positions of those
    bytes by sums and sorts: no step in Python for each text. Bytes will do, as no part of a longer UTF-8
    character is an ASCII byte. Two spaces in a row have an empty word between them, as in the official rule,
    where they keep the concept `red ball` from matching.
    """

    def __init__(self, spaces: bytes, marks: bytes) -> None:
        kinds = bytearray(256)
        for bytes_, kind in ((spaces, _SPACE), (marks, _MARK)):
            for byte in bytes_:
                kinds[byte] = kind
        self._kinds = bytes(kinds)

    def __call__(self, data: bytes, bounds: NDArray[np.int64]) -> _Words:
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
        return _Words(np.frombuffer(data + bytes(_PADDING), np.uint8), starts_W, ends_W, offsets)


_TEXT = _Cut(spaces=b" \t\n\r", marks=b",.;:?!`")
_CONCEPT = _Cut(spaces=b" ", marks=b"")


def _utf8(texts: Sequence[str] | pa.Array) -> tuple[bytes, NDArray[np.int64]]:
    """(the bytes of all texts, one behind the other; where each begins and the last ends, int64 [N + 1]).

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


def _kept(most: int) -> tuple[U64, U64]:
    """By length up to `most` bytes: the mask of a word's bytes, and 0xFF for the bytes that it lacks.

    No byte of UTF-8 is 0xFF, so a short word is never taken for the beginning of a longer one, not even of
    one that goes on with NUL.
    """
    masks = [(1 << 8 * length) - 1 for length in range(most + 1)]
    return np.array(masks, np.uint64), np.array([masks[most] - mask for mask in masks], np.uint64)


_HEAD_MASK, _HEAD_FILL = _kept(_HEAD_BYTES)
_CHUNK_MASK, _CHUNK_FILL = _kept(_CHUNK_BYTES)


class _Trie:
    """Sequences of words in one hash table with open addressing. A slot's number names what its key holds.

    A trie of pointers would be walked node by node in Python; a hash of whole words would need their bytes
    compared after every hit. Here every step is one look-up of a 64-bit key, for thousands of words at once,
    and the key holds all that it stands for, so that equal keys are equal words. Three kinds of keys share
    the table, each marked by a bit of its own:

    - a word's first 7 bytes: most words need no more;
    - the next 4 bytes of a longer word, with the slot of what stands before them;
    - a word (by its slot), with the node that it follows: the edges of the trie. The node of a sequence of
      one word is that word's slot.
    """

    def __init__(self, keys: U64, names: NDArray[np.int32]) -> None:
        """Both [slots], a power of two. `keys`: 0 where a slot is free. `names`: 2 * (name + 1) where a
        sequence ends, else 0, and 1 more where longer ones go on from there: one read says whether to report
        a match, and whether to walk on."""
        self.keys, self.names = keys, names
        self._shift = np.uint64(64 - (len(keys).bit_length() - 1))

    @classmethod
    def of(cls, sequences: _Words) -> tuple[Self, NDArray[np.int64]]:
        """(the trie, its name for each sequence: int64 [N]); equal sequences have one name."""
        lengths = sequences.ends_W - sequences.starts_W
        chunks = np.maximum(lengths - _HEAD_BYTES + _CHUNK_BYTES - 1, 0) // _CHUNK_BYTES
        # At most two thirds of the table are in use, so that a search ends after a step or two.
        most = len(np.unique(_heads(sequences, lengths))) + int(chunks.sum()) + len(lengths)
        slots = 1 << (most * 3 // 2).bit_length()
        trie = cls(np.zeros(slots, np.uint64), np.zeros(slots, np.int32))
        words = trie._words(sequences, trie._add)
        nodes, place = words[sequences.offsets[:-1]], sequences.offsets[:-1] + 1
        active = np.flatnonzero(place < sequences.offsets[1:])
        while len(active):
            trie.names[nodes[active]] = 1
            nodes[active] = trie._add(_edges(nodes[active], words[place[active]]))
            place[active] += 1
            active = active[place[active] < sequences.offsets[active + 1]]
        ends, name = np.unique(nodes, return_inverse=True)
        trie.names[ends] += 2 * np.arange(1, len(ends) + 1, dtype=np.int32)
        return trie, name

    def find(self, texts: _Words) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(word, name) of every sequence that stands in a text: where it begins, and which it is."""
        words = self._words(texts, self._find)
        following = np.append(words[1:], -1)
        following[texts.offsets[1:] - 1] = -1  # the last word of a text is followed by none
        first = np.flatnonzero(words >= 0)
        last, node = first, words[first]
        found = [(first[:0], np.empty(0, np.int32))]
        while len(first):
            names = self.names[node]
            named = np.flatnonzero(names > 1)
            found.append((first[named], (names[named] >> 1) - 1))
            active = np.flatnonzero((names & 1 == 1) & (following[last] >= 0))
            next_node = self._find(_edges(node[active], following[last[active]]))
            known = np.flatnonzero(next_node >= 0)
            active = active[known]
            first, last, node = first[active], last[active] + 1, next_node[known]
        where, which = zip(*found, strict=True)
        return np.concatenate(where), np.concatenate(which)

    def _words(self, words: _Words, slots_of: Callable[[U64], _Slots]) -> _Slots:
        """The slot of each word, by `slots_of` a key; -1 where the trie holds none that begins so."""
        lengths = words.ends_W - words.starts_W
        slots = slots_of(_heads(words, lengths))
        done = _HEAD_BYTES
        longer = np.flatnonzero((lengths > done) & (slots >= 0))
        while len(longer):
            rest = np.minimum(lengths[longer] - done, _CHUNK_BYTES)
            chunk = _eight_bytes(words, words.starts_W[longer] + done) & _CHUNK_MASK[rest] | _CHUNK_FILL[rest]
            before = slots[longer].view(np.uint64) << _UPPER
            slots[longer] = slots_of(_CHUNK | before | chunk)
            done += _CHUNK_BYTES
            longer = longer[(lengths[longer] > done) & (slots[longer] >= 0)]
        return slots

    def _find(self, keys: U64) -> _Slots:
        """The slot of each key, -1 for one that is not there."""
        slots = self._first(keys)
        there = self.keys[slots]
        slots[there == 0] = -1
        pending = np.flatnonzero((there != keys) & (there != 0))
        while len(pending):
            slots[pending] = (slots[pending] + 1) & (len(self.keys) - 1)
            there = self.keys[slots[pending]]
            slots[pending[there == 0]] = -1
            pending = pending[(there != keys[pending]) & (there != 0)]
        return slots

    def _add(self, keys: U64) -> _Slots:
        """The slot of each key, one taken for those that have none."""
        different, which = np.unique(keys, return_inverse=True)
        slots = self._first(different)
        pending = np.arange(len(different))
        while len(pending):
            at = slots[pending]
            free = self.keys[at] == 0
            self.keys[at[free]] = different[pending[free]]
            pending = pending[self.keys[at] != different[pending]]
            slots[pending] = (slots[pending] + 1) & (len(self.keys) - 1)
        return slots[which]

    def _first(self, keys: U64) -> _Slots:
        """Where the search for each key begins. The product's upper bits depend on all bits of the key."""
        return ((keys * _FIBONACCI) >> self._shift).view(np.int64)


def _heads(words: _Words, lengths: NDArray[np.int64]) -> U64:
    short = np.minimum(lengths, _HEAD_BYTES)
    return _HEAD | (_eight_bytes(words, words.starts_W) & _HEAD_MASK[short]) | _HEAD_FILL[short]


def _edges(nodes: _Slots, words: _Slots) -> U64:
    return _EDGE | nodes.view(np.uint64) << _UPPER | words.view(np.uint64)


def _eight_bytes(words: _Words, starts: NDArray[np.int64]) -> U64:
    """The eight bytes from each start, the first the lowest."""
    data = words.data
    every = np.ndarray(len(data) - 7, np.dtype("<u8"), data, strides=(1,))
    return every[starts].astype(np.uint64, copy=False)
