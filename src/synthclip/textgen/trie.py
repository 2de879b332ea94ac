"""A trie of words, walked by many texts side by side."""

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from synthclip.keys import U64
from synthclip.textgen.words import Words

Slots = NDArray[np.int64]

_HEAD_BYTES, _CHUNK_BYTES = 7, 4
_HEAD, _CHUNK, _EDGE = (np.uint64(1 << bit) for bit in (56, 62, 63))
_UPPER = np.uint64(32)
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth, TAOCP 3, section 6.4


def _kept(most: int) -> tuple[U64, U64]:
    """By length up to `most` bytes: the mask of a word's bytes, and ones for those that lack.

    No byte of UTF-8 is 0xFF, so that a short word is no prefix of a longer one.
    """
    masks = [(1 << 8 * length) - 1 for length in range(most + 1)]
    return np.array(masks, np.uint64), np.array([masks[most] - mask for mask in masks], np.uint64)


_HEAD_MASK, _HEAD_FILL = _kept(_HEAD_BYTES)
_CHUNK_MASK, _CHUNK_FILL = _kept(_CHUNK_BYTES)


class Trie:
    """Sequences of words, kept in one hash table with open addressing; a slot's number is what it stands for.

    Three kinds of keys share it: a word's first 7 bytes; the next 4 bytes of a longer word, with the slot
    of what stands before them; a word, with the node that it follows. All hold what they stand for, so
    that there are no collisions to exclude. The node of a single word is that word's slot.
    """

    def __init__(self, keys: U64, names: NDArray[np.int32]) -> None:
        """`keys`: 0 where a slot is free. `names`: twice the name of the sequence that ends there plus
        one, or 0; and 1 more where others go on from it."""
        self.keys, self.names = keys, names
        self._shift = np.uint64(64 - (len(keys).bit_length() - 1))

    @classmethod
    def of(cls, sequences: Words) -> tuple[Self, NDArray[np.int64]]:
        """(the trie, its name for each sequence: int64 [N]); equal sequences have one name."""
        lengths = sequences.ends_W - sequences.starts_W
        chunks = np.maximum(lengths - _HEAD_BYTES + _CHUNK_BYTES - 1, 0) // _CHUNK_BYTES
        most = len(np.unique(_heads(sequences, lengths))) + int(chunks.sum()) + len(lengths)
        slots = 1 << (most * 3 // 2).bit_length()
        trie = cls(np.zeros(slots, np.uint64), np.zeros(slots, np.int32))
        words = trie._words(sequences, trie._add)
        nodes, place = words[sequences.offsets[:-1]], sequences.offsets[:-1] + 1
        going = np.flatnonzero(place < sequences.offsets[1:])
        while len(going):
            trie.names[nodes[going]] = 1
            nodes[going] = trie._add(_edges(nodes[going], words[place[going]]))
            place[going] += 1
            going = going[place[going] < sequences.offsets[going + 1]]
        ends, name = np.unique(nodes, return_inverse=True)
        trie.names[ends] += 2 * np.arange(1, len(ends) + 1, dtype=np.int32)
        return trie, name

    def find(self, texts: Words) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(word, name) of every sequence that stands in a text: where it begins, and which it is."""
        words = self._words(texts, self._find)
        following = np.append(words[1:], -1)
        following[texts.offsets[1:] - 1] = -1
        first = np.flatnonzero(words >= 0)
        last, node = first, words[first]
        found = [(first[:0], np.empty(0, np.int32))]
        while len(first):
            names = self.names[node]
            named = np.flatnonzero(names > 1)
            found.append((first[named], (names[named] >> 1) - 1))
            going = np.flatnonzero((names & 1 == 1) & (following[last] >= 0))
            next_node = self._find(_edges(node[going], following[last[going]]))
            there = np.flatnonzero(next_node >= 0)
            going = going[there]
            first, last, node = first[going], last[going] + 1, next_node[there]
        where, which = zip(*found, strict=True)
        return np.concatenate(where), np.concatenate(which)

    def _words(self, words: Words, slots_of: Callable[[U64], Slots]) -> Slots:
        """The slot of each word, -1 where the trie holds none that begins so."""
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

    def _find(self, keys: U64) -> Slots:
        """The slot of each key, -1 for one that is not there."""
        slots = self._first(keys)
        there = self.keys[slots]
        slots[there == 0] = -1
        seeking = np.flatnonzero((there != keys) & (there != 0))
        while len(seeking):
            slots[seeking] = (slots[seeking] + 1) & (len(self.keys) - 1)
            there = self.keys[slots[seeking]]
            slots[seeking[there == 0]] = -1
            seeking = seeking[(there != keys[seeking]) & (there != 0)]
        return slots

    def _add(self, keys: U64) -> Slots:
        """The slot of each key, one taken for those that have none."""
        different, which = np.unique(keys, return_inverse=True)
        slots = self._first(different)
        seeking = np.arange(len(different))
        while len(seeking):
            at = slots[seeking]
            free = self.keys[at] == 0
            self.keys[at[free]] = different[seeking[free]]
            seeking = seeking[self.keys[at] != different[seeking]]
            slots[seeking] = (slots[seeking] + 1) & (len(self.keys) - 1)
        return slots[which]

    def _first(self, keys: U64) -> Slots:
        """Where the search for each key begins."""
        return ((keys * _FIBONACCI) >> self._shift).view(np.int64)


def _heads(words: Words, lengths: NDArray[np.int64]) -> U64:
    short = np.minimum(lengths, _HEAD_BYTES)
    return _HEAD | (_eight_bytes(words, words.starts_W) & _HEAD_MASK[short]) | _HEAD_FILL[short]


def _edges(nodes: Slots, words: Slots) -> U64:
    return _EDGE | nodes.view(np.uint64) << _UPPER | words.view(np.uint64)


def _eight_bytes(words: Words, starts: NDArray[np.int64]) -> U64:
    """The eight bytes from each start, the first the lowest."""
    data = words.data
    every = np.ndarray(len(data) - 7, np.dtype("<u8"), data, strides=(1,))
    return every[starts].astype(np.uint64, copy=False)
