"""From what a model said to a caption, or to the reason why it is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.textgen.cleaning import clean, contains
from synthclip.textgen.config import CaptionsConfig

CONFIG = CaptionsConfig.model_validate({"templates": [{"name": "t", "text": "x"}]})


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        (' "A dog runs on the beach." ', "A dog runs on the beach."),
        ("1. A dog runs.", "A dog runs."),
        ("- A dog runs.", "A dog runs."),
        ("Caption: A dog runs.", "A dog runs."),
        ("A  dog\truns.", "A dog runs."),
        ("“A dog” runs here", "A dog runs here"),
        ("Sure, here is a caption: A dog runs.", "A dog runs."),
        ("Here's your image caption: A dog runs.", "A dog runs."),
    ],
)
def test_what_is_no_part_of_the_caption_goes(raw: str, caption: str) -> None:
    assert clean(raw, "dog", CONFIG) == (caption, None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        (' "" ', "empty"),
        ("A dog runs.\nNote: it is brown.", "several lines"),
        ("A dog\x07 runs.", "control characters"),
        ("A \u202edog runs away.", "control characters"),
        ("<b>A dog</b> runs.", "markup"),
        ("A [dog](https://example.com) runs.", "markup"),
        ("A dog", "too short"),
        ("dog " * 21, "too long"),
        ("dog " * 10_000, "too long"),
        ("A cat runs here.", "concept missing"),
        ("A hotdog lies here.", "concept missing"),
        ("I'm sorry, but I cannot draw a dog.", "refusal"),
        ("As an AI language model, I have no dog.", "refusal"),
    ],
)
def test_what_is_no_caption_has_its_reason(raw: str, reason: str) -> None:
    assert clean(raw, "dog", CONFIG)[1] == reason


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("Two dogs run.", "dog"),
        ("A Dog runs.", "dog"),
        ("Berries lie in a bowl.", "berry"),
        ("He is running.", "run"),
        ("She danced.", "dance"),
        ("A dog's tail.", "dog"),
        ("Traffic lights at night.", "traffic light"),
        ("A C++ book.", "C++"),
    ],
)
def test_inflections_count_as_the_concept(text: str, concept: str) -> None:
    assert contains(text, concept)


@pytest.mark.parametrize(
    ("text", "concept"), [("A catalogue.", "cat"), ("A light in traffic.", "traffic light")]
)
def test_other_words_do_not(text: str, concept: str) -> None:
    assert not contains(text, concept)


@given(st.text(max_size=80), st.text(min_size=1, max_size=10).filter(str.strip))
def test_nothing_makes_cleaning_fail(raw: str, concept: str) -> None:
    text, reason = clean(raw, concept, CONFIG)
    if reason is None:
        assert text == " ".join(text.split())
        assert text.isprintable() or "\xad" in text
        assert 3 <= len(text.split()) <= 20
