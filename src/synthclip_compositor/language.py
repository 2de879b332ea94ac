"""Reads a caption: which of its words can be drawn, and what it says of them.

No grammar: the nouns are found by the longest match in the vocabulary of glyphs, what stands before a noun
(number, size, colour) is taken to describe it, and the words between two nouns give their relation.

`glyphs.tsv` has one glyph a line: the file's stem in OpenMoji (code points), a tab, the names it answers to.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, TypeVar

Place = Literal["on", "in", "under", "above", "behind", "front", "left", "right", "between", "beside"]
Setting = Literal[
    "beach", "city", "desert", "field", "forest", "mountain", "room", "sea", "sky", "snow", "space", "table"
]
Time = Literal["day", "dusk", "night"]
Weather = Literal["clear", "cloud", "fog", "rain", "snow", "storm"]


@dataclass(frozen=True)
class Thing:
    """A glyph, and what the caption says of it."""

    glyph: str
    count: int | None = 1
    """None: several, the painter chooses."""
    colour: str | None = None
    size: float = 1.0
    """Relative to what it would have."""


@dataclass(frozen=True)
class Relation:
    """Where `things[subject]` stands to `things[object]`."""

    subject: int
    place: Place
    object: int


@dataclass(frozen=True)
class Scene:
    """All that a caption says that can be painted. What it leaves open is None: the painter draws lots."""

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    setting: Setting | None
    time: Time | None
    weather: Weather | None


COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "crimson": (190, 20, 50),
    "orange": (240, 140, 30),
    "yellow": (250, 215, 40),
    "golden": (235, 185, 50),
    "gold": (235, 185, 50),
    "green": (60, 165, 70),
    "turquoise": (60, 200, 190),
    "teal": (20, 140, 140),
    "blue": (50, 105, 220),
    "navy": (30, 45, 110),
    "purple": (140, 70, 185),
    "violet": (140, 70, 185),
    "pink": (250, 145, 185),
    "brown": (140, 90, 50),
    "beige": (225, 205, 165),
    "tan": (210, 175, 125),
    "black": (50, 50, 55),
    "gray": (150, 150, 150),
    "grey": (150, 150, 150),
    "silver": (195, 200, 205),
    "white": (250, 250, 250),
}

_Meaning = TypeVar("_Meaning")


def _by_word(words: Mapping[_Meaning, str]) -> dict[str, _Meaning]:
    """Word -> meaning, from the words of each meaning, listed with spaces between them."""
    return {word: meaning for meaning, listed in words.items() for word in listed.split()}


_NUMBERS: Mapping[str, int | None] = _by_word(
    {
        1: "a an one single lone",
        2: "two 2 pair couple both",
        3: "three 3 trio",
        4: "four 4",
        5: "five 5",
        6: "six 6 half-dozen",
        None: "several many some few group bunch herd flock pile row dozen",
    }
)

_SIZES: Mapping[str, float] = _by_word(
    {
        0.6: "tiny miniature distant",
        0.75: "small little baby young",
        1.2: "big large tall great",
        1.35: "huge giant gigantic massive enormous towering",
    }
)

_PLACES: Mapping[str, Place] = _by_word(
    {
        "on": "on atop onto upon riding",
        "in": "in inside into within",
        "under": "under beneath below underneath",
        "above": "above over",
        "behind": "behind",
        "front": "front",
        "left": "left",
        "right": "right",
        "between": "between",
    }
)

_SETTINGS: Mapping[str, Setting] = _by_word(
    {
        "beach": "beach shore sand sandy coast seaside tropical",
        "city": "street road city town alley sidewalk highway market downtown village",
        "desert": "desert dune dunes savanna savannah",
        "field": "field meadow grass grassy lawn park garden farm pasture backyard",
        "forest": "forest woods jungle woodland trees rainforest",
        "mountain": "mountain mountains hill hills valley cliff hilltop",
        "room": "room wall floor bedroom hall indoors carpet rug museum stage",
        "sea": "sea ocean lake river pond water waves underwater pool stream harbor",
        "sky": "sky air skies clouds",
        "snow": "snow snowy winter ice icy frozen",
        "space": "space galaxy cosmos",
        "table": "table desk shelf kitchen counter countertop tabletop",
    }
)

_TIMES: Mapping[str, Time] = _by_word(
    {
        "night": "night midnight moon moonlit moonlight starry dark stars",
        "dusk": "sunset dusk sunrise dawn evening twilight",
        "day": "day morning noon sunny afternoon sun sunlight bright",
    }
)

_WEATHERS: Mapping[str, Weather] = _by_word(
    {
        "rain": "rain rainy raining wet drizzle",
        "snow": "snowing snowfall snowflakes blizzard",
        "fog": "fog foggy mist misty",
        "storm": "storm stormy thunder lightning thunderstorm",
        "cloud": "cloud cloudy overcast",
        "clear": "sunny clear",
    }
)

_IRREGULAR_PLURALS: dict[str, str] = dict(
    re.findall(
        r"(\w+)/(\w+)",
        "calf/calves child/children deer/deer fish/fish foot/feet goose/geese kid/kids knife/knives "
        "leaf/leaves loaf/loaves man/men mouse/mice octopus/octopuses ox/oxen person/people scarf/scarves "
        "sheep/sheep tooth/teeth wolf/wolves woman/women",
    )
)

_STOPS = frozenset([",", ".", ";", ":", "!", "?", "with", "by", "at", "near"])
"""Where the words that may belong to a noun begin."""

_MAX_THINGS = 4


@dataclass(frozen=True)
class Word:
    """What a name in a caption stands for."""

    glyph: str
    """The glyph's main name."""
    plural: bool


