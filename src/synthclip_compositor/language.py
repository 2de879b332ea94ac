"""Reads a caption: which of its words can be drawn, and what it says of them.

No grammar: the nouns are found by the longest match in the vocabulary of glyphs, what stands before a noun
(number, size, colour) is taken for its own, and the words between two nouns give their relation.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from synthclip_compositor.glyphs import Word, vocabulary

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

_NUMBERS: Mapping[str, int | None] = {
    **dict.fromkeys(("a", "an", "one", "single", "lone"), 1),
    **dict.fromkeys(("two", "2", "pair", "couple", "both"), 2),
    **dict.fromkeys(("three", "3", "trio"), 3),
    **dict.fromkeys(("four", "4"), 4),
    **dict.fromkeys(("five", "5"), 5),
    **dict.fromkeys(("six", "6", "half-dozen"), 6),
    **dict.fromkeys(
        ("several", "many", "some", "few", "group", "bunch", "herd", "flock", "pile", "row", "dozen"), None
    ),
}

_SIZES: Mapping[str, float] = {
    **dict.fromkeys(("tiny", "miniature", "distant"), 0.6),
    **dict.fromkeys(("small", "little", "baby", "young"), 0.75),
    **dict.fromkeys(("big", "large", "tall", "great"), 1.2),
    **dict.fromkeys(("huge", "giant", "gigantic", "massive", "enormous", "towering"), 1.35),
}

_PLACES: Mapping[str, Place] = {
    **dict.fromkeys(("on", "atop", "onto", "upon", "riding"), "on"),
    **dict.fromkeys(("in", "inside", "into", "within"), "in"),
    **dict.fromkeys(("under", "beneath", "below", "underneath"), "under"),
    **dict.fromkeys(("above", "over"), "above"),
    "behind": "behind",
    "front": "front",
    "left": "left",
    "right": "right",
    "between": "between",
}

_SETTINGS: Mapping[str, Setting] = {
    **dict.fromkeys(("beach", "shore", "sand", "sandy", "coast", "seaside", "tropical"), "beach"),
    **dict.fromkeys(
        ("street", "road", "city", "town", "alley", "sidewalk", "highway", "market", "downtown", "village"),
        "city",
    ),
    **dict.fromkeys(("desert", "dune", "dunes", "savanna", "savannah"), "desert"),
    **dict.fromkeys(
        ("field", "meadow", "grass", "grassy", "lawn", "park", "garden", "farm", "pasture", "backyard"),
        "field",
    ),
    **dict.fromkeys(("forest", "woods", "jungle", "woodland", "trees", "rainforest"), "forest"),
    **dict.fromkeys(("mountain", "mountains", "hill", "hills", "valley", "cliff", "hilltop"), "mountain"),
    **dict.fromkeys(
        ("room", "wall", "floor", "bedroom", "hall", "indoors", "carpet", "rug", "museum", "stage"),
        "room",
    ),
    **dict.fromkeys(
        ("sea", "ocean", "lake", "river", "pond", "water", "waves", "underwater", "pool", "stream", "harbor"),
        "sea",
    ),
    **dict.fromkeys(("sky", "air", "skies", "clouds"), "sky"),
    **dict.fromkeys(("snow", "snowy", "winter", "ice", "icy", "frozen"), "snow"),
    **dict.fromkeys(("space", "galaxy", "cosmos"), "space"),
    **dict.fromkeys(("table", "desk", "shelf", "kitchen", "counter", "countertop", "tabletop"), "table"),
}

_TIMES: Mapping[str, Time] = {
    **dict.fromkeys(
        ("night", "midnight", "moon", "moonlit", "moonlight", "starry", "dark", "stars"), "night"
    ),
    **dict.fromkeys(("sunset", "dusk", "sunrise", "dawn", "evening", "twilight"), "dusk"),
    **dict.fromkeys(("day", "morning", "noon", "sunny", "afternoon", "sun", "sunlight", "bright"), "day"),
}

_WEATHERS: Mapping[str, Weather] = {
    **dict.fromkeys(("rain", "rainy", "raining", "wet", "drizzle"), "rain"),
    **dict.fromkeys(("snowing", "snowfall", "snowflakes", "blizzard"), "snow"),
    **dict.fromkeys(("fog", "foggy", "mist", "misty"), "fog"),
    **dict.fromkeys(("storm", "stormy", "thunder", "lightning", "thunderstorm"), "storm"),
    **dict.fromkeys(("cloud", "cloudy", "overcast"), "cloud"),
    **dict.fromkeys(("sunny", "clear"), "clear"),
}

_Meaning = TypeVar("_Meaning")

_STOPS = frozenset([",", ".", ";", ":", "!", "?", "with", "by", "at", "near"])
"""Where the words that may belong to a noun begin."""

_MAX_THINGS = 4
_LONGEST = max(len(words) for words in vocabulary())


@dataclass(frozen=True)
class _Noun:
    start: int
    end: int
    word: Word


def read(caption: str) -> Scene:
    """What the caption asks for. Any text will do: what is not understood is passed over."""
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
        for length in range(min(_LONGEST, len(tokens) - at), 0, -1):
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
