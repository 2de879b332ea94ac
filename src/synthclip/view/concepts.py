"""The concepts of a run: how many captions and images each has, and how well the model tells it."""

from dataclasses import dataclass
from typing import Any

from synthclip.view.index import Index

PAGE = 100
SORTS = {
    "text": "text COLLATE NOCASE",
    "written": "written",
    "matched": "matched",
    "selected": "selected",
    "pictures": "pictures",
    "top1": "top1",
}
"""What the table can be sorted by, and the column of the index."""


@dataclass(frozen=True)
class Order:
    """Which concepts a table shows; its fields are the parameters of the address."""

    q: str = ""
    """A part of the name."""
    sort: str = "text"
    """One of SORTS; `-NAME` the highest first."""
    start: int = 0

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")


def table(index: Index, order: Order) -> tuple[list[Any], int]:
    """The rows of one page, and how many there are in all. Concepts without a value come last."""
    column = SORTS.get(order.column, SORTS["text"])
    falling = " DESC" if order.sort.startswith("-") else ""
    part = order.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    values = {"part": f"%{part}%", "start": order.start, "n": PAGE}
    where = "WHERE text LIKE :part ESCAPE '\\'"
    order_by = f"ORDER BY {column} IS NULL, {column}{falling}, id LIMIT :n OFFSET :start"
    rows = index.read(f"SELECT * FROM concept {where} {order_by}", values)
    return rows, index.read(f"SELECT count(*) FROM concept {where}", values)[0][0]
