"""Pictures and texts to features of unit length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.run.threads import in_order
from synthclip.samples.pictures import decode

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_AHEAD = 2
"""Batches decoded ahead of the model."""


@dataclass(frozen=True)
class Encoded:
    """Features of the pictures that could be read."""

    features: "Tensor"
    """Float32 [N, D] of unit length, on the CPU."""
    kept: NDArray[np.int64]
    """The position of each among the pictures given, int64 [N], ascending."""
    unreadable: tuple[int, ...] = ()
    """The positions of the others."""


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

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._batch_size = batch_size

    def images(
        self,
        pictures: Iterable[Any],
        tick: Callable[[int], None] | None = None,
        names: Sequence[str] = (),
    ) -> Encoded:
        """Features of pictures (encoded bytes or PIL images), decoded on threads while the model works.

        What cannot be read is left out and reported in `Encoded.unreadable`. Raises SynthClipError where
        nothing can be read (it tells the first of `names`, the pictures'), or the model wants another
        resolution than its preprocessing makes.
        """
        import torch

        features: list[Tensor] = []
        kept: list[int] = []
        unreadable: list[int] = []
        start = 0
        with torch.inference_mode():
            for batch in self._decoded(pictures):
                good = [pixels for pixels in batch if pixels is not None]
                for position, pixels in enumerate(batch, start):
                    (unreadable if pixels is None else kept).append(position)
                if good:
                    stacked_B3HW = torch.stack(good).to(self._device, non_blocking=True)
                    features.append(self._encode_image(stacked_B3HW).float().cpu())
                start += len(batch)
                if tick is not None:
                    tick(len(batch))
        if not features:
            first = f" ({names[0]}, …)" if names else ""
            raise SynthClipError(f"none of {start} images can be read{first}: check the data")
        return Encoded(torch.cat(features), np.array(kept, np.int64), tuple(unreadable))

    def texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 [T, D]."""
        import torch

        rows: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(texts), self._batch_size):
                tokens = self._tokenizer(list(texts[start : start + self._batch_size]))
                rows.append(self._model.encode_text(tokens.to(self._device), normalize=True).float().cpu())
        return torch.cat(rows)

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> "Tensor":
        """The zero-shot classifier of Radford et al. (2021), section 3.1.4: each class the mean of its
        prompts' features, scaled to unit length; float32 [C, D].

        A template names the class as `{}` or, as CLIP_benchmark's files do, `{c}`.
        """
        import torch

        prompts = [fill(template, name) for name in names for template in templates]
        each_CTD = self.texts(prompts).view(len(names), len(templates), -1)
        return torch.nn.functional.normalize(each_CTD.mean(dim=1), dim=-1)

    def _encode_image(self, pixels_B3HW: "Tensor") -> "Tensor":
        try:
            features: Tensor = self._model.encode_image(pixels_B3HW, normalize=True)
        except (AssertionError, RuntimeError) as error:
            if "out of memory" in str(error):
                raise SynthClipError("the GPU's memory is short: choose a smaller batch size") from None
            size = "x".join(str(side) for side in pixels_B3HW.shape[-2:])
            raise SynthClipError(
                f"the model does not take the {size} px images that its preprocessing makes ({error}): "
                "mend the image size in its open_clip_config.json"
            ) from error
        return features

    def _decoded(self, pictures: Iterable[Any]) -> Iterator[list["Tensor | None"]]:
        pixels = in_order(self._pixels, pictures, ahead=_AHEAD * self._batch_size)
        while batch := list(islice(pixels, self._batch_size)):
            yield batch

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
