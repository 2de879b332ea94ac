"""The loop of ImageGen: the model paints while the batches before are judged, encoded, looked at and written.

Paintings that are refused are tried again, with their next seed, after the shard's first round; so the order
of the samples follows from the captions alone.
"""

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from synthclip.backends import Painted, TextToImage
from synthclip.imagegen.filters import Filter, Verdict
from synthclip.imagegen.vision import Looks
from synthclip.keys import image_key, seeds, uniform
from synthclip.recipe.imagegen import MAX_VARIANTS, ImagesConfig
from synthclip.run.threads import in_order
from synthclip.samples.pictures import encode, fit

_DEPTH = 2
"""Painted batches that may wait to be finished: it bounds the memory for them."""


@dataclass(frozen=True)
class Job:
    """One image to paint."""

    caption_id: int
    caption: str
    concept_ids: tuple[int, ...]
    variant: int
    run_seed: int
    attempt: int = 0
    painter: int = 0
    """Which of the models paints it."""
    seed_id: int | None = None
    """The caption whose seed it is painted from, where that is another one."""
    known_seed: int | None = None
    """The seed of an image that is painted again."""

    @property
    def seed(self) -> int:
        """What follows from the caption, the variant and the attempt."""
        if self.known_seed is not None:
            return self.known_seed
        index = self.variant + MAX_VARIANTS * self.attempt
        drawn_by = self.caption_id if self.seed_id is None else self.seed_id
        return int(seeds(drawn_by, stream="image", seed=self.run_seed, index=index))

    @property
    def key(self) -> str:
        return image_key(self.caption_id, self.variant)


def chosen_painter(
    caption_id: int, variant: int, shares: Sequence[float], able: Collection[int], seed: int
) -> int:
    """Which of several models paints an image: one of those `able` to draw its caption, of all where none is.

    The variants of a caption are spread evenly over the shares, in steps of the golden ratio from a start
    that the caption draws, so that each model paints some of them.
    """
    golden = (5**0.5 - 1) / 2
    drawn = (float(uniform(caption_id, stream="painter", seed=seed)) + variant * golden) % 1
    edges = np.cumsum([share * (at in able or not able) for at, share in enumerate(shares)])
    return int(np.searchsorted(edges / edges[-1], drawn, "right"))


@dataclass(frozen=True)
class Attempt:
    """What became of a job: an image, or the reason why it was refused."""

    job: Job
    scores: Mapping[str, float]
    reason: str | None = None
    final: bool = True
    """Whether no attempt is left of one that was refused."""
    jpeg: bytes = b""
    unread: str = ""
    """The end of the prompt that the model did not read."""
    other_texts: tuple[str, ...] = ()
    """As `Verdict` has them, and the next one."""
    unusable: Sequence[str] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.jpeg).hexdigest()


@dataclass(frozen=True)
class _Judged:
    """A painted batch after the filters; what they refuse has no JPEG."""

    batch: Sequence[Job]
    verdicts: Sequence[Verdict]
    jpegs: Sequence[bytes]
    cut: Mapping[int, str]


class Painting:
    """Paints jobs; iterate over it for what became of every attempt.

    The model paints in a thread of its own, so it never waits for a resize, an encoder or a disk as long as
    the consumer keeps up.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        models: Sequence[TextToImage],
        filters: Sequence[Filter],
        config: ImagesConfig,
        looks: Looks | None = None,
    ) -> None:
        self._jobs, self._models, self._filters, self._config = jobs, models, filters, config
        self._looks = looks
        self._calls = min(getattr(model, "calls_at_once", 1) for model in models)
        self._busy_seconds = 0.0
        self._wall_seconds = 0.0

    def __iter__(self) -> Iterator[Attempt]:
        todo: dict[str, Job] = {}
        for job in self._jobs:
            if not job.caption.strip():
                yield Attempt(job, {}, "empty caption")
            elif job.key in todo:
                yield Attempt(job, {}, "key taken")
            else:
                todo[job.key] = job
        jobs = list(todo.values())
        while jobs:
            # Images that are painted again come in the round of their attempt, as they came at first.
            round_ = min(job.attempt for job in jobs)
            now = [job for job in jobs if job.attempt == round_]
            again = [job for job in jobs if job.attempt > round_]
            batches = [batch for at in range(len(self._models)) for batch in self._batches(now, at)]
            for judged in self._seen(self._judged(batches)):
                for attempt in self._attempts(judged):
                    if not attempt.final:
                        again.append(replace(attempt.job, attempt=attempt.job.attempt + 1))
                    yield attempt
            jobs = again

    @property
    def idle(self) -> float:
        """The share of time so far that the model did not paint."""
        return 1 - self._busy_seconds / max(self._wall_seconds, self._busy_seconds, 1e-9)

    def _batches(self, jobs: Sequence[Job], painter: int) -> list[Sequence[Job]]:
        """The jobs of one model, as many at a time as it takes best."""
        own, size = [job for job in jobs if job.painter == painter], self._models[painter].batch_size
        return [own[start : start + size] for start in range(0, len(own), size)]

    def _paint(self, batch: Sequence[Job]) -> tuple[Sequence[Job], Painted]:
        began = time.monotonic()
        model = self._models[batch[0].painter]
        painted = model.generate([job.caption for job in batch], [job.seed for job in batch])
        self._busy_seconds += time.monotonic() - began
        return batch, painted

    def _judged(self, batches: Sequence[Sequence[Job]]) -> Iterator[_Judged]:
        """The batches, painted and through the filters."""
        began, config = time.monotonic() - self._wall_seconds, self._config
        for batch, painted in in_order(self._paint, batches, threads=self._calls, ahead=_DEPTH):
            self._wall_seconds = time.monotonic() - began
            images = painted.images
            if images.shape[1:3] != (config.size_px, config.size_px):
                images = np.stack([fit(image, config.size_px) for image in images])
            verdicts = [Verdict(reason=painted.refused.get(at)) for at in range(len(batch))]
            for filter_ in self._filters:
                filter_.judge(images, [job.caption for job in batch], verdicts)
            jpegs = [
                b"" if verdict.reason else encode(image, config.jpeg_quality)
                for image, verdict in zip(images, verdicts, strict=True)
            ]
            yield _Judged(batch, verdicts, jpegs, painted.cut)

    def _seen(self, judged: Iterator[_Judged]) -> Iterator[_Judged]:
        """The same after the vision model, which is kept busy by as many batches as it takes."""
        looks = self._looks
        if looks is None:
            return judged

        def look(one: _Judged) -> _Judged:
            captions, seeds = [job.caption for job in one.batch], [job.seed for job in one.batch]
            looks.judge(one.jpegs, captions, seeds, one.verdicts)
            return one

        most = -(-looks.pictures_at_once // min(model.batch_size for model in self._models))
        return in_order(look, judged, threads=1 + most)

    def _attempts(self, judged: _Judged) -> Iterator[Attempt]:
        for at, (job, verdict) in enumerate(zip(judged.batch, judged.verdicts, strict=True)):
            if verdict.reason is not None:
                final = job.attempt >= self._config.retries
                yield Attempt(job, verdict.scores, verdict.reason, final)
            else:
                cut, more = judged.cut.get(at, ""), verdict.other_texts
                yield Attempt(job, verdict.scores, None, True, judged.jpegs[at], cut, more, verdict.unusable)
