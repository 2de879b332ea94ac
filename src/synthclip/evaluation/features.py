"""Features of a model, and the probes fitted on them: computed once and cached by content."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Pictures
from synthclip.evaluation.encoder import Encoded, Encoder
from synthclip.evaluation.linear_probe import Probe
from synthclip.keys import digest, sha256_of
from synthclip.run.store import disk_errors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_FORMAT = "1"
"""Raised when other features or probes would come of the same model and data."""
_WEIGHTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".model")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/synthclip/features`, under `~/.cache` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthclip" / "features"


class Watch:
    """Is told how an evaluation goes on; shows nothing unless a subclass does."""

    def begin(self, what: str) -> None:
        """The task of a data set that is worked on from now."""

    def encoded(self, done: int, total: int) -> None:
        """So many images of one split have their features."""


class ModelFeatures(Protocol):
    """What the evaluators ask of a model."""

    def images(self, pictures: Pictures) -> Encoded: ...

    def texts(self, texts: Sequence[str]) -> "Tensor": ...

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor": ...

    def probe(self, parts: Sequence[str], fit: Callable[[], Probe]) -> Probe: ...


class PassingFeatures:
    """Features of a model that changes: held in memory, for one evaluation."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._images: dict[str, Encoded] = {}

    def images(self, pictures: Pictures) -> Encoded:
        if pictures.digest not in self._images:
            self._images[pictures.digest] = self._encoder.images(pictures.read(), names=pictures.names)
        return self._images[pictures.digest]

    def texts(self, texts: Sequence[str]) -> "Tensor":
        return self._encoder.texts(texts)

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor":
        return self._encoder.classifier(names, templates)

    def probe(self, parts: Sequence[str], fit: Callable[[], Probe]) -> Probe:
        return fit()


class Features:
    """Image and text features of one model.

    Of a model on disk the files' bytes are its identity, so where all features are cached it is never loaded;
    of a model by name, its weights.
    """

    def __init__(self, model: str, cache: Path, *, batch_size: int = 256, watch: Watch | None = None) -> None:
        self._source, self._batch_size = model, batch_size
        self.watch = watch or Watch()
        self._encoder: Encoder | None = None
        self.checkpoint = (_digest_of_files(model) or self._digest_of_weights())[:16]
        """What names the model in results."""
        self._folder = cache / self.checkpoint

    def images(self, pictures: Pictures) -> Encoded:
        """The pictures' features."""
        path = self._path("images", pictures.digest)
        total = len(pictures)
        if cached := _load(path):
            self.watch.encoded(total, total)
            unreadable = tuple(cached["unreadable"].tolist())
            return Encoded(cached["features"], cached["kept"].numpy(), unreadable)
        done = 0

        def tick(more: int) -> None:
            nonlocal done
            done += more
            self.watch.encoded(done, total)

        encoded = self._loaded().images(pictures.read(), tick, pictures.names)
        import torch

        unreadable_U = torch.tensor(encoded.unreadable, dtype=torch.int64)
        kept_N = torch.from_numpy(encoded.kept)
        _save(path, {"features": encoded.features, "kept": kept_N, "unreadable": unreadable_U})
        return encoded

    def texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 [T, D]."""
        path = self._path("texts", *texts)
        return self._cached(path, lambda encoder: encoder.texts(texts))

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor":
        """The zero-shot classifier, float32 [C, D]; see `Encoder.classifier`."""
        path = self._path("classifier", digest(*names), digest(*templates))
        return self._cached(path, lambda encoder: encoder.classifier(names, templates))

    def probe(self, parts: Sequence[str], fit: Callable[[], Probe]) -> Probe:
        """A probe fitted on features of this model; `parts` name all else that decides it."""
        path = self._path("probe", *parts)
        if cached := _load(path):
            return Probe(cached["weight"], cached["bias"])
        probe = fit()
        _save(path, {"weight": probe.weight_DC.cpu(), "bias": probe.bias_C.cpu()})
        return probe

    def _cached(self, path: Path, make: Callable[[Encoder], "Tensor"]) -> "Tensor":
        if cached := _load(path):
            return cached["features"]
        features = make(self._loaded())
        _save(path, {"features": features})
        return features

    def _path(self, kind: str, *parts: str) -> Path:
        return self._folder / f"{kind}-{digest(_FORMAT, kind, *parts)[:24]}.safetensors"

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            from synthclip.models.load import load_model

            self._encoder = Encoder(*load_model(self._source), batch_size=self._batch_size)
        return self._encoder

    def _digest_of_weights(self) -> str:
        from synthclip.models.load import load_model

        loaded = load_model(self._source)
        self._encoder = Encoder(*loaded, batch_size=self._batch_size)
        return digest(*_parts(loaded.model), repr(loaded.preprocess))


def _parts(model: "Module") -> list[str | bytes]:
    parts: list[str | bytes] = []
    for name, value in sorted(model.state_dict().items()):
        parts += [name, np.ascontiguousarray(value.cpu().numpy()).tobytes()]
    return parts


def _digest_of_files(model: str) -> str | None:
    path = Path(model.removeprefix("local-dir:"))
    if path.is_file():
        return sha256_of(path)
    if path.is_dir():
        folder = path / "train" / "model" if (path / "train" / "model").is_dir() else path
        files = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
        return digest(*(part for file in files for part in (file.name, sha256_of(file))))
    return None


def _load(path: Path) -> "dict[str, Tensor] | None":
    """What is cached, or None where nothing is, or not whole."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError):
        return None


def _save(path: Path, tensors: "dict[str, Tensor]") -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        except SafetensorError as error:
            partial.unlink(missing_ok=True)
            raise SynthClipError(
                f"{path.parent}: features cannot be cached ({error}): choose another --cache"
            ) from None
        partial.replace(path)
