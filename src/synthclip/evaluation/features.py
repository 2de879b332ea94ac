"""The features of one model, computed once and cached by content."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Pictures
from synthclip.evaluation.encoder import Encoded, Encoder
from synthclip.evaluation.probes import Probe
from synthclip.keys import digest, sha256_of
from synthclip.models.load import local_path, model_folder
from synthclip.run.store import disk_errors
from synthclip.samples.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from synthclip.models.load import LoadedModel

_FORMAT = "2"
"""Raised when other features or probes would come of the same model and data."""
_WEIGHTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".model")
Progress = Callable[[int, int], object]
"""Called with the images of a split that have their features, and how many there are."""


class Features:
    """Image and text features of one model, and the probes fitted on them, each made once.

    `model` is whatever `load_model` takes, or an encoder. With a `cache` they are files below it, found by
    content: of a model on disk the files' bytes are its identity, so where all features are cached it is
    never loaded; of a model by name, its weights. Without one they are held in memory, for one evaluation.
    """

    writes = True
    """Whether this process is the one that keeps what it makes, where several make it together."""

    def __init__(
        self,
        model: str | Encoder,
        cache: Path | None = None,
        *,
        batch_size: int = 256,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self._source, self._cache, self._batch_size, self._progress = model, cache, batch_size, progress
        self._encoder = model if isinstance(model, Encoder) else None
        self._held: dict[str, dict[str, Tensor]] = {}
        known = None if isinstance(model, Encoder) else digest_of_files(model)
        self.checkpoint = "" if self._encoder else (known or self.encoder().digest())[:16]
        """What names a model on disk or by name in results."""

    def images(self, pictures: Pictures) -> Encoded:
        """The pictures' features."""
        if pictures.among is not None:
            others, positions = pictures.among
            return self.images(others).only(positions)
        total = len(pictures)

        def make() -> "dict[str, Tensor]":
            import torch

            def progress(done: int) -> None:
                self._progress(done, total)

            encoded = self.encoder().images(pictures.read(), progress, pictures.names)
            kept_N = torch.from_numpy(encoded.kept)
            unreadable_U = torch.tensor(encoded.unreadable, dtype=torch.int64)
            return {"features": encoded.features, "kept": kept_N, "unreadable": unreadable_U}

        found = self._once("images", [pictures.digest], make)
        self._progress(total, total)
        unreadable = tuple(found["unreadable"].tolist())
        return Encoded(found["features"], found["kept"].numpy(), unreadable)

    def texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 [T, D]."""
        return self._once("texts", texts, lambda: {"features": self.encoder().texts(texts)})["features"]

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor":
        """The zero-shot classifier, float32 [C, D]; see `Encoder.classifier`."""
        parts = digest(*names), digest(*templates)
        made = self._once(
            "classifier", parts, lambda: {"features": self.encoder().classifier(names, templates)}
        )
        return made["features"]

    def probe(self, parts: Sequence[str], fit: Callable[[], Probe]) -> Probe:
        """A probe fitted on features of this model; `parts` name all else that decides it."""

        def make() -> "dict[str, Tensor]":
            probe = fit()
            return {"weight": probe.weight_DC.cpu(), "bias": probe.bias_C.cpu()}

        found = self._once("probe", parts, make)
        return Probe(found["weight"], found["bias"])

    def _once(
        self, kind: str, parts: Sequence[str], make: "Callable[[], dict[str, Tensor]]"
    ) -> "dict[str, Tensor]":
        name = f"{kind}-{digest(_FORMAT, kind, *parts)[:24]}"
        if self._cache is None:
            if name not in self._held:
                self._held[name] = make()
            return self._held[name]
        path = self._cache / self.checkpoint / f"{name}.safetensors"
        found = self._cached(path)
        if found is None:
            found = make()
            self._keep(path, found)
        return found

    def _cached(self, path: Path) -> "dict[str, Tensor] | None":
        return _load(path)

    def _keep(self, path: Path, made: "dict[str, Tensor]") -> None:
        _save(path, made)

    def encoder(self) -> Encoder:
        """The model itself, loaded when it is first wanted."""
        if self._encoder is None:
            from synthclip.models.load import load_encoder

            self._encoder = self._encoder_of(load_encoder(str(self._source)), self._batch_size)
        return self._encoder

    def _encoder_of(self, model: "LoadedModel", batch_size: int) -> Encoder:
        return Encoder(*model, batch_size=batch_size)


def digest_of_files(model: str) -> str | None:
    """A digest of a model on disk, a file, an open_clip folder or a run; None where there is none."""
    path = local_path(model)
    if path.is_file():
        return sha256_of(path)
    files = model_files(model)
    return digest(*(part for file in files for part in (file.name, sha256_of(file)))) if files else None


def model_files(model: str) -> list[Path]:
    """The files that a model on disk consists of; none where there is none."""
    path = local_path(model)
    if path.is_dir():
        folder = model_folder(path) or path
        return sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    return [path] if path.is_file() else []


def _load(path: Path) -> "dict[str, Tensor] | None":
    """What is cached, or None where nothing is, or it is cut off or changed."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors if (file.metadata() or {}).get("crc32") == _checksum(tensors) else None
    except (SafetensorError, OSError):
        return None


def _checksum(tensors: "dict[str, Tensor]") -> str:
    check = 0
    for name, tensor in sorted(tensors.items()):
        check = zlib.crc32(tensor.numpy().tobytes(), zlib.crc32(name.encode(), check))
    return f"{check:08x}"


def _save(path: Path, tensors: "dict[str, Tensor]") -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_errors(path, "--cache"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            with replacing(path) as partial:
                save_file(whole, partial, {"crc32": _checksum(whole)})
        except SafetensorError as error:
            raise SynthClipError(
                f"{path.parent}: features cannot be cached ({error}): choose another --cache"
            ) from None