@functools.cache
def codes() -> dict[str, str]:
    """The OpenMoji file stem of every glyph, by its main name."""
    return {names[0]: code for code, names in _table()}


@functools.cache
def vocabulary() -> dict[tuple[str, ...], Word]:
    """Every name, singular and plural, lower-cased and split into words."""
    found: dict[tuple[str, ...], Word] = {}
    for _, names in _table():
        for name in names:
            words = tuple(name.lower().split())
            found.setdefault(words, Word(names[0], plural=False))
    for words, word in list(found.items()):
        found.setdefault((*words[:-1], _plural(words[-1])), Word(word.glyph, plural=True))
    return found


def _table() -> list[tuple[str, list[str]]]:
    text = (resources.files("synthclip_compositor") / "glyphs.tsv").read_text(encoding="utf-8")
    split = (line.split("\t") for line in text.splitlines())
    return [(code, names.split(", ")) for code, names in split]


def _plural(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("ato", "ngo")):
        return noun + "es"
    return noun + "s"


_LONGEST_NAME = max(len(words) for words in vocabulary())


@dataclass(frozen=True)
class _Noun:
    start: int
    end: int
    word: Word


def read(caption: str) -> Scene:
    """What the caption asks for. Any text will do: what is not understood is skipped."""
    tokens = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*|[,.;:!?]", caption.lower())
    nouns = _distinct(_nouns(tokens))[:_MAX_THINGS]
    taken = {at for noun in nouns for at in range(noun.start, noun.end)}
    free = [token for at, token in enumerate(tokens) if at not in taken]
    return Scene(
        tuple(_thing(tokens, noun, nouns[at - 1].end if at else 0) for at, noun in enumerate(nouns)),
        tuple(_relations(tokens, nouns)),
        _first(free, _SETTINGS),
        _first(free, _TIMES),
        _first(free, _WEATHERS),
    )


def _nouns(tokens: Sequence[str]) -> list[_Noun]:
    known = vocabulary()
    found = []
    at = 0
    while at < len(tokens):
        for length in range(min(_LONGEST_NAME, len(tokens) - at), 0, -1):
            word = known.get(tuple(tokens[at : at + length]))
            if word is not None and not (length == 1 and _is_adjective(tokens, at)):
                found.append(_Noun(at, at + length, word))
                at += length - 1
                break
        at += 1
    return found


def _is_adjective(tokens: Sequence[str], at: int) -> bool:
    """`orange` before a noun is a colour; `baby` before an animal a size."""
    following = tokens[at + 1] if at + 1 < len(tokens) else ""
    return (tokens[at] in COLOURS or tokens[at] in _SIZES) and (following,) in vocabulary()


def _distinct(nouns: Sequence[_Noun]) -> list[_Noun]:
    """The first mention of every glyph: a second one speaks of the same thing."""
    seen: dict[str, _Noun] = {}
    for noun in nouns:
        seen.setdefault(noun.word.glyph, noun)
    return list(seen.values())


def _thing(tokens: Sequence[str], noun: _Noun, floor: int) -> Thing:
    count: int | None = None if noun.word.plural else 1
    colour, size = None, 1.0
    said_number = False
    for at in range(noun.start - 1, max(floor, noun.start - 6) - 1, -1):
        token = tokens[at]
        if token in COLOURS:
            colour = colour or token
        elif token in _SIZES:
            size = _SIZES[token]
        elif token in _NUMBERS:
            if not said_number and (noun.word.plural or _NUMBERS[token] != 1):
                count = _NUMBERS[token]
                said_number = count != 1
            if token in ("a", "an"):
                break
        elif token in _PLACES or token in _STOPS or token.endswith("ing"):
            break
    if colour is None and tokens[noun.end : noun.end + 1] and tokens[noun.end] in ("is", "are"):
        colour = next((token for token in tokens[noun.end + 1 : noun.end + 3] if token in COLOURS), None)
    return Thing(noun.word.glyph, count, colour, size)


def _relations(tokens: Sequence[str], nouns: Sequence[_Noun]) -> list[Relation]:
    relations: list[Relation] = []
    for at in range(1, len(nouns)):
        between = tokens[nouns[at - 1].end : nouns[at].start]
        said = [_PLACES[token] for token in between if token in _PLACES]
        if relations and relations[-1].place == "between" and "and" in between and not said:
            relations.append(Relation(at - 2, "between", at))
        else:
            relations.append(Relation(at - 1, said[-1] if said else "beside", at))
    return relations


def _first(tokens: Sequence[str], meanings: Mapping[str, _Meaning]) -> _Meaning | None:
    return next((meanings[token] for token in tokens if token in meanings), None)
