"""Batches for the trainer, decoded and cropped by threads ahead of the step that uses them."""

import itertools
import re
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthclip.errors import SynthClipError
from synthclip.keys import text_id, uniform
from synthclip.models.build import build_encode
from synthclip.recipe.training import TrainingConfig
from synthclip.run.threads import MOST_DECODERS, cores
from synthclip.samples import Sample, SampleError, Source
from synthclip.training.augment import DISTORTIONS, DRAWS, distort, random_crop
from synthclip.training.edits import EDITS, edited
from synthclip.training.order import BatchIndices, Order
from synthclip.training.parallel import Group
from synthclip.training.teacher import TeacherFeatures

SENTENCES = 32
"""Sentences of one caption that are drawn from, and the uniform numbers that one draw takes."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_AHEAD = 3
"""Batches that are made while one is used."""
_CONCEPTS = 16
"""Rare concepts of one caption that are looked at."""
_LENGTH_STEP = 8
"""Token batches come in few lengths, so that kernels and compiled graphs are used again."""


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, H, W, 3] in RGB; `tokens` int64 [B, L], zero after each end token; `text_ids` int64
    [B], equal for equal texts; `concepts` int64 [B, K], each pair's rare concepts padded with -1;
    `edited` int64 [B, L], of hard negatives: all zero for a pair without one; None where nobody asks.
    `taught` float32 [B, 2, E], a teacher's features, as `TeacherFeatures.pair`; None without a teacher."""

    images: Tensor
    tokens: Tensor
    text_ids: Tensor
    concepts: Tensor
    edited: Tensor | None = None
    taught: Tensor | None = None


@dataclass
class BadSamples:
    """The samples skipped: their names, and why. Stops the training above a share of all."""

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
                f"{reason}: fix the data or raise training.max_bad_share"
            )


