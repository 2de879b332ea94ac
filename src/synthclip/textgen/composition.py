"""Captions in pairs that differ in how their words belong together: a colour, a number, a place exchanged.

Painted by the run's own painter, each pair from one seed, they measure whether a CLIP binds words to
objects (Winoground's task, arXiv 2204.03162, with captions of a template); others of them may teach it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from synthclip.keys import seed_of

KINDS = ("colour", "count", "relation")
_COLOURS = ("red", "blue", "yellow", "green")
_NUMBERS = ("Two", "Three", "Four")
_PLACES = ("to the left of", "above")
_IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "leaf": "leaves",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
}


class Pair(NamedTuple):
    """Two captions of the same words."""

    kind: str
    caption: str
    exchanged: str
    things: tuple[str, str]


def exchanged_pairs(names: Sequence[str], count: int, seed: int, stream: str = "composition") -> list[Pair]:
    """`count` pairs over the names of things, the kinds in turn; the same for the same names, seed and
    stream. None where there are no two things to exchange."""
    if len(names) < 2:
        return []
    return [_pair(KINDS[number % len(KINDS)], names, number, seed, stream) for number in range(count)]


def _pair(kind: str, names: Sequence[str], number: int, seed: int, stream: str) -> Pair:
    def draw(most: int, what: str) -> int:
        return seed_of(f"{number}/{what}", stream=stream, seed=seed) % most

    if kind == "count":
        singular = [name for name in names if not name.endswith("s")]
        names = singular if len(singular) > 1 else names
    first = draw(len(names), "first")
    a, b = names[first], names[(first + 1 + draw(len(names) - 1, "second")) % len(names)]
    if kind == "colour":
        at = draw(len(_COLOURS), "colour")
        c, d = _COLOURS[at], _COLOURS[(at + 1 + draw(len(_COLOURS) - 1, "other")) % len(_COLOURS)]
        return Pair(kind, f"A {c} {a} and a {d} {b}.", f"A {d} {a} and a {c} {b}.", (a, b))
    if kind == "count":
        more, many = _NUMBERS[draw(len(_NUMBERS), "number")], (plural(a), plural(b))
        return Pair(
            kind,
            f"{_article(a).capitalize()} {a} and {more.lower()} {many[1]}.",
            f"{more} {many[0]} and {_article(b)} {b}.",
            (a, b),
        )
    place = _PLACES[draw(len(_PLACES), "place")]
    said = [f"{_article(x).capitalize()} {x} {place} {_article(y)} {y}." for x, y in ((a, b), (b, a))]
    return Pair(kind, said[0], said[1], (a, b))


def plural(name: str) -> str:
    """The plural of a noun of several words, by the rules of English and a few exceptions."""
    *before, last = name.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh", "ato", "ngo")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


def _article(name: str) -> str:
    return "an" if name[0].lower() in "aeiou" else "a"
