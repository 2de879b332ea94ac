"""Captions with one thing said wrongly: hard negatives of the pictures that the captions belong to."""

import re
from collections.abc import Sequence

_KINDS = (
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"),
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("big", "small"),
    ("large", "tiny"),
    ("left", "right"),
    ("above", "below"),
    ("over", "under"),
    ("in front of", "behind"),
    ("inside", "outside"),
)
"""Words of which one in the place of another says something else: colours, numbers, sizes, places."""
_KIND = {word: kind for kind in _KINDS for word in kind}
_WORDS = re.compile(rf"\b(?:{'|'.join(sorted(_KIND, key=len, reverse=True))})\b", re.IGNORECASE)
EDITS = 2
"""Uniform numbers that one edit takes."""


def edited(caption: str, uniform_2: Sequence[float]) -> str | None:
    """The caption with two words of one kind exchanged where it has two different ones, else with one put in
    the place of another: colours, numbers, sizes, places. None where it has no such word.

    `uniform_2` are numbers in [0, 1).
    """
    found = list(_WORDS.finditer(caption))
    if not found:
        return None
    first = found[int(uniform_2[0] * len(found))]
    kind = _KIND[first[0].lower()]
    others = [one for one in found if _KIND[one[0].lower()] is kind and one[0].lower() != first[0].lower()]
    if not others:
        words = [word for word in kind if word != first[0].lower()]
        return _replaced(caption, {first.span(): words[int(uniform_2[1] * len(words))]})
    second = others[int(uniform_2[1] * len(others))]
    return _replaced(caption, {first.span(): second[0].lower(), second.span(): first[0].lower()})


def _replaced(text: str, words: dict[tuple[int, int], str]) -> str:
    """With other words at these places, capitals where there were some."""
    for (start, end), word in sorted(words.items(), reverse=True):
        word = word.capitalize() if text[start].isupper() else word
        text = text[:start] + word + text[end:]
    return text
