"""The captions and images of a run that training never saw."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import keys
from synthclip.errors import SynthClipError
from synthclip.evaluation.data.types import Place, read_places
from synthclip.store import RunDirectory


@dataclass(frozen=True)
class Heldout:
    """T captions and the I images painted from them."""

    texts: tuple[str, ...]
    concept_ids: tuple[tuple[int, ...], ...]
    """The concepts found in each caption."""
    image_keys: tuple[str, ...]
    text_of_image: NDArray[np.int64]
    """Which caption each image was painted from, int64 [I]."""
    places: tuple[Place, ...]
    """Where each image's JPEG bytes lie in a tar."""

    def only(self, images: NDArray[np.int64]) -> "Heldout":
        """The images at these positions, and the captions that have one of them."""
        kept, text_of_image = np.unique(self.text_of_image[images], return_inverse=True)
        return Heldout(
            tuple(self.texts[text] for text in kept),
            tuple(self.concept_ids[text] for text in kept),
            tuple(self.image_keys[image] for image in images),
            text_of_image.astype(np.int64),
            tuple(self.places[image] for image in images),
        )

    def pictures(self) -> Iterator[bytes]:
        """The JPEG bytes of every image."""
        return read_places(self.places)


def read_heldout(run: RunDirectory, limit: int, seed: int) -> Heldout:
    """At most `limit` held-out captions that have an image, drawn by content, with all their images."""
    sidecars = sorted((run.stage("images") / "heldout").glob("*.parquet"))
    painted = [
        pq.read_table(path, columns=["caption_id"])["caption_id"].to_numpy().astype(np.uint64)
        for path in sidecars
    ]
    drawn = _draw(np.unique(np.concatenate(painted)) if painted else np.empty(0, np.uint64), limit, seed)
    texts, concept_ids, found = _captions(run, drawn)
    image_keys: list[str] = []
    of_image: list[NDArray[np.int64]] = []
    places: list[Place] = []
    for path in sidecars:
        table = pq.read_table(path, columns=["key", "caption_id", "shard", "offset", "length"])
        ids = table["caption_id"].to_numpy().astype(np.uint64)
        wanted = np.isin(ids, found)
        of_image.append(np.searchsorted(found, ids[wanted]).astype(np.int64))
        for row in table.filter(wanted).to_pylist():
            image_keys.append(row["key"])
            places.append((path.parent / Path(row["shard"]).name, row["offset"], row["length"]))
    joined = np.concatenate(of_image) if of_image else np.empty(0, np.int64)
    return Heldout(tuple(texts), tuple(concept_ids), tuple(image_keys), joined, tuple(places))


def _draw(ids: keys.U64, limit: int, seed: int) -> keys.U64:
    """The `limit` ids with the lowest draws, ascending: the same whatever the shards are."""
    order = np.argsort(keys.uniform(ids, stream="evaluation", seed=seed), kind="stable")
    return np.sort(ids[order[:limit]])


def _captions(run: RunDirectory, wanted: keys.U64) -> tuple[list[str], list[tuple[int, ...]], keys.U64]:
    texts: dict[int, tuple[str, tuple[int, ...]]] = {}
    for path in sorted((run.stage("balance") / "heldout").glob("*.parquet")):
        table = pq.read_table(path, columns=["caption_id", "text", "concept_ids"])
        here = np.isin(table["caption_id"].to_numpy().astype(np.uint64), wanted)
        for row in table.filter(here).to_pylist():
            texts[row["caption_id"]] = (row["text"], tuple(row["concept_ids"]))
    missing = set(wanted.tolist()) - texts.keys()
    if missing:
        raise SynthClipError(
            f"{run.path}: {len(missing)} held-out images have no caption in balance/heldout "
            f"(caption {next(iter(missing)):016x}): run `synthclip images` again"
        )
    found = np.array(sorted(texts), np.uint64)
    ordered = [texts[caption_id] for caption_id in found.tolist()]
    return [text for text, _ in ordered], [ids for _, ids in ordered], found
