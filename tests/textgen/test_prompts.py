"""From what a model said to a caption, or to the reason why it is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.recipe.textgen import CaptionsConfig, Template
from synthclip.textgen.concepts import JOINERS
from synthclip.textgen.prompts import clean, contains

TEMPLATE = Template(name="t", text="x")
CONFIG = CaptionsConfig(templates=(TEMPLATE,))


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
    assert clean(raw, "dog", CONFIG, TEMPLATE) == (caption, None)


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
    assert clean(raw, "dog", CONFIG, TEMPLATE)[1] == reason


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
    text, reason = clean(raw, concept, CONFIG, TEMPLATE)
    if reason is None:
        assert text == " ".join(text.split())
        assert JOINERS.sub("", text).isprintable() or "\xad" in text
        assert 3 <= len(text.split()) <= 20


THREE = Template(name="long", text="x", sentences=3, max_words=60)


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("A dog runs. It is brown! Snow falls. A man", "A dog runs. It is brown! Snow falls."),
        ("A dog runs. It is brown. Snow", "A dog runs. It is brown."),
        ("A dog runs in the snow", "A dog runs in the snow"),
        ("1. A dog runs\n2. It is brown.\n\n3. Snow falls", "A dog runs. It is brown."),
        (
            "Sure, here is a caption:\n A dog runs.  It wears a 2.5 m scarf.",
            "A dog runs. It wears a 2.5 m scarf.",
        ),
        ("A dog runs. One. Two. Three.", "A dog runs. One. Two."),
    ],
)
def test_a_long_caption_is_its_first_whole_sentences(raw: str, caption: str) -> None:
    assert clean(raw, "dog", CONFIG, THREE) == (caption, None)


def test_a_template_has_limits_of_its_own() -> None:
    long = "A dog " + "and another dog " * 10 + "run."
    assert clean(long, "dog", CONFIG, TEMPLATE)[1] == "too long"
    assert clean(long, "dog", CONFIG, THREE)[1] is None
    few = Template(name="few", text="x", min_words=5)
    assert clean("A dog runs.", "dog", CONFIG, few)[1] == "too short"


@given(st.text(alphabet="aA.!? \n1-", max_size=60), st.integers(1, 4))
def test_no_more_sentences_than_asked_for(raw: str, most: int) -> None:
    template = Template(name="t", text="x", sentences=most, min_words=1)
    text, reason = clean(raw, "a", CONFIG, template)
    if reason is None:
        assert "\n" not in text
        assert len([end for end in (". ", "! ", "? ") for _ in range(text.count(end))]) < most


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog runs in the snow.", True),
        ("An old dog at night.", True),
        ("Ein Hund dog läuft durch den Schnee.", False),
        ("Un dog corre por la playa con una pelota.", False),
        ("一只 dog 在海滩上奔跑", False),
    ],
)
def test_captions_in_other_languages_are_refused(text: str, kept: bool) -> None:
    pytest.importorskip("py3langid", reason="needs py3langid: pip install 'synthclip[language]'")
    config = CONFIG.model_copy(update={"language": "en"})
    assert clean(text, "dog", config, TEMPLATE)[1] == (None if kept else "language")
