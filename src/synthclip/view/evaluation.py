"""Evaluations as pages show them: of one run, and of several side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.evaluation.results import (
    Difference,
    Key,
    compare_figures,
    key_of,
    read_results,
    tables_of,
)
from synthclip.recipe.training import HELDOUT
from synthclip.run.store import RunDirectory
from synthclip.view.gallery import Gallery, Tile
from synthclip.view.index import Index

_COMPARED = 24
"""Captions whose pictures are shown side by side."""
_LOOKED_AT = 2000


@dataclass(frozen=True)
class Compared:
    """One figure of several runs."""

    key: Key
    values: tuple[Mapping[str, Any] | None, ...]
    """Rows of `schema.EVAL_RESULT`, one for each run that has it."""
    differences: tuple[Difference | None, ...]
    """To the first run."""


def nearest(run: RunDirectory, gallery: Gallery) -> dict[str, list[tuple[Tile, bool]]]:
    """By held-out caption the images that the model holds nearest to it; True for its own."""
    path = run.file("eval", "nearest.parquet")
    found: dict[str, list[tuple[Tile, bool]]] = {}
    for row in schema.read_table(path).to_pylist() if path.is_file() else ():
        if tiles := gallery.find(HELDOUT, row["key"]):
            found.setdefault(row["text"], []).append((tiles[0], row["right"]))
    return found


@lru_cache(maxsize=8)
def compare(runs: Sequence[Path], state: object) -> list[Compared]:
    """Every figure that a run has, with its difference to the first run where both have it.

    The last answers are remembered as long as `state_of` the runs is the same.
    """
    figures = [_figures(run) for run in runs]
    differences: list[dict[Key, Difference]] = [{}]
    for run in runs[1:]:
        try:
            found = compare_figures(runs[0], run)
        except SynthClipError:  # no figure in common
            found = []
        differences.append({(one.dataset, one.task, one.metric): one for one in found})
    return [
        Compared(
            key,
            tuple(of_run.get(key) for of_run in figures),
            tuple(of_run.get(key) for of_run in differences),
        )
        for key in dict.fromkeys(key for of_run in figures for key in of_run)
    ]


def state_of(runs: Sequence[Path]) -> tuple[object, ...]:
    """What differs once one of the runs was judged again."""
    paths = [path for run in runs for path in tables_of(run, "results.parquet")]
    return tuple((path, path.stat().st_mtime_ns) for path in paths)


def same_captions(
    galleries: Sequence[tuple[Index, Gallery]],
) -> list[tuple[str, tuple[Tile | None, ...]]]:
    """Held-out captions, else any, that the first run shares with another, with a picture from each run."""
    (index, _), *_ = galleries
    for split in (HELDOUT, "train"):
        sql = (
            "SELECT DISTINCT c.content, c.text FROM facet f JOIN image i ON i.facet = f.id "
            "JOIN caption c ON c.id = i.caption WHERE f.split = ? AND f.reason = '' LIMIT ?"
        )
        rows: list[tuple[str, tuple[Tile | None, ...]]] = []
        for content, text in index.read(sql, (split, _LOOKED_AT)):
            tiles = tuple(_of_caption(*one, content, split) for one in galleries)
            if sum(tile is not None for tile in tiles) > 1:
                rows.append((text, tiles))
            if len(rows) == _COMPARED:
                break
        if rows:
            return rows
    return []


def _of_caption(index: Index, gallery: Gallery, content: int, split: str) -> Tile | None:
    sql = (
        "SELECT i.id FROM caption c JOIN image i ON i.caption = c.id JOIN facet f ON f.id = i.facet "
        "WHERE c.content = ? AND f.split = ? AND f.reason = '' ORDER BY i.id LIMIT 1"
    )
    rows = index.read(sql, (content, split))
    tiles = gallery.tiles([row[0] for row in rows])
    return tiles[0] if tiles else None


def _figures(run: Path) -> dict[Key, Mapping[str, Any]]:
    return {key_of(row): row for path in tables_of(run, "results.parquet") for row in read_results(path)}
