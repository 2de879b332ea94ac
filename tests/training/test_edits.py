"""Hard negatives: captions that say one thing wrongly."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.training.edits import edited

DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("A red cat and a blue bus.", {"A blue cat and a red bus."}),
        ("Two dogs above three cats", {"Three dogs above two cats", "Two dogs below three cats"}),
        ("A big bell in front of a fence", {"A small bell in front of a fence", "A big bell behind a fence"}),
        ("A cup to the left of a spoon.", {"A cup to the right of a spoon."}),
        ("Over the hills", {"Under the hills"}),
    ],
)
def test_words_are_exchanged_or_replaced(caption: str, wrong: set[str]) -> None:
    draws = [(a / 8, b / 8) for a in range(8) for b in range(8)]
    assert {edited(caption, pair) for pair in draws} == wrong


def test_a_single_colour_becomes_any_other() -> None:
    found = {edited("Redwood behind it: a RED barn", (0.5, b / 50)) for b in range(50)}
    assert "Redwood behind it: a Blue barn" in found
    assert len(found) == 10, "no other word of the caption changes, and red is not drawn"


@given(st.text(max_size=60), DRAWS)
def test_of_any_text_an_edit_says_something_else_in_as_many_words(text: str, draws: list[float]) -> None:
    found = edited(text, draws)
    assert found != text
    if found is not None:
        kept = re.findall(r"[^\W_]+", text)
        assert len(kept) - 4 <= len(re.findall(r"[^\W_]+", found)) <= len(kept) + 4


def test_without_a_word_to_change_there_is_none() -> None:
    assert edited("A heron at the pond.", (0.1, 0.9)) is None
    assert edited("", (0.0, 0.0)) is None
