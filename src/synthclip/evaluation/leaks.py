"""What of the evaluation data a run has trained on: captions by shared n-grams, images by perceptual hash.

A synthetic model can still have seen the test set: its language model or its text-to-image model may have
memorised it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from synthclip import schema
from synthclip.evaluation.data import Classification, DataSet, Picture, test_pictures
from synthclip.run.store import RunDirectory
from synthclip.run.threads import in_order
from synthclip.samples import SampleError, Source, images
from synthclip.samples.pictures import ALIKE_BITS, decode, perceptual_hash

NGRAM = 8
"""Words that a training and an evaluation caption must share in a row; shorter captions must be equal."""

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


def find_leaks(run: RunDirectory, datasets: Iterable[DataSet], sources: Iterable[Source] = ()) -> list[Leak]:
    """Test captions and test images that training captions and images come close to: the run's own, and those
    of `sources`, what else it trains on.

    The evaluation data is indexed in memory and the training data streams past it. At most one leak is named
    for each evaluation item: the first in training order.
    """
    known = _Known(list(datasets))
    leaks: list[Leak] = []
    for path in schema.split_tables(run.stage("balance"), "train"):
        for batch in schema.read_batches(path, ["text"], _ROWS_AT_ONCE):
            for text in batch.column(0).to_pylist():
                leaks += known.near_text(text)
    rows = images(schema.split_tables(run.stage("images"), "train"), ["key"])
    for name, value in in_order(lambda row: (row["key"], hash_of(row["jpeg"])), rows):
        leaks += known.near_image(name, value)
    for source in sources:
        for name, text, value in in_order(partial(_read, source), range(len(source))):
            leaks += known.near_text(text)
            leaks += known.near_image(name, value)
    return sorted(leaks, key=lambda leak: leak.kind)


def _read(source: Source, index: int) -> tuple[str, str, int | None]:
    """Name, text and hash of a training sample; a damaged one has neither, and training leaves it out."""
    try:
        sample = source.read(index)
    except SampleError as error:
        return error.name, "", None
    return source.name_of(index), sample.text, hash_of(sample.image)


class _Known:
    """The test captions and images, to be found by what is near them. Each is found once."""

    def __init__(self, datasets: list[DataSet]) -> None:
        self._texts: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._images: list[tuple[str, str]] = []
        self._found: set[tuple[str, str, str]] = set()
        hashes: list[int] = []
        for data in datasets:
            for text in () if isinstance(data, Classification) else data.texts:
                for gram in ngrams(text):
                    self._texts[gram].append((data.name, text))
            pictures = test_pictures(data)
            for name, value in zip(pictures.names, in_order(hash_of, pictures.read()), strict=True):
                if value is not None:
                    self._images.append((data.name, name))
                    hashes.append(value)
        self._hashes = np.array(hashes, np.uint64)

    def near_text(self, text: str) -> Iterator[Leak]:
        for gram in ngrams(text) if self._texts else ():
            for dataset, item in self._texts.get(gram, ()):
                yield from self._once(Leak(dataset, "caption", item, text, gram))

    def near_image(self, name: str, value: int | None) -> Iterator[Leak]:
        for number, bits in near_hashes(self._hashes, value).items() if value is not None else ():
            dataset, item = self._images[number]
            yield from self._once(Leak(dataset, "image", item, name, f"{bits} of 64 bits differ"))

    def _once(self, leak: Leak) -> Iterator[Leak]:
        key = leak.dataset, leak.kind, leak.item
        if key not in self._found:
            self._found.add(key)
            yield leak


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
    """The positions of the hashes that differ from `value` in at most `ALIKE_BITS` bits, each with how many.

    A scan of 50,000 hashes takes less time than the decoding of the image that asks.
    """
    bits = np.bitwise_count(hashes ^ np.uint64(value))
    found = np.flatnonzero(bits <= ALIKE_BITS)
    return dict(zip(found.tolist(), bits[found].tolist(), strict=True))
