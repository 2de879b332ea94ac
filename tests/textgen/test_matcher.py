"""Matching against the official rule, written out the obvious way."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthclip import ConceptMatcher

PIECES = st.sampled_from(
    [
        "dog",
        "Dog",
        "red",
        "ball",
        "elephan",
        "elephant",
        "elephants",
        "hippopotamus",
        " ",
        "  ",
        *",.;:?!`-'\t\n\r\x00\xa0\u2028",
        "é",
        "狗",
        "🐶",
        "İ",
        "ΑΣ",
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12))


def obvious(concepts: Sequence[str], text: str, lowercase: bool = False) -> list[int]:
    """OFFICIAL rule: space the marks, turn blanks into spaces, look for ` entry ` as a substring."""
    if lowercase:
        text, concepts = text.lower(), [concept.lower() for concept in concepts]
    text = re.sub(r"[\t\n\r]", " ", text)
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return [place for place, concept in enumerate(concepts) if f" {concept} " in f" {text} "]


def rows(matches: tuple[NDArray[np.int64], NDArray[np.int32]]) -> list[list[int]]:
    offsets, ids = matches
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


@given(st.lists(TEXTS, max_size=12), st.lists(TEXTS, max_size=6), st.booleans())
@example(["", " ", "dog", "dog", "red dog", "dog."], ["dog.", "red  dog", "", " "], False)
@example(["DOG", "dog"], ["A dog", "a DOG"], True)
def test_same_ids_as_the_obvious_way(concepts: list[str], texts: list[str], lowercase: bool) -> None:
    found = rows(ConceptMatcher(concepts, lowercase=lowercase).match(texts))
    assert found == [obvious(concepts, text, lowercase) for text in texts]


def test_more_texts_than_are_matched_at_once() -> None:
    concepts = ["dog", "red", "ball", "red dog", ""]
    texts = [" ".join((["red"] * (n % 3)) + ["dog", "ball,"][: n % 4]) for n in range(5_000)]
    assert rows(ConceptMatcher(concepts).match(texts)) == [obvious(concepts, text) for text in texts]


@given(st.lists(TEXTS, max_size=6), st.integers(0, 3), st.integers(0, 3))
def test_arrow_strings_match_like_a_list(texts: list[str], front: int, back: int) -> None:
    """A slice of an array too, and one of the narrower kind of string."""
    matcher = ConceptMatcher(["dog", "red", "ball", "red dog", ""])
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(["red dog"] * front + texts + ["ball"] * back, kind)
        assert rows(matcher.match(array.slice(front, len(texts)))) == rows(matcher.match(texts))


@given(st.lists(st.text("ab\x00é狗", max_size=20), min_size=1, max_size=30))
def test_words_that_begin_alike_are_told_apart(words: list[str]) -> None:
    matcher = ConceptMatcher(words)
    for word in words:
        assert rows(matcher.match([word])) == [obvious(words, word)]


def test_form_of_the_answer() -> None:
    offsets, ids = ConceptMatcher(["dog", "red", "red ball"]).match(["A dog, a red ball.", "dogs", "Dog"])
    assert offsets.tolist() == [0, 3, 3, 3]
    assert ids.tolist() == [0, 1, 2]
    assert (str(offsets.dtype), str(ids.dtype)) == ("int64", "int32")


def test_nothing_to_match() -> None:
    assert rows(ConceptMatcher([]).match(["a dog"])) == [[]]
    offsets, ids = ConceptMatcher(["dog"]).match([])
    assert (offsets.tolist(), ids.tolist()) == ([0], [])


@pytest.mark.parametrize("broken", ["\ud800 dog", "\udcff", "dog \udfff"])
def test_half_a_character_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        ConceptMatcher(["dog"]).match(["a dog", broken])


@pytest.mark.parametrize("concepts", [[], ["dog"], ["dog", "red", "dog", "DOG"]])
@pytest.mark.parametrize("lowercase", [False, True])
def test_a_saved_matcher_finds_the_same(tmp_path: Path, concepts: list[str], lowercase: bool) -> None:
    texts = ["a dog", "A DOG and red", "", "x"]
    matcher = ConceptMatcher(concepts, lowercase=lowercase)
    matcher.save(tmp_path / "matcher")
    assert rows(ConceptMatcher.load(tmp_path / "matcher").match(texts)) == rows(matcher.match(texts))
