"""The loop of ImageGen: the model paints while the batch before is judged, encoded and written.

Paintings that are refused are tried again, with their next seed, after the shard's first round; so the order
of the samples follows from the captions alone.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from synthclip.backends import Painted, TextToImage
from synthclip.imagegen.filters import Filter, Verdict
from synthclip.keys import image_key, seeds
from synthclip.recipe.imagegen import MAX_VARIANTS, ImagesConfig

_DEPTH = 2
"""Painted batches that may wait to be finished: it bounds the memory for them."""


@dataclass(frozen=True)
class Job:
    """One image to paint."""

    caption_id: int
    caption: str
    concept_ids: tuple[int, ...]
    variant: int
    attempt: int
    seed: int

    @classmethod
    def of(
        cls,
        caption_id: int,
        caption: str,
        concept_ids: tuple[int, ...],
        variant: int,
        attempt: int,
        run_seed: int,
    ) -> Self:
        """With the seed that follows from the caption, the variant and the attempt."""
        index = variant + MAX_VARIANTS * attempt
        seed = int(seeds(caption_id, stream="image", seed=run_seed, index=index))
        return cls(caption_id, caption, concept_ids, variant, attempt, seed)

    @property
    def key(self) -> str:
        return image_key(self.caption_id, self.variant)


@dataclass(frozen=True)
class Accepted:
    job: Job
    scores: dict[str, float]
    jpeg: bytes
    sha256: str
    unread: str
    """The end of the prompt that the model did not read."""


@dataclass(frozen=True)
class Refused:
    job: Job
    scores: dict[str, float]
    reason: str
    final: bool
    """No attempt is left."""


class Painting:
    """Paints jobs; iterate over it for what became of every attempt.

    The model paints in a thread of its own, so it never waits for a resize, an encoder or a disk as long as
    the consumer keeps up.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        model: TextToImage,
        filters: Sequence[Filter],
        config: ImagesConfig,
        seed: int,
    ) -> None:
        self._jobs, self._model, self._filters, self._config = jobs, model, filters, config
        self._run_seed = seed
        self._busy_seconds = 0.0
        self._wall_seconds = 0.0

    def __iter__(self) -> Iterator[Accepted | Refused]:
        todo: list[Job] = []
        keys: set[str] = set()
        for job in self._jobs:
            if not job.caption.strip():
                yield Refused(job, {}, "empty caption", final=True)
            elif job.key in keys:
                yield Refused(job, {}, "key taken", final=True)
            else:
                keys.add(job.key)
                todo.append(job)
        while todo:
            again: list[Job] = []
            for batch, painted in self._painted(todo):
                for result in self._finished(batch, painted):
                    if isinstance(result, Refused) and not result.final:
                        job = result.job
                        again.append(
                            Job.of(
                                job.caption_id,
                                job.caption,
                                job.concept_ids,
                                job.variant,
                                job.attempt + 1,
                                self._run_seed,
                            )
                        )
                    yield result
            todo = again

    @property
    def idle(self) -> float:
        """The share of time so far that the model did not paint."""
        return 1 - self._busy_seconds / max(self._wall_seconds, self._busy_seconds, 1e-9)

    def _painted(self, jobs: Sequence[Job]) -> Iterator[tuple[Sequence[Job], Painted]]:
        """Batches as the model paints them, at most `_DEPTH` ahead of the consumer."""
        done: queue.Queue[tuple[Sequence[Job], Painted] | BaseException | None] = queue.Queue(_DEPTH)
        stop = threading.Event()

        def work() -> None:
            try:
                before = self._wall_seconds
                started = time.monotonic()
                for batch in _batches(jobs, self._model.batch_size):
                    if stop.is_set():
                        return
                    began = time.monotonic()
                    painted = self._model.generate(
                        [job.caption for job in batch], [job.seed for job in batch]
                    )
                    ended = time.monotonic()
                    self._busy_seconds += ended - began
                    self._wall_seconds = before + ended - started
                    done.put((batch, painted))
                done.put(None)
            except BaseException as error:
                done.put(error)

        thread = threading.Thread(target=work, name="painter", daemon=True)
        thread.start()
        try:
            while (item := done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            while thread.is_alive():
                _drain(done)
                thread.join(0.05)

    def _finished(self, batch: Sequence[Job], painted: Painted) -> Iterator[Accepted | Refused]:
        images = painted.images
        if images.shape[1:3] != (self._config.size_px, self._config.size_px):
            images = np.stack([fit(image, self._config.size_px) for image in images])
        verdicts = [Verdict(reason=painted.refused.get(at)) for at in range(len(batch))]
        for filter_ in self._filters:
            filter_.judge(images, [job.caption for job in batch], verdicts)
        for at, (job, image, verdict) in enumerate(zip(batch, images, verdicts, strict=True)):
            if verdict.reason is not None:
                yield Refused(job, verdict.scores, verdict.reason, final=job.attempt >= self._config.retries)
            else:
                jpeg = encode(image, self._config.jpeg_quality)
                sha256 = hashlib.sha256(jpeg).hexdigest()
                yield Accepted(job, verdict.scores, jpeg, sha256, painted.cut.get(at, ""))


def fit(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """The middle square of uint8 [H, W, 3] at [size_px, size_px, 3]; antialiased where it shrinks."""
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size_px:
        return square
    how = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
    resized: Any = cv2.resize(square, (size_px, size_px), interpolation=how)
    return np.asarray(resized, np.uint8)


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of uint8 [H, W, 3] in RGB, chroma at half resolution as in most photographs."""
    import simplejpeg

    jpeg: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return jpeg


def _batches(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _drain(waiting: "queue.Queue[Any]") -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return
