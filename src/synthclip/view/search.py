"""Search in a run's images by what they show: by a text, or by another picture.

The model is loaded, and images are encoded, by one thread in the background that takes one core. What it
makes stands in the run's folder of the cache, a file for each shard, found by the model's weights and by what
the shard holds: a thread that is stopped goes on where it was, another model encodes anew.
"""

import hashlib
import threading
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.evaluation.features import Features
from synthclip.models.load import local_path, model_folder
from synthclip.recipe import load_saved_recipe
from synthclip.recipe.training import EvaluationConfig
from synthclip.run.durable import disk_errors
from synthclip.run.store import RunDirectory
from synthclip.samples import pictures
from synthclip.view import vectors
from synthclip.view.gallery import Gallery
from synthclip.view.index import SHARD_BITS, Index
from synthclip.view.pictures import read_jpeg

MAX_PIXELS = 50_000_000
_FORMAT = 1
"""Raised when other features would come of the same model and image; part of the folder's name."""
_UPLOADS = 8
"""Uploaded pictures that are kept, in memory."""
_SHOWN_PX = 320
_NAMES = 256
"""Concepts whose prompts are encoded, and cached, at once."""

Vector = NDArray[np.float32]
"""A feature of unit length, float32 [D]."""


@dataclass(frozen=True)
class State:
    """How far search has come."""

    model: str
    ready: bool
    """Whether texts and pictures can be searched for, in the images that are encoded."""
    doing: str
    """What is being done, and how much of it; empty where nothing is."""
    encoded: int
    images: int
    error: str


@dataclass(frozen=True)
class Upload:
    content: bytes
    shown: str
    """A `data:` address of what is shown of it."""


@dataclass
class _Model:
    """A model that is loaded, and what it has encoded."""

    features: Features
    files: object
    """Names, sizes and times of its files."""
    bank: tuple[list[str], Vector | None] = field(default_factory=lambda: ([], None))
    """The concepts, and their zero-shot classifier float32 [C, D]."""
    shards: dict[tuple[int, str], tuple[int, NDArray[np.float16]]] = field(default_factory=dict)
    """By number and seal: the id of the first image, and all features."""


class _StoppedError(Exception):
    """The explorer is about to end."""


