"""The captions and images of a run that training never saw, and a model's figures on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import keys
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.metrics import Measurement, retrieval, zero_shot
from synthclip.keys import digest
from synthclip.run.store import Manifest, RunDirectory
from synthclip.samples.files import Place, read_places

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {"concepts": "", "images": "heldout/"}
"""The stages whose files make the held-out set, and how the paths of those files begin."""

_RECALL_AT = (1, 5)


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

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the images whose caption names exactly one concept: their concepts, and their positions."""
        one = np.array([ids[0] if len(ids) == 1 else -1 for ids in self.concept_ids], np.int64)
        of_image = one[self.text_of_image]
        single = np.flatnonzero(of_image >= 0)
        return of_image[single], single


@dataclass(frozen=True)
class Judged:
    """What a model makes of a held-out set."""

    seen: Heldout
    """The images that could be read, and their captions."""
    texts_TD: "Tensor"
    images_ID: "Tensor"
    figures: list[tuple[Measurement, Sequence[str]]]
    """Each with the names of the items it was taken over."""
    labels: NDArray[np.int64]
    """The concepts of the zero-shot images, int64 [Z]."""
    ranked: NDArray[np.int64]
    """The concepts ranked for each of them, int64 [Z, K]."""
    unreadable: int


def judge(
    encoder: Encoder,
    heldout: Heldout,
    names: Sequence[str],
    templates: Sequence[str],
    tick: Callable[[int], None] | None = None,
) -> Judged:
    """Zero-shot over the concepts `names`, and retrieval, of a held-out set that has images.

    Zero-shot takes the images whose caption names exactly one concept, so that there is one right answer;
    retrieval takes all. Where several images were painted from a caption, any of them counts.
    """
    encoded = encoder.images(heldout.pictures(), tick)
    seen = heldout.only(encoded.kept)
    texts_TD, images_ID = encoder.texts(seen.texts), encoded.features
    pairs = np.stack([seen.text_of_image, np.arange(len(seen.image_keys))], axis=1)
    by_text = retrieval("image_retrieval", texts_TD, images_ID, pairs, _RECALL_AT)
    by_image = retrieval("text_retrieval", images_ID, texts_TD, pairs[:, ::-1], _RECALL_AT)
    figures: list[tuple[Measurement, Sequence[str]]] = [
        *((figure, seen.texts) for figure in by_text),
        *((figure, seen.image_keys) for figure in by_image),
    ]
    labels, single = seen.labels()
    ranked = np.empty((0, 0), np.int64)
    if len(single):
        classifier_CD = encoder.classifier(names, templates)
        measured, ranked = zero_shot(images_ID[single], labels, classifier_CD)
        keys_of = [seen.image_keys[image] for image in single]
        figures += [(figure, keys_of) for figure in measured]
    return Judged(seen, texts_TD, images_ID, figures, labels, ranked, len(encoded.unreadable))


def digest_of(manifests: Iterable[Manifest], start: str) -> str:
    """What tells when the files whose paths begin with `start` change."""
    entries = [entry for manifest in manifests for entry in manifest.files if entry.path.startswith(start)]
    return digest(*(part for entry in entries for part in (entry.path, entry.sha256)))


def read_heldout(run: RunDirectory, limit: int, seed: int) -> Heldout:
    """At most `limit` held-out captions that have an image, drawn by content, with all their images."""
    sidecars = sorted((run.stage("images") / "heldout").glob("*.parquet"))
    painted = [
        pq.read_table(path, columns=["caption_id"])["caption_id"].to_numpy().astype(np.uint64)
        for path in sidecars
    ]
    drawn = _draw(np.unique(np.concatenate(painted)) if painted else np.empty(0, np.uint64), limit, seed)
    texts: dict[int, tuple[str, tuple[int, ...]]] = {}
    image_keys: list[str] = []
    of_image: list[NDArray[np.int64]] = []
    places: list[Place] = []
    columns = ["key", "caption_id", "text", "concept_ids", "offset", "length"]
    for path in sidecars:
        table = pq.read_table(path, columns=columns)
        ids = table["caption_id"].to_numpy().astype(np.uint64)
        wanted = np.isin(ids, drawn)
        of_image.append(np.searchsorted(drawn, ids[wanted]).astype(np.int64))
        for row in table.filter(wanted).to_pylist():
            texts[row["caption_id"]] = row["text"], tuple(row["concept_ids"])
            image_keys.append(row["key"])
            places.append((path.with_suffix(".tar"), row["offset"], row["length"]))
    joined = np.concatenate(of_image) if of_image else np.empty(0, np.int64)
    ordered = [texts[caption_id] for caption_id in drawn.tolist()]
    return Heldout(
        tuple(text for text, _ in ordered),
        tuple(concepts for _, concepts in ordered),
        tuple(image_keys),
        joined,
        tuple(places),
    )


def _draw(ids: keys.U64, limit: int, seed: int) -> keys.U64:
    """The `limit` ids with the lowest draws, ascending: the same whatever the shards are."""
    order = np.argsort(keys.uniform(ids, stream="evaluation", seed=seed), kind="stable")
    return np.sort(ids[order[:limit]])
