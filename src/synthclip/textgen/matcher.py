"""Which concepts of a bank a text names: exact n-gram matching, as MetaCLIP and the paper do it."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthclip.textgen.trie import Trie
from synthclip.textgen.words import Cut, utf8

_TEXTS_AT_ONCE = 2048  # the arrays of one pass stay in the cache
_TEXT = Cut(spaces=b" \t\n\r", marks=b",.;:?!`")
_CONCEPT = Cut(spaces=b" ", marks=b"")


class ConceptMatcher:
    """Finds every concept in every text.

    A concept is found where it stands between single spaces once the text is padded with a space on each
    side, each of `,.;:?!` and the backquote has a space put around it, and tab, newline and carriage return
    are turned into a space (MetaCLIP, arXiv 2309.16671, Algorithm 1). Case counts unless `lowercase`.

    In other words: where its words are consecutive words of the text. So texts are cut into words and walk
    down a trie of the bank, thousands at once, in arrays that all worker processes map from one file.

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
        self._trie, name = Trie.of(_CONCEPT(b"".join(coded), bounds))
        self._positions = np.argsort(name, kind="stable").astype(np.int32)
        self._repeats = np.bincount(name)
        self._starts = np.cumsum(self._repeats) - self._repeats

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
        words = _TEXT(*utf8([text.lower() for text in texts] if self._lowercase else texts))
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
        matcher._trie = Trie(keys, names)
        matcher._starts = np.cumsum(matcher._repeats) - matcher._repeats
        return matcher