class Search:
    """Search in one run with one model: what `load_model` takes, None for the run's own."""

    def __init__(self, run: RunDirectory, index: Index, gallery: Gallery, model: str | None = None) -> None:
        self._run, self._index, self._gallery = run, index, gallery
        self._named, self._source = model or "the run's own model", model or str(run.path)
        self._folder = index.folder / f"features-{_FORMAT}"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wants_images = False
        self._model: _Model | None = None
        self._failed: object = None
        self._error = self._doing = ""
        self._uploads: OrderedDict[str, Upload] = OrderedDict()

    def open(self) -> None:
        """Load the model in the background, where it is not loaded, or has changed since."""
        if self._is_behind() and self._failed != self._files():
            self._work()

    def encode(self) -> None:
        """Encode in the background what is not encoded yet."""
        self._work(images=True)

    def join(self) -> None:
        """Wait for what is done in the background."""
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        self._stop.set()
        self.join()

    @property
    def state(self) -> State:
        encoded = sum(len(features) for _, features in self._stored(self._model)) if self._model else 0
        images = sum(facet.images for facet in self._gallery.facets().values() if not facet.reason)
        return State(self._named, self._model is not None, self._doing, encoded, images, self._error)

    def keep(self, content: bytes) -> str:
        """The name under which an uploaded picture is found again, until others have taken its place.

        Raises ValueError of one line where it is no picture, or too large.
        """
        if not pictures.is_picture(content[: pictures.SNIFF_BYTES]):
            raise ValueError("the file is no picture")
        height, width = pictures.size(content)
        if height * width > MAX_PIXELS:
            raise ValueError(f"the picture has {width:,} x {height:,} pixels: make it smaller")
        shown = pictures.encode(pictures.fit(pictures.decode(content), _SHOWN_PX), 85)
        name = hashlib.sha256(content).hexdigest()[:24]
        with self._lock:
            self._uploads[name] = Upload(content, f"data:image/jpeg;base64,{b64encode(shown).decode()}")
            self._uploads.move_to_end(name)
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return name

    def uploaded(self, name: str) -> Upload | None:
        """What `keep` was given."""
        return self._uploads.get(name)

    def of_text(self, text: str) -> Vector:
        """The feature of a text. The model has to be ready, here and below."""
        found: Vector = self._ready().features.encoder().texts([text])[0].numpy()
        return found

    def of_picture(self, content: bytes) -> Vector:
        """The feature of a picture. Raises SynthClipError where it cannot be read."""
        found: Vector = self._ready().features.encoder().images([content]).features[0].numpy()
        return found

    def nearest(self, feature_D: Vector, count: int) -> list[tuple[int, float]]:
        """(id, cosine) of the encoded images most similar to it, the most similar first."""
        return vectors.nearest(self._stored(self._ready()), feature_D, count)

    def concepts(self, feature_D: Vector, count: int) -> list[tuple[str, float]] | None:
        """The concepts of the bank that the model takes a picture for, with their probabilities: zero-shot
        with the recipe's prompts. None where the bank is not encoded yet."""
        model = self._ready()
        names, classifier_CD = model.bank
        if classifier_CD is None:
            return None
        logits_C = model.features.encoder().logit_scale * (classifier_CD @ feature_D)
        shares_C = np.exp(logits_C - logits_C.max())
        shares_C /= shares_C.sum()
        best = np.argsort(-shares_C, kind="stable")[:count]
        return [(names[one], float(shares_C[one])) for one in best]

    def _ready(self) -> _Model:
        if self._model is None:
            raise SynthClipError("the model is not loaded yet: try again in a moment")
        return self._model

    def _is_behind(self) -> bool:
        model = self._model
        return model is None or model.files != self._files() or model.bank[0] != self._bank()

    def _bank(self) -> list[str]:
        return [row[0] for row in self._index.read("SELECT text FROM concept ORDER BY id")]

    def _files(self) -> object:
        path = local_path(self._source)
        folder = model_folder(path) or path
        there = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.is_file() else []
        return [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in there]

    def _work(self, *, images: bool = False) -> None:
        with self._lock:
            self._wants_images |= images
            if not self._doing:
                self._error, self._failed, self._doing = "", None, "Loading the model"
                self._thread = threading.Thread(target=self._in_background, name="search", daemon=True)
                self._thread.start()

    def _in_background(self) -> None:
        files = self._files()
        try:
            with needs_extra("train", "search"):
                import torch
            torch.set_num_threads(1)  # of this thread, and of those that are started from here on
            model = self._loaded(files)
            self._encode_concepts(model)
            while self._goes_on():
                self._encode_images(model)
        except _StoppedError:
            pass
        except Exception as error:  # a model of others may raise anything: the page shows it
            self._error, self._failed = first_line(error), files
        else:
            return
        with self._lock:
            self._wants_images, self._doing = False, ""

    def _goes_on(self) -> bool:
        """Whether images are to be encoded; where not, the thread ends."""
        with self._lock:
            wanted, self._wants_images = self._wants_images, False
            if not wanted:
                self._doing = ""
            return wanted

    def _loaded(self, files: object) -> _Model:
        if self._model is not None and self._model.files == files:
            return self._model
        path = local_path(self._source)
        if path == self._run.path and model_folder(path) is None:
            raise SynthClipError(f"{path}: no trained model yet: train it, or choose one with --model")
        model = _Model(Features(self._source, self._folder), files)
        model.features.encoder()
        self._model = model
        return model

    def _encode_concepts(self, model: _Model) -> None:
        names, found = self._bank(), []
        templates = _templates(self._run.path)
        for start in range(0, len(names), _NAMES):
            self._doing = f"Encoding concepts: {start:,} of {len(names):,}"
            if self._stop.is_set():
                raise _StoppedError
            found.append(model.features.classifier(names[start : start + _NAMES], templates).numpy())
        model.bank = names, np.concatenate(found) if found else None

    def _encode_images(self, model: _Model) -> None:
        """One shard after the other. Where one is damaged the others are encoded first."""
        damaged: list[SynthClipError] = []
        for number, seal in self._shards():
            path = self._path(model, seal)
            if vectors.read(path) is not None:
                continue
            ids = self._kept_of(number, "SELECT id")
            before = self.state
            try:
                features = self._features_of(model, ids, before.encoded, before.images) if ids else None
            except SynthClipError as error:
                damaged.append(error)
                continue
            if features is not None:
                with disk_errors(path, "XDG_CACHE_HOME"):
                    vectors.write(path, features)
        if damaged:
            raise damaged[0]

    def _features_of(self, model: _Model, ids: Sequence[int], before: int, images: int) -> Vector | None:
        """Float32 [N, D] of the images, NaN where one cannot be read; None where the shard is another now."""
        changed = False

        def jpegs() -> Iterator[bytes]:
            nonlocal changed
            for image in ids:
                if self._stop.is_set():
                    raise _StoppedError
                found = read_jpeg(self._run, self._gallery, image)
                if found is None:
                    changed = True
                    return
                yield found[0]

        def progress(done: int) -> None:
            self._doing = f"Encoding images: {before + done:,} of {images:,}"

        progress(0)
        encoded = model.features.encoder().images(jpegs(), progress)
        if changed:
            return None
        features = np.full((len(ids), encoded.features.shape[1]), np.nan, np.float32)
        features[encoded.kept] = encoded.features.numpy()
        return features

    def _shards(self) -> list[Any]:
        return [tuple(row) for row in self._index.read("SELECT id, seal FROM shard ORDER BY id")]

    def _kept_of(self, shard: int, select: str) -> list[Any]:
        """The column of a query over the kept images of a shard, in order."""
        sql = f"{select} FROM image WHERE id >= ? AND id < ? AND sha256 IS NOT NULL ORDER BY id"
        return [row[0] for row in self._index.read(sql, (shard << SHARD_BITS, (shard + 1) << SHARD_BITS))]

    def _path(self, model: _Model, seal: str) -> Path:
        return self._folder / model.features.checkpoint / f"{seal}.npy"

    def _stored(self, model: _Model) -> list[tuple[int, NDArray[np.float16]]]:
        """What is encoded of the shards that the run has now."""
        found = []
        for number, seal in self._shards():
            if (number, seal) not in model.shards:
                features = vectors.read(self._path(model, seal))
                if features is None:
                    continue
                [first] = self._kept_of(number, "SELECT min(id)")  # what was kept stands together
                model.shards[number, seal] = first, features
            found.append(model.shards[number, seal])
        return found


def _templates(run: Path) -> tuple[str, ...]:
    try:
        return load_saved_recipe(run).evaluation.templates
    except SynthClipError:  # of another version, say
        return EvaluationConfig().templates
