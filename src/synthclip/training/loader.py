"""Batches for the trainer, decoded and cropped by threads ahead of the step that uses them."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthclip.errors import SynthClipError
from synthclip.keys import text_id, uniform
from synthclip.samples import Sample, SampleError, Source
from synthclip.training.augment import DRAWS, random_crop
from synthclip.training.order import Order, Slots
from synthclip.training.texts import SENTENCES, sub_caption

Encode = Callable[[str], Sequence[int]]
"""A text's token ids, start and end tokens included, at most the context length."""

_AHEAD = 3
"""Batches in the making while one is used."""
_CONCEPTS = 16
"""Rare concepts of one caption that are looked at."""
_LENGTH_STEP = 8
"""Token batches come in few lengths, so that kernels and compiled graphs are used again."""


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, H, W, 3] in RGB; `tokens` int64 [B, L], zero after each end token; `text_ids` int64
    [B], equal for equal texts; `concepts` int64 [B, K], each pair's rare concepts padded with -1."""

    images: Tensor
    tokens: Tensor
    text_ids: Tensor
    concepts: Tensor


@dataclass
class BadSamples:
    """The samples passed over: their names, and why. Stops the training above a share of all."""

    limit: int
    reasons: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._refuse_too_many()

    def add(self, bad: SampleError) -> None:
        with self._lock:
            self.reasons[bad.name] = bad.reason
            self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self.reasons) > self.limit:
            name, reason = next(reversed(self.reasons.items()))
            raise SynthClipError(
                f"training: more than {self.limit} samples cannot be used, the last {name}: "
                f"{reason}: mend the shards or raise training.max_bad_share"
            )


class Loader:
    """Makes the batch of any step; the same for any number of threads.

    One process of `world_size` gets its slice of every batch. `image_size(step)` is the edge of a step's
    images in pixels. A token batch is about as long as its longest text, at most `context_length`. A pair's
    `text_id` is that of its whole caption. Of a pair's concepts, those in `rare` are told. A sample that
    cannot be used is replaced by the next one in its source.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        order: Order,
        encode: Encode,
        *,
        image_size: Callable[[int], int],
        crop_scale: tuple[float, float],
        horizontal_flip: float = 0.0,
        text_masking: float = 0.0,
        sub_captions: int | None = None,
        rare: frozenset[int] = frozenset(),
        seed: int,
        bad: BadSamples,
        context_length: int,
        threads: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._sources, self._order, self._encode = sources, order, encode
        self._image_size, self._crop_scale, self._seed = image_size, crop_scale, seed
        self._horizontal_flip, self._context_length = horizontal_flip, context_length
        self._text_masking, self._sub_captions, self._rare = text_masking, sub_captions, rare
        self.bad, self._threads, self._pin_memory = bad, threads, pin_memory
        part = order.batch_size // world_size
        self._mine = slice(rank * part, (rank + 1) * part)

    def batches(self, first: int, end: int) -> Generator[Batch]:
        """The batches of the steps from `first` up to `end`, in order."""
        cv2.setNumThreads(1)  # every image has a thread of ours already
        with ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool:
            waiting: deque[_Pending] = deque()
            try:
                for step in range(first, end):
                    waiting.append(self._start(step, pool))
                    if len(waiting) > _AHEAD:
                        yield self._finish(waiting.popleft())
                while waiting:
                    yield self._finish(waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, step: int, pool: ThreadPoolExecutor) -> "_Pending":
        slots = self._order.slots(step)[self._mine]
        size = self._image_size(step)
        shape = (len(slots), size, size, 3)
        if self._pin_memory:
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:  # NumPy asks for huge pages, whose first use costs a fraction
            images = torch.from_numpy(np.empty(shape, dtype=np.uint8))
        chunk = -(-len(slots) // self._threads)
        parts = [slice(at, at + chunk) for at in range(0, len(slots), chunk)]
        pixels = images.numpy()
        return _Pending(images, [pool.submit(self._fill, slots[part], pixels[part]) for part in parts])

    def _fill(self, slots: Slots, pixels: NDArray[np.uint8]) -> "list[_Text]":
        """Decode the images of the slots into `pixels`; what is known of their texts."""
        crop_BD = self._draws(slots, "crop", DRAWS).tolist()
        flipped_B = (self._draws(slots, "flip", 1)[:, 0] < self._horizontal_flip).tolist()
        kept_BL = None
        if self._text_masking:
            kept_BL = self._draws(slots, "mask", self._context_length) >= self._text_masking
            kept_BL[:, 0] = True
        sentence_BD = self._draws(slots, "sentence", SENTENCES).tolist() if self._sub_captions else None
        texts = []
        places = zip(slots.source_B.tolist(), slots.index_B.tolist(), strict=True)
        for i, (source, index) in enumerate(places):
            sample = self._usable(source, index, crop_BD[i], pixels[i])
            if flipped_B[i]:
                cv2.flip(pixels[i], 1, dst=pixels[i])
            text = sample.text
            if self._sub_captions and sentence_BD:
                text = sub_caption(text, self._sub_captions, sentence_BD[i])
            ids = self._encode(text)
            if kept_BL is not None:
                ids = [*itertools.compress(ids[:-1], kept_BL[i].tolist()), ids[-1]]
            rare = self._rare.intersection(sample.concept_ids) if self._rare else ()
            texts.append(_Text(ids, text_id(sample.text), sorted(rare)))
        return texts

    def _draws(self, slots: Slots, stream: str, count: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) for each sample, [B, count]; every pass draws others."""
        index = slots.pass_B[:, None] * count + np.arange(count)
        ids = slots.index_B[:, None] * 64 + slots.source_B[:, None]
        return uniform(ids, stream=stream, seed=self._seed, index=index)

    def _usable(self, number: int, index: int, crop_D: Sequence[float], pixels: NDArray[np.uint8]) -> Sample:
        """The sample, or the next one that can be used, with its crop in `pixels`."""
        source = self._sources[number]
        for step in range(len(source)):
            place = (index + step) % len(source)
            try:
                sample = source.read(place)
                try:
                    random_crop(sample.image, self._crop_scale, crop_D, pixels)
                    return sample
                except ValueError as error:
                    raise SampleError("undecodable image", f"{source.name_of(place)} ({error})") from None
            except SampleError as bad:
                self.bad.add(bad)
        raise SynthClipError("training: no sample of a source can be used")

    def _finish(self, pending: "_Pending") -> Batch:
        texts = [text for future in pending.texts for text in future.result()]
        longest = max(len(text.ids) for text in texts)
        length = min(self._context_length, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        tokens = np.zeros((len(texts), length), dtype=np.int64)
        # Processes exchange the concepts, so that all must give them the same width.
        concepts = np.full((len(texts), _CONCEPTS if self._rare else 0), -1, dtype=np.int64)
        for i, text in enumerate(texts):
            tokens[i, : len(text.ids)] = text.ids
            known = text.concepts[: concepts.shape[1]]
            concepts[i, : len(known)] = known
        text_ids = np.array([text.id for text in texts], dtype=np.uint64).view(np.int64)
        return Batch(pending.images, *(torch.from_numpy(part) for part in (tokens, text_ids, concepts)))


@dataclass(frozen=True)
class _Text:
    ids: Sequence[int]
    id: int
    concepts: list[int]


@dataclass(frozen=True)
class _Pending:
    images: Tensor
    texts: list[Future[list[_Text]]]
