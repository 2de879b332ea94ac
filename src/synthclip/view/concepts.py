"""Concepts as pages show them: a table of all, and one with its pictures, captions and confusions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow.compute as pc

from synthclip import schema
from synthclip.recipe.training import HELDOUT
from synthclip.run.store import RunDirectory
from synthclip.view.filters import MAX_CHARS, Filter, whole
from synthclip.view.gallery import Gallery, Tile
from synthclip.view.index import Index

PAGE = 100
COLUMNS = {
    "text": ("Concept", "text COLLATE NOCASE"),
    "written": ("Captions kept", "written"),
    "matched": ("Before balancing", "matched"),
    "selected": ("After balancing", "selected"),
    "pictures": ("Pictures", "pictures"),
    "top1": ("Accuracy", "top1"),
}
"""What the table can be sorted by: its heading, and the column of the index."""
_SHOWN = 12
_CAPTIONS = 20
_CHOICES = 1000


@dataclass(frozen=True)
class Order:
    """Which concepts a table shows; its fields are the parameters of the address."""

    q: str = ""
    """A part of the name."""
    sort: str = "text"
    """One of COLUMNS; `-NAME` the highest first."""
    start: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Order":
        sort = parameters.get("sort", "text")
        return cls(
            parameters.get("q", "").strip()[:MAX_CHARS],
            sort if sort.removeprefix("-") in COLUMNS else "text",
            whole(parameters.get("start", ""), 9),
        )

    def address(self, **changes: Any) -> str:
        """The query of an address with these fields changed."""
        values = asdict(replace(self, **changes))
        return urlencode({name: value for name, value in values.items() if value != getattr(Order, name)})

    def by(self, column: str) -> str:
        """The address of the table by a column: by counts the highest first, the other way where it is so."""
        first = column if column in ("text", "top1") else f"-{column}"
        other = column if first.startswith("-") else f"-{column}"
        return self.address(sort=other if self.sort == first else first, start=0)


@dataclass(frozen=True)
class Confusion:
    """A concept of which the model takes held-out pictures for another."""

    concept: Mapping[str, Any]
    """Its row of the index."""
    judged: tuple[tuple[Tile, bool | None], ...]
    """Its held-out pictures, and whether each was classified right; None where it was not judged."""
    taken_for: Mapping[str, Any] | None
    others: tuple[tuple[Tile, None], ...]
    """Pictures of what it was taken for."""


def table(index: Index, order: Order) -> tuple[list[Any], int]:
    """The rows of one page, and how many there are in all. Concepts without a value come last."""
    _, column = COLUMNS[order.sort.removeprefix("-")]
    falling = " DESC" if order.sort.startswith("-") else ""
    part = order.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    values = {"part": f"%{part}%", "start": order.start, "n": PAGE}
    where = "WHERE text LIKE :part ESCAPE '\\'"
    order_by = f"ORDER BY {column} IS NULL, {column}{falling}, id LIMIT :n OFFSET :start"
    rows = index.read(f"SELECT * FROM concept {where} {order_by}", values)
    return rows, index.read(f"SELECT count(*) FROM concept {where}", values)[0][0]


def names(index: Index) -> list[str]:
    """The concepts of a bank that is short enough to choose from."""
    found = [row[0] for row in index.read("SELECT text FROM concept LIMIT ?", (_CHOICES + 1,))]
    return sorted(found) if len(found) <= _CHOICES else []


def find(index: Index, concept: int | str) -> Mapping[str, Any] | None:
    """The row of a concept by its id or its text."""
    column = "id" if isinstance(concept, int) else "text"
    rows = index.read(f"SELECT * FROM concept WHERE {column} = ?", (concept,))
    return dict(rows[0]) if rows else None


def weakest(index: Index, count: int) -> list[Mapping[str, Any]]:
    """Concepts whose held-out pictures are taken for others, those with the most wrong answers first."""
    sql = (
        "SELECT * FROM concept WHERE top1 < 1 AND confused_with IS NOT NULL "
        "ORDER BY tested * (1 - top1) DESC, top1, id LIMIT ?"
    )
    return [dict(row) for row in index.read(sql, (count,))]


def mistaken_for(index: Index, name: str) -> list[Mapping[str, Any]]:
    """The concepts that are mostly taken for this one."""
    sql = "SELECT * FROM concept WHERE confused_with = ? ORDER BY confused DESC, id LIMIT ?"
    return [dict(row) for row in index.read(sql, (name, _SHOWN))]


def captions(index: Index, concept: int) -> list[str]:
    """Some captions that name the concept, each once."""
    sql = (
        "SELECT DISTINCT text FROM caption WHERE id IN "
        "(SELECT caption FROM tag WHERE concept = ? AND images > 0 ORDER BY caption LIMIT ?)"
    )
    return [row[0] for row in index.read(sql, (concept, _CAPTIONS))]


def confusion(
    run: RunDirectory, index: Index, gallery: Gallery, concept: Mapping[str, Any], count: int = _SHOWN
) -> Confusion:
    """A concept's held-out pictures, those classified wrong first, beside those of what it is taken for."""
    where = Filter(concept=concept["text"], split=HELDOUT, variants="all")
    tiles = [tile for tile in gallery.page(where).tiles if tile.concepts == (concept["id"],)]
    right = _classified(run, [tile.key for tile in tiles])
    judged = sorted(((tile, right.get(tile.key)) for tile in tiles), key=lambda one: one[1] is not False)
    other = find(index, concept["confused_with"]) if concept["confused_with"] else None
    where = Filter(concept=other["text"] if other else "", split="train")
    pictures = gallery.page(where).tiles if other else ()
    alone = [tile for tile in pictures if other and tile.concepts == (other["id"],)] or pictures
    others = tuple((tile, None) for tile in alone[:count])
    return Confusion(concept, tuple(judged[:count]), other, others)


def _classified(run: RunDirectory, keys: list[str]) -> dict[str, bool]:
    """Whether zero-shot classified the held-out images of these keys right, for those that it judged."""
    path: Path = run.file("eval", "items.parquet")
    if not path.is_file() or not keys:
        return {}
    of = (pc.field("dataset") == HELDOUT) & (pc.field("task") == "zero_shot") & (pc.field("metric") == "top1")
    items = schema.read_table(path, ["item", "value"], filters=of & pc.field("item").isin(keys))
    return {row["item"]: row["value"] > 0 for row in items.to_pylist()}
