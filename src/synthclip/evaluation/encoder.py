"""Pictures and texts to features of unit length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.keys import digest
from synthclip.models import default_device
from synthclip.models.load import split_preprocess
from synthclip.run.threads import MOST_DECODERS, cores, in_order
from synthclip.samples.pictures import decode

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Made = TypeVar("Made")
_AHEAD = 2
"""Batches decoded ahead of the model."""
_PIECE = 64
"""Of a batch, what one thread of the CPU encodes by itself."""


@dataclass(frozen=True)
class Encoded:
    """Features of the pictures that could be read."""

    features: "Tensor"
    """Float32 [N, D] of unit length, on the CPU."""
    kept: NDArray[np.int64]
    """The position of each among the pictures given, int64 [N], ascending."""
    unreadable: tuple[int, ...] = ()
    """The positions of the others."""

    @property
    def row(self) -> NDArray[np.int64]:
        """The row of `features` of each of the pictures given, int64; -1 where it could not be read."""
        row = np.full(len(self.kept) + len(self.unreadable), -1, np.int64)
        row[self.kept] = np.arange(len(self.kept))
        return row

    def only(self, positions: NDArray[np.int64]) -> "Encoded":
        """Those of the pictures at these positions, int64 [M], ascending."""
        wanted = self.row[positions]
        unreadable = np.flatnonzero(wanted < 0).tolist()
        return Encoded(self.features[wanted[wanted >= 0]], np.flatnonzero(wanted >= 0), tuple(unreadable))


class Encoder:
    """A CLIP model with its preprocessing and tokenizer, on the GPU where there is one.

    `model` has open_clip's `encode_image` and `encode_text`; `preprocess` makes a float32 tensor [3, H, W] of
    a PIL image; `tokenizer` makes int64 [T, L] of texts.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[["Image"], "Tensor"],
        tokenizer: Callable[[list[str]], "Tensor"],
        *,
        batch_size: int = 256,
    ) -> None:
        import torch

        self._device = default_device()
        self._model = model.eval().to(self._device, memory_format=torch.channels_last)
        self._preprocess, self._normalise = split_preprocess(preprocess)
        self._identity = repr(preprocess)
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def images(
        self,
        pictures: Iterable[Any],
        progress: Callable[[int], object] = lambda done: None,
        names: Sequence[str] = (),
    ) -> Encoded:
        """Features of pictures (encoded bytes or PIL images), decoded on threads while the model works.

        What cannot be read is left out and reported in `Encoded.unreadable`. Raises SynthClipError where
        nothing can be read (naming the first of `names`, the pictures'), or the model wants another
        resolution than its preprocessing makes.
        """
        readable, features_ND = self._read(pictures, progress)
        if features_ND is None:
            first = f" ({names[0]}, …)" if names else ""
            raise SynthClipError(f"none of {len(readable)} images can be read{first}: check the data")
        kept, unreadable = np.flatnonzero(readable), np.flatnonzero(np.logical_not(readable))
        return Encoded(features_ND, kept, tuple(unreadable.tolist()))

    def _read(
        self, pictures: Iterable[Any], progress: Callable[[int], object]
    ) -> "tuple[list[bool], Tensor | None]":
        """Which of the pictures can be read, and the features of those; None where there are none."""
        import torch

        features: list[Tensor] = []
        readable: list[bool] = []
        if self._device.type == "cpu":
            encoded = self._in_order(lambda batch: self._encode_images(map(self._pixels, batch)), pictures)
        else:
            decoders, ahead = min(MOST_DECODERS, cores()), _AHEAD * self._batch_size
            decoded = in_order(self._pixels, pictures, threads=decoders, ahead=ahead)
            encoded = self._in_order(self._encode_images, decoded)
        for there, of_batch in encoded:
            readable += there
            if of_batch is not None:
                features.append(of_batch)
            progress(len(readable))
        return readable, torch.cat(features) if features else None

    def texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 [T, D]."""
        import torch

        return torch.cat(list(self._in_order(self._encode_texts, texts)))

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor":
        """The zero-shot classifier of Radford et al. (2021), section 3.1.4: each class the mean of its
        prompts' features, scaled to unit length; float32 [C, D].

        A template names the class as `{}` or, as CLIP_benchmark's files do, `{c}`.
        """
        import torch

        prompts = [fill(template, name) for name in names for template in templates]
        each_CTD = self.texts(prompts).view(len(names), len(templates), -1)
        return torch.nn.functional.normalize(each_CTD.mean(dim=1), dim=-1)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self._model.logit_scale.detach().exp())

    def digest(self) -> str:
        """A digest of the weights and the preprocessing."""
        parts: list[str | bytes] = []
        for name, value in sorted(self._model.state_dict().items()):
            parts += [name, np.ascontiguousarray(value.cpu().numpy()).tobytes()]
        return digest(*parts, self._identity)

    def _in_order(self, encode: Callable[[list[Any]], Made], items: Iterable[Any]) -> Iterator[Made]:
        """`encode` of batches of the items, in order.

        On the CPU each batch has a thread of its own: threads that share the small operations of one batch
        mostly wait for each other.
        """
        import torch

        remaining = iter(items)
        if self._device.type != "cpu":
            yield from map(encode, iter(lambda: list(islice(remaining, self._batch_size)), []))
            return
        threads = torch.get_num_threads()
        piece = min(_PIECE, -(-self._batch_size // threads))

        def by_itself(batch: list[Any]) -> Made:
            torch.set_num_threads(1)  # of this thread, and of those that are started from here on
            return encode(batch)

        try:
            batches = iter(lambda: list(islice(remaining, piece)), [])
            yield from in_order(by_itself, batches, threads=threads)
        finally:
            torch.set_num_threads(threads)

    def _encode_images(self, pixels: "Iterable[Tensor | None]") -> "tuple[list[bool], Tensor | None]":
        """Which pictures of a batch can be read, and their features."""
        import torch

        pixels = list(pixels)
        readable = [picture is not None for picture in pixels]
        good = [picture for picture in pixels if picture is not None]
        if not good:
            return readable, None
        with torch.inference_mode():
            stacked = self._normalise(torch.stack(good).to(self._device, non_blocking=True))
            return readable, self._encode_image(stacked).float().cpu()

    def _encode_texts(self, texts: list[str]) -> "Tensor":
        import torch

        from synthclip.models.build import LeanCLIP

        tokens = self._tokenizer(texts)
        if isinstance(self._model, LeanCLIP):  # nothing behind the last end token is read
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        with torch.inference_mode():
            tokens = tokens.to(self._device)
            features: Tensor = self._model.encode_text(tokens, normalize=True).float().cpu()
        return features

    def _encode_image(self, pixels_B3HW: "Tensor") -> "Tensor":
        try:
            features: Tensor = self._model.encode_image(pixels_B3HW, normalize=True)
        except (AssertionError, RuntimeError) as error:
            if "out of memory" in str(error):
                raise SynthClipError("the GPU's memory is short: choose a smaller batch size") from None
            size = "x".join(str(side) for side in pixels_B3HW.shape[-2:])
            raise SynthClipError(
                f"the model does not take the {size} px images that its preprocessing makes ({error}): "
                "fix the image size in its open_clip_config.json"
            ) from error
        return features

    def _pixels(self, picture: Any) -> "Tensor | None":
        from PIL import Image

        try:
            image = Image.fromarray(decode(picture)) if isinstance(picture, bytes) else picture.convert("RGB")
            return self._preprocess(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None


def fill(template: str, name: str) -> str:
    """The prompt for a class."""
    return template.replace("{c}", name).replace("{}", name)
