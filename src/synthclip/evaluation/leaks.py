"""What of the evaluation data a run has trained on: captions by shared n-grams, images by perceptual hash.

A synthetic model can still have seen the test set: its language model or its text-to-image model may have
memorised it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthclip import schema
from synthclip.evaluation.data import DataSet, Picture, Retrieval, test_pictures
from synthclip.run.store import RunDirectory
from synthclip.samples import images
from synthclip.samples.pictures import decode, perceptual_hash

NGRAM = 8
"""Words that a training and an evaluation caption must share in a row; shorter captions must be equal."""
MAX_BITS = 6
"""Bits of 64 in which the hashes of near-duplicates may differ: what another size and stronger compression
come to. Two unrelated images are so close once in 10^11."""

_ROWS_AT_ONCE = 10_000

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Leak:
    """One evaluation item that training data resembles."""

    dataset: str
    kind: str
    """`caption` or `image`."""
    item: str
    """The evaluation caption, or the image's name."""
    training: str
    """The training caption, or the image's key."""
    detail: str
    """The shared words, or the bits that differ."""


def find_leaks(run: RunDirectory, datasets: Iterable[DataSet]) -> list[Leak]:
    """Test captions and test images that the run's training captions and images come close to.

    The evaluation data is indexed in memory and the training data streams past it. At most one leak is told
    for each evaluation item: the first in training order.
    """
    held = list(datasets)
    leaks = list(_caption_leaks(run, [data for data in held if isinstance(data, Retrieval)]))
    return leaks + list(_image_leaks(run, held))


def ngrams(text: str) -> set[str]:
    """The runs of `NGRAM` words of a text, case and punctuation aside; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return set()
    return {" ".join(words[start : start + NGRAM]) for start in range(max(1, len(words) - NGRAM + 1))}


def hash_of(picture: Picture) -> int | None:
    """The perceptual hash of a picture; None for what is no picture."""
    try:
        pixels = decode(picture) if isinstance(picture, bytes) else np.asarray(picture.convert("RGB"))
    except ValueError:
        return None
    return int(perceptual_hash(pixels))


def near_hashes(hashes: Hashes, value: int) -> dict[int, int]:
    """The positions of the hashes within `MAX_BITS` bits of `value`, each with the bits in which it differs.

    A scan of 50,000 hashes takes less time than the decoding of the image that asks.
    """
    bits = np.bitwise_count(hashes ^ np.uint64(value))
    found = np.flatnonzero(bits <= MAX_BITS)
    return dict(zip(found.tolist(), bits[found].tolist(), strict=True))


def _caption_leaks(run: RunDirectory, datasets: list[Retrieval]) -> Iterator[Leak]:
    index: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for data in datasets:
        for text in data.texts:
            for gram in ngrams(text):
                index[gram].append((data.name, text))
    if not index:
        return
    told: set[tuple[str, str]] = set()
    for path in sorted((run.stage("balance") / "train").glob("*.parquet")):
        for batch in schema.read_batches(path, ["text"], _ROWS_AT_ONCE):
            for text in batch.column(0).to_pylist():
                for gram in ngrams(text):
                    for dataset, item in index.get(gram, ()):
                        if (dataset, item) not in told:
                            told.add((dataset, item))
                            yield Leak(dataset, "caption", item, text, gram)


def _image_leaks(run: RunDirectory, datasets: list[DataSet]) -> Iterator[Leak]:
    names: list[tuple[str, str]] = []
    hashes: list[int] = []
    for data in datasets:
        pictures = test_pictures(data)
        for name, picture in zip(pictures.names, pictures.read(), strict=True):
            value = hash_of(picture)
            if value is not None:
                names.append((data.name, name))
                hashes.append(value)
    index = np.array(hashes, np.uint64)
    told: set[int] = set()
    for row in images(sorted((run.stage("images") / "train").glob("*.parquet")), ["key"]):
        value = hash_of(row["jpeg"])
        if value is None:
            continue
        for number, bits in near_hashes(index, value).items():
            if number not in told:
                told.add(number)
                dataset, name = names[number]
                yield Leak(dataset, "image", name, row["key"], f"{bits} of 64 bits differ")