class Loader:
    """Makes the batch of any step; the same for any number of threads.

    `architecture` is the model's, as `open_clip_config` gives it. Each process of the group gets its slice of
    every batch. The images of a step have the size that `config.resolutions` says. A token batch is about as
    long as its longest text, at most the model's context. A pair's `text_id` is that of its whole caption; of
    its concepts, those in `rare` are kept. `concepts` are the names behind the ids, where texts are to be
    prompts of them. A sample that cannot be used, or that the `teacher` could not, is replaced by the next
    one in its source.
    """

    def __init__(
        self,
        config: TrainingConfig,
        architecture: Mapping[str, Any],
        sources: Sequence[Source],
        order: Order,
        bad: BadSamples,
        *,
        steps: int,
        seed: int,
        rare: frozenset[int] = frozenset(),
        concepts: Sequence[str] = (),
        teacher: TeacherFeatures | None = None,
        group: Group | None = None,
        pin_memory: bool = False,
    ) -> None:
        group = group or Group()
        self._config, self._steps, self._seed = config, steps, seed
        self._sources, self._order, self._rare, self.bad = sources, order, rare, bad
        self._concepts, self._teacher = concepts, teacher
        self.pairs = [len(source) for source in sources]
        model, preprocess = architecture["model_cfg"], architecture["preprocess_cfg"]
        self._encode, self._context_length = build_encode(model), model["text_cfg"]["context_length"]
        self._own_size, self._interpolation = model["vision_cfg"]["image_size"], preprocess["interpolation"]
        self._pin_memory = pin_memory
        wanted = config.data_threads
        most = min(MOST_DECODERS, cores() // group.world_size)
        self._threads = wanted if isinstance(wanted, int) else max(1, most)
        part = order.batch_size // group.world_size
        self._mine = slice(group.rank * part, (group.rank + 1) * part)

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
        indices = self._order.batch(step)[self._mine]
        size = image_size(step, self._steps, self._config, self._own_size)
        shape = (len(indices), size, size, 3)
        if self._pin_memory:
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:  # NumPy asks for huge pages, whose first use costs a fraction
            images = torch.from_numpy(np.empty(shape, dtype=np.uint8))
        chunk = -(-len(indices) // self._threads)
        parts = [slice(at, at + chunk) for at in range(0, len(indices), chunk)]
        pixels = images.numpy()
        return _Pending(images, [pool.submit(self._fill, indices[part], pixels[part]) for part in parts])

    def _fill(self, indices: BatchIndices, pixels: NDArray[np.uint8]) -> "list[_Text]":
        """Decode the images of a batch into `pixels`; what is known of their texts."""
        crop_BD = self._draws(indices, "crop", DRAWS).tolist()
        flipped_B = (self._draws(indices, "flip", 1)[:, 0] < self._config.horizontal_flip).tolist()
        kept_BL = None
        if self._config.text_masking:
            kept_BL = self._draws(indices, "mask", self._context_length) >= self._config.text_masking
            kept_BL[:, 0] = True
        sub_captions, sentence_BD = self._config.sub_captions, None
        if sub_captions:
            sentence_BD = self._draws(indices, "sentence", SENTENCES).tolist()
        distort_BD = (
            self._draws(indices, "distort", DISTORTIONS).tolist() if self._config.distortion else None
        )
        prompt_B3 = self._draws(indices, "prompt", 3).tolist() if self._config.concept_prompts else None
        edit_B3 = None
        if self._config.hard_negatives:
            edit_B3 = self._draws(indices, "edit", 1 + EDITS).tolist()
        texts = []
        places = zip(indices.source_B.tolist(), indices.index_B.tolist(), strict=True)
        for i, (source, index) in enumerate(places):
            sample, place = self._usable(source, index, crop_BD[i], pixels[i])
            if flipped_B[i]:
                cv2.flip(pixels[i], 1, dst=pixels[i])
            if distort_BD is not None:
                distort(pixels[i], self._config.distortion, distort_BD[i])
            text = sample.text
            if sample.other_texts:
                captions = (text, *sample.other_texts)
                drawn = self._draws(indices[i : i + 1], "caption", 1)[0, 0]
                text = captions[int(drawn * len(captions))]
            if prompt_B3 is not None:
                text = self._prompt(sample, prompt_B3[i]) or text
            whole_text = text
            if sub_captions and sentence_BD:
                text = sub_caption(text, sub_captions, sentence_BD[i])
            wrong = None
            if edit_B3 is not None and edit_B3[i][0] < self._config.hard_negatives:
                wrong = edited(text, edit_B3[i][1:])
            ids: Sequence[int] = self._encode(text)
            if kept_BL is not None:
                ids = [*itertools.compress(ids[:-1], kept_BL[i].tolist()), ids[-1]]
            rare = self._rare.intersection(sample.concept_ids) if self._rare else ()
            wrong_ids = () if wrong is None else self._encode(wrong)
            taught = None if self._teacher is None else self._teacher.pair(source, place, whole_text)
            texts.append(_Text(ids, text_id(whole_text), sorted(rare), wrong_ids, taught))
        return texts

    def _prompt(self, sample: Sample, uniform_3: Sequence[float]) -> str | None:
        """A prompt of one of the sample's concepts; None where the draw keeps the caption, or none is
        known."""
        known = [concept for concept in sample.concept_ids if concept < len(self._concepts)]
        if uniform_3[0] >= self._config.concept_prompts or not known:
            return None
        templates = self._config.concept_templates
        template = templates[int(uniform_3[1] * len(templates))]
        return template.replace("{}", self._concepts[known[int(uniform_3[2] * len(known))]])

    def _draws(self, indices: BatchIndices, stream: str, count: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) for each sample, [B, count]; every pass draws others."""
        index = indices.pass_B[:, None] * count + np.arange(count)
        ids = indices.index_B[:, None] * 64 + indices.source_B[:, None]
        return uniform(ids, stream=stream, seed=self._seed, index=index)

    def _usable(
        self, number: int, index: int, crop_D: Sequence[float], pixels: NDArray[np.uint8]
    ) -> tuple[Sample, int]:
        """The sample, or the next one that can be used, and its place; its crop is in `pixels`."""
        source = self._sources[number]
        for step in range(len(source)):
            place = (index + step) % len(source)
            try:
                sample = source.read(place)
                try:
                    random_crop(sample.image, self._config.crop_scale, crop_D, pixels, self._interpolation)
                    if self._teacher is None or self._teacher.knows(number, place):
                        return sample, place
                    raise SampleError("no features of the teacher", source.name_of(place))
                except ValueError as error:
                    raise SampleError("undecodable image", f"{source.name_of(place)} ({error})") from None
            except SampleError as bad:
                self.bad.add(bad)
        raise SynthClipError("training: no sample of a source can be used")

    def _finish(self, pending: "_Pending") -> Batch:
        texts = [text for future in pending.texts for text in future.result()]
        longest = max(len(ids) for text in texts for ids in (text.ids, text.edited))
        length = min(self._context_length, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        tokens = np.zeros((len(texts), length), dtype=np.int64)
        wrong = np.zeros_like(tokens) if self._config.hard_negatives else None
        # Processes exchange the concepts, so that all must give them the same width.
        concepts = np.full((len(texts), _CONCEPTS if self._rare else 0), -1, dtype=np.int64)
        for i, text in enumerate(texts):
            tokens[i, : len(text.ids)] = text.ids
            if wrong is not None:
                wrong[i, : len(text.edited)] = text.edited
            known = text.concepts[: concepts.shape[1]]
            concepts[i, : len(known)] = known
        text_ids = np.array([text.id for text in texts], dtype=np.uint64).view(np.int64)
        batch = Batch(pending.images, *map(self._tensor, (tokens, text_ids, concepts)))
        taught = [text.taught for text in texts if text.taught is not None]
        return replace(
            batch,
            edited=None if wrong is None else self._tensor(wrong),
            taught=self._tensor(np.stack(taught)) if taught else None,
        )

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        # From other memory, the host would wait for all work before the copy.
        return tensor.pin_memory() if self._pin_memory else tensor


@dataclass(frozen=True)
class _Text:
    ids: Sequence[int]
    id: int
    concepts: list[int]
    edited: Sequence[int]
    """The tokens of a hard negative; none where there is none."""
    taught: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Pending:
    images: Tensor
    texts: list[Future[list[_Text]]]


def image_size(step: int, steps: int, config: TrainingConfig, own: int) -> int:
    """The edge in pixels of the pictures of iteration `step` of `steps`, counted from 0; `own` is the
    model's."""
    share = 0.0
    for stage in config.resolutions:
        share += stage.share
        if step < round(share * steps):
            return stage.image_size_px
    return own


def sub_caption(caption: str, count: int, uniform_D: Sequence[float]) -> str:
    """`count` sentences of a caption, drawn without replacement, in their order (DreamLIP, arXiv 2403.17007,
    Section 3.2); the caption where it has no more. `uniform_D` holds `SENTENCES` numbers in [0, 1)."""
    sentences = _SENTENCE_END.split(caption.strip())[:SENTENCES]
    if len(sentences) <= count:
        return caption
    drawn = sorted(range(len(sentences)), key=uniform_D.__getitem__)[:count]
    return " ".join(sentences[at] for at in sorted(drawn))
