"""Images by filter, page after page, out of a run's index.

A page continues after the last image of the page before it, never at a count of images, so that a later page
costs no more than the first. The work for a page is bounded: where few images match among many, a page may be
short of images and still name a next one.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from synthclip.view.filters import Filter, match_of, whole
from synthclip.view.index import SHARD_BITS, Index, signed_id

PAGE = 60
MAX_PAGE = 200
_CHUNK = 1000
_MAX_CHUNKS = 50
"""Of captions or scores that are looked through for one page."""
_COUNTED = 20_000
"""Captions up to which matches are counted, and sorted by score in memory."""
# A `+facet` is not looked up by its index, where a caption or the order leads to far fewer images.
_COLUMNS = (
    "i.id, i.key, i.variant, i.attempt, i.seed, i.scores, i.caption, i.facet, hex(i.sha256) AS sha256, "
    "i.length, c.text, c.concepts, c.content"
)
_JOINED = "image i JOIN caption c ON c.id = i.caption"


@dataclass(frozen=True)
class Tile:
    """One image, kept or refused, as the index has it."""

    id: int
    key: str
    split: str
    painter: str
    reason: str
    """Why it was refused; empty where it was kept. Of what was refused no picture is there."""
    text: str
    concepts: tuple[int, ...]
    content: int | None
    """The id of its caption."""
    variant: int | None
    attempt: int | None
    seed: int | None
    scores: Mapping[str, float]
    sha256: str


class Facet(NamedTuple):
    """What some images have in common, and how many these are."""

    split: str
    painter: str
    reason: str
    """Why they were refused; empty where they were kept."""
    leads: bool
    """Whether they are the first ones kept of their caption and painter."""
    images: int


@dataclass(frozen=True)
class Page:
    tiles: tuple[Tile, ...]
    after: str
    """What the address of the next page names; empty on the last page."""


class Gallery:
    """Looks images up in an index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def facets(self) -> dict[int, Facet]:
        """The facets of the images, by id."""
        rows = self._index.read(
            "SELECT id, split, painter, reason, leads, sum(images) FROM facet JOIN tally ON facet = id "
            "GROUP BY id"
        )
        return {
            facet: Facet(split, painter, reason, bool(leads), images)
            for facet, split, painter, reason, leads, images in rows
        }

    def scores(self) -> list[str]:
        """The names of all scores."""
        names: list[str] = []
        while found := self._index.read(
            "SELECT name FROM score WHERE name > ? LIMIT 1", (names[-1] if names else "",)
        ):
            names.append(found[0][0])
        return names

    def count(self, where: Filter) -> int | None:
        """How many images match, where that is known or quick to find out."""
        facets = self._chosen(where)
        if not where.is_narrow:
            counts = self.facets()
            return sum(counts[facet].images for facet in facets)
        search = _Search(self._index, where)
        captions = search.captions(0, _COUNTED + 1)
        if len(captions) > _COUNTED:
            return None
        total = 0
        for part in _chunks(captions):
            sql = (
                f"SELECT count(*) FROM image WHERE caption IN ({_list(part)}) AND +facet IN ({_list(facets)})"
            )
            total += int(self._index.read(sql)[0][0])
        return total

    def page(self, where: Filter, after: str = "", size: int = PAGE) -> Page:
        """The images after those before; `after` is empty for the first page."""
        facets = self._chosen(where)
        size = max(1, min(size, MAX_PAGE))
        name = where.sort.removeprefix("-")
        if name:
            return self._by_score(where, facets, name, where.sort.startswith("-"), after, size)
        if where.is_narrow:
            return self._by_caption(where, facets, after, size)
        start = whole(after)
        sql = "SELECT id FROM image WHERE facet = ? AND id > ? ORDER BY id LIMIT ?"
        parts = [[row[0] for row in self._index.read(sql, (facet, start, size + 1))] for facet in facets]
        ids = list(heapq.merge(*parts))[: size + 1]
        return Page(self.tiles(ids[:size]), str(ids[size - 1]) if len(ids) > size else "")

    def tiles(self, ids: Sequence[int]) -> tuple[Tile, ...]:
        """The images of these ids, in this order; ids that are no more are left out."""
        rows: dict[int, Any] = {}
        for part in _chunks(ids):
            sql = f"SELECT {_COLUMNS} FROM {_JOINED} WHERE i.id IN ({_list(part)})"
            rows.update((row["id"], row) for row in self._index.read(sql))
        facets = self.facets() if rows else {}
        return tuple(_tile(rows[one], facets) for one in ids if one in rows)

    def find(self, split: str, key: str) -> list[Tile]:
        """The images of a split that have this key: the kept one, then attempts that were refused."""
        sql = (
            "SELECT i.id FROM image i JOIN facet f ON f.id = i.facet WHERE i.key = ? AND f.split = ? "
            "ORDER BY f.reason <> '', i.attempt"
        )
        return list(self.tiles([row[0] for row in self._index.read(sql, (key, split))]))

    def siblings(self, tile: Tile) -> tuple[Tile, ...]:
        """All images of the same caption, kept ones first."""
        if tile.content is None:
            return ()
        sql = (
            "SELECT i.id FROM caption c JOIN image i ON i.caption = c.id JOIN facet f ON f.id = i.facet "
            "WHERE c.content = ? ORDER BY f.reason <> '', i.id LIMIT ?"
        )
        rows = self._index.read(sql, (signed_id(tile.content), MAX_PAGE))
        return self.tiles([row[0] for row in rows])

    def latest(self, count: int) -> tuple[Tile, ...]:
        """The images that were indexed last, one of each caption."""
        sql = "SELECT id FROM image WHERE facet = ? ORDER BY id DESC LIMIT ?"
        facets = self._chosen(Filter())
        ids = (row[0] for facet in facets for row in self._index.read(sql, (facet, count)))
        return self.tiles(heapq.nlargest(count, ids))

    def picture_of(self, concepts: Sequence[int]) -> dict[int, Tile]:
        """For each of the concepts one kept image of it."""
        sql = (
            "SELECT i.id FROM tag t CROSS JOIN image i ON i.caption = t.caption "
            "JOIN facet f ON f.id = i.facet WHERE t.concept = ? AND t.images > 0 AND f.reason = '' LIMIT 1"
        )
        found = {concept: self._index.read(sql, (concept,)) for concept in concepts}
        ids = {concept: rows[0][0] for concept, rows in found.items() if rows}
        tiles = {tile.id: tile for tile in self.tiles(list(ids.values()))}
        return {concept: tiles[image] for concept, image in ids.items() if image in tiles}

    def place(self, image: int) -> tuple[str, int, int, str] | None:
        """(shard, offset, length, SHA-256) of a kept image's JPEG in its tar."""
        rows = self._index.read(
            "SELECT s.name, i.offset, i.length, lower(hex(i.sha256)) FROM image i "
            f"JOIN shard s ON s.id = i.id >> {SHARD_BITS} WHERE i.id = ? AND i.sha256 IS NOT NULL",
            (image,),
        )
        return tuple(rows[0]) if rows else None

    def concepts(self, ids: Iterable[int]) -> dict[int, str]:
        """The names of concepts."""
        rows = self._index.read(f"SELECT id, text FROM concept WHERE id IN ({_list(ids)})")
        return {row[0]: row[1] for row in rows}

    def _chosen(self, where: Filter) -> list[int]:
        show = "refused" if where.reason else where.show
        return [
            facet
            for facet, of in self.facets().items()
            if where.split in ("", of.split)
            and where.painter in ("", of.painter)
            and where.reason in ("", of.reason)
            and (show == "all" or (show == "refused") == bool(of.reason))
            and (where.variants == "all" or of.leads or of.reason)
        ]

    def _by_caption(self, where: Filter, facets: Sequence[int], after: str, size: int) -> Page:
        """In the order of captions, whose images stand together."""
        search = _Search(self._index, where)
        first, _, last = after.partition(".")
        caption, image = whole(first), whole(last)
        found: list[tuple[int, int]] = []
        for _ in range(_MAX_CHUNKS):
            captions = search.captions(caption, _CHUNK)
            sql = (
                f"SELECT caption, id FROM image WHERE caption IN ({_list(captions)}) "
                f"AND +facet IN ({_list(facets)}) AND (caption, id) > (?, ?) ORDER BY caption, id LIMIT ?"
            )
            rows = self._index.read(sql, (caption, image, size + 1 - len(found)))
            found += [(row[0], row[1]) for row in rows]
            if len(found) > size:
                end = found[size - 1]
                return Page(self.tiles([one for _, one in found[:size]]), f"{end[0]}.{end[1]}")
            if len(captions) < _CHUNK:
                return Page(self.tiles([one for _, one in found]), "")
            caption, image = captions[-1] + 1, 0
        return Page(self.tiles([one for _, one in found]), f"{caption}.0")

    def _by_score(
        self, where: Filter, facets: Sequence[int], name: str, rising: bool, after: str, size: int
    ) -> Page:
        start, _, last = after.partition("/")
        at = (_number(start), whole(last)) if after else None
        if where.is_narrow:
            search = _Search(self._index, where)
            captions = search.captions(0, _COUNTED + 1)
            if len(captions) > _COUNTED:
                return self._searched_by_score(search, self._scored(facets, name, rising, at), size)
            rows = self._few_by_score(captions, facets, name, rising, at)[: size + 1]
        else:
            rows = list(islice(self._scored(facets, name, rising, at), size + 1))
        return self._page_of(rows, size)

    def _searched_by_score(self, search: "_Search", scored: Iterator[tuple[float, int]], size: int) -> Page:
        """Where captions match in such numbers that the images are gone through in their order instead."""
        found: list[tuple[float, int]] = []
        for _ in range(_MAX_CHUNKS):
            part = list(islice(scored, _CHUNK))
            right = search.among([image for _, image in part])
            found += [row for row in part if row[1] in right]
            if len(found) > size or len(part) < _CHUNK:
                return self._page_of(found, size)
        return Page(self.tiles([image for _, image in found]), _place_of(part[-1]))

    def _page_of(self, rows: Sequence[tuple[float, int]], size: int) -> Page:
        following = _place_of(rows[size - 1]) if len(rows) > size else ""
        return Page(self.tiles([image for _, image in rows[:size]]), following)

    def _few_by_score(
        self,
        captions: Sequence[int],
        facets: Sequence[int],
        name: str,
        rising: bool,
        after: tuple[float, int] | None,
    ) -> list[tuple[float, int]]:
        found = []
        for part in _chunks(captions):
            sql = f"SELECT id, scores FROM image WHERE caption IN ({_list(part)})"
            for row in self._index.read(f"{sql} AND +facet IN ({_list(facets)})"):
                value = json.loads(row[1]).get(name)
                if value is not None:
                    found.append((value, row[0]))
        found.sort(reverse=not rising)
        if after is None:
            return found
        return [one for one in found if (one > after if rising else one < after)]

    def _scored(
        self, facets: Sequence[int], name: str, rising: bool, after: tuple[float, int] | None
    ) -> Iterator[tuple[float, int]]:
        sign, order = (">", "") if rising else ("<", " DESC")

        def of_facet(facet: int) -> Iterator[tuple[float, int]]:
            at = after
            while True:
                later = f"AND (value, image) {sign} (?, ?)" if at else ""
                sql = (
                    f"SELECT value, image FROM score WHERE name = ? AND facet = ? {later} "
                    f"ORDER BY value{order}, image{order} LIMIT {MAX_PAGE + 1}"
                )
                rows = self._index.read(sql, (name, facet, *(at or ())))
                yield from ((row[0], row[1]) for row in rows)
                if len(rows) <= MAX_PAGE:
                    return
                at = rows[-1][0], rows[-1][1]

        return heapq.merge(*map(of_facet, facets), reverse=not rising)


