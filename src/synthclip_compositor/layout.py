"""Where things stand in the picture.

The picture is cut into columns; what stands on, in, under, above, behind or in front of something shares its
column. Coordinates are shares of the side: (0, 0) is the upper left corner, (1, 1) the lower right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from synthclip_compositor.language import Place, Relation, Scene, Thing

_MOST_OF_A_KIND = 6
_SMALLEST, _LARGEST = 0.16, 0.9
_ALONE = (0.62, 0.88)
"""Side of a single thing in the picture."""


@dataclass(frozen=True)
class Piece:
    """One glyph to draw."""

    glyph: str
    colour: str | None
    x: float
    """Of its middle."""
    base: float
    """Of its lower edge."""
    side: float
    """Of its longer side."""
    depth: int = 0
    """The smaller is drawn earlier."""


@dataclass(frozen=True)
class _Member:
    """A thing in a column, and how it stands to the one below it."""

    thing: int
    place: Place = "beside"


_Column = list[_Member]


def place(
    scene: Scene, floating: bool, height: Callable[[str], float], rng: np.random.Generator
) -> list[Piece]:
    """The pieces in the order in which they are drawn.

    `floating`: nothing needs ground under it. `height` of a glyph is a share of its longer side.
    """
    columns = _columns(scene, rng)
    pieces = [
        piece
        for at, column in enumerate(columns)
        for piece in _column(
            scene, column, (at / len(columns), (at + 1) / len(columns)), floating, height, rng
        )
    ]
    return sorted(pieces, key=lambda piece: piece.depth)


def _columns(scene: Scene, rng: np.random.Generator) -> list[_Column]:
    columns: list[_Column] = [[_Member(0)]] if scene.things else []
    for relation in scene.relations:
        subject, other = relation.subject, relation.object
        known = {member.thing for column in columns for member in column}
        new = other if subject in known else subject
        old = subject if new == other else other
        home = next(at for at, column in enumerate(columns) if any(m.thing == old for m in column))
        if relation.place in ("beside", "left", "right", "between"):
            columns.insert(_slot(relation, new == other, home, len(columns), rng), [_Member(new)])
        else:
            columns[home] = _stacked(columns[home], relation, new)
    return columns


def _slot(relation: Relation, new_is_object: bool, home: int, columns: int, rng: np.random.Generator) -> int:
    """Before which column the new one goes."""
    if relation.place == "left":
        return home + 1 if new_is_object else home
    if relation.place == "right":
        return home if new_is_object else home + 1
    if relation.place == "between":
        # The first partner goes to the left of what it flanks, the second to the right.
        return home if columns == 1 else home + 1
    return home + int(rng.integers(2))


def _stacked(column: _Column, relation: Relation, new: int) -> _Column:
    """The column with one more: first below, last above; `behind` counts as above, with its own overlap."""
    upside_down = relation.place in ("under", "front")
    mutual: Place = {"under": "above", "front": "behind"}.get(relation.place, relation.place)  # type: ignore[assignment]
    new_is_subject = new == relation.subject
    if new_is_subject != upside_down:
        return [*column, _Member(new, mutual)]
    first, *others = column
    return [_Member(new), replace(first, place=mutual), *others]


def _column(
    scene: Scene,
    column: _Column,
    span: tuple[float, float],
    floating: bool,
    height: Callable[[str], float],
    rng: np.random.Generator,
) -> Iterator[Piece]:
    width = span[1] - span[0]
    lifts = [_LIFT.get(member.place, 1.0) for member in column[1:]]
    if width == 1 and not lifts:
        side = rng.uniform(*_ALONE)
    else:
        side = rng.uniform(0.9, 1.1) * min(width * 1.1, 0.92 / (1 + sum(lifts)))
    base = rng.uniform(0.72, 0.95) if floating and not lifts else rng.uniform(0.82, 0.96)
    below = 0.0
    for level, member in enumerate(column):
        thing = scene.things[member.thing]
        rows = _rows(thing, rng)
        most = max(len(row) for row in rows)
        # A crowd shares the room of one, a little enlarged.
        each = side if most == 1 else (1.25 * width if not lifts else 1.3 * side) / most
        each = float(np.clip(each * thing.size, _SMALLEST, _LARGEST))
        if level:
            base -= below * lifts[level - 1]
        tall = each * height(thing.glyph) * (1 + _ROW_LIFT * (len(rows) - 1))
        base = max(base, tall * 0.94)
        depth = -level if member.place in ("behind", "in") else level
        yield from _crowd(thing, rows, span, base, each, _ROW_LIFT * each * height(thing.glyph), depth, rng)
        below = tall


_ROW_LIFT = 0.65
"""By how much of its height the row at the back of a crowd is raised."""

_LIFT: dict[Place, float] = {"on": 0.85, "in": 0.6, "above": 1.05, "behind": 0.45}
"""By how much of what is below a thing its lower edge is raised."""


def _rows(thing: Thing, rng: np.random.Generator) -> list[range]:
    count = int(rng.integers(3, 6)) if thing.count is None else min(thing.count, _MOST_OF_A_KIND)
    if count <= 3:
        return [range(count)]
    return [range(count // 2), range(count - count // 2)]


def _crowd(
    thing: Thing,
    rows: Sequence[range],
    span: tuple[float, float],
    base: float,
    side: float,
    raised: float,
    depth: int,
    rng: np.random.Generator,
) -> Iterator[Piece]:
    """The pieces of one thing, the row at the back first."""
    middle = (span[0] + span[1]) / 2 + rng.uniform(-0.08, 0.08)
    for back in reversed(range(len(rows))):
        row = rows[back]
        for at in row:
            x = middle + (at - (len(row) - 1) / 2) * side * 0.92 + rng.uniform(-0.02, 0.02)
            x = float(np.clip(x, side * 0.46, 1 - side * 0.46))
            yield Piece(thing.glyph, thing.colour, x, base - back * raised, side, depth)