class _Search:
    """The captions that hold the words of a filter, and its concept."""

    def __init__(self, index: Index, where: Filter) -> None:
        self._index = index
        self._match = match_of(where.q)
        self._concept = None
        self._nothing = bool(where.q and not self._match)
        if where.concept:
            found = index.read("SELECT id FROM concept WHERE text = ?", (where.concept,))
            self._concept = found[0][0] if found else None
            self._nothing |= not found

    def captions(self, start: int, count: int) -> list[int]:
        """The first ids from `start` on."""
        if self._nothing:
            return []
        values: dict[str, Any] = {"match": self._match, "concept": self._concept, "start": start, "n": count}
        words = "SELECT rowid FROM words WHERE words MATCH :match"
        if self._concept is None:
            sql = f"{words} AND rowid >= :start ORDER BY rowid LIMIT :n"
        else:
            also = f"AND caption IN ({words})" if self._match else ""
            sql = (
                f"SELECT caption FROM tag WHERE concept = :concept AND caption >= :start {also} "
                "ORDER BY caption LIMIT :n"
            )
        return [row[0] for row in self._index.read(sql, values)]

    def among(self, images: Sequence[int]) -> set[int]:
        """Those of the images whose captions are found."""
        if self._nothing or not images:
            return set()
        tests = []
        if self._match:
            tests.append("caption IN (SELECT rowid FROM words WHERE words MATCH :match AND rowid IN of)")
        if self._concept is not None:
            tests.append("caption IN (SELECT caption FROM tag WHERE concept = :concept AND caption IN of)")
        sql = (
            f"WITH of AS MATERIALIZED (SELECT DISTINCT caption FROM image WHERE id IN ({_list(images)})) "
            f"SELECT id FROM image WHERE id IN ({_list(images)}) AND {' AND '.join(tests)}"
        )
        values = {"match": self._match, "concept": self._concept}
        return {row[0] for row in self._index.read(sql, values)}


def _tile(row: Any, facets: Mapping[int, Facet]) -> Tile:
    of = facets[row["facet"]]
    content = row["content"]
    return Tile(
        row["id"],
        row["key"] or "",
        of.split,
        of.painter,
        of.reason,
        row["text"],
        tuple(json.loads(row["concepts"])),
        None if content is None else content % (1 << 64),
        row["variant"],
        row["attempt"],
        None if row["seed"] is None else int(row["seed"]),
        json.loads(row["scores"]),
        (row["sha256"] or "").lower(),
    )


def _place_of(row: tuple[float, int]) -> str:
    return f"{row[0]!r}/{row[1]}"


def _list(ids: Iterable[int]) -> str:
    return ", ".join(map(str, map(int, ids)))


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _number(text: str) -> float:
    try:
        return float(text[:40])
    except ValueError:
        return 0.0
