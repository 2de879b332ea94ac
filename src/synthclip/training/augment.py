"""From the bytes of an image file to a uint8 crop. Normalisation is left to the device."""

import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

_MAX_PIXELS = 178_956_970
"""Where Pillow, too, takes an image for a decompression bomb."""
_TRIES = 10
DRAWS = 4 * _TRIES
"""Uniform numbers that one crop takes."""
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def random_crop(
    image: bytes, scale: tuple[float, float], uniform_D: Sequence[float], out: NDArray[np.uint8]
) -> None:
    """A random resized crop of an image file into `out`, uint8 [S, S, 3] in RGB; see `crop_box`.

    Raises ValueError where the file is no image, or cut short.
    """
    height, width = _size(image)
    top, left, h, w = crop_box(height, width, scale, uniform_D)
    share = len(out) / min(h, w)
    whole = _decoded(image, math.ceil(share * height), math.ceil(share * width))
    eighths = 8 * max(whole.shape[:2]) // max(height, width)
    top, left, bottom, right = (round(e * eighths / 8) for e in (top, left, top + h, left + w))
    resize(whole[top:bottom, left:right], out)


def decode(image: bytes) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of a JPEG, PNG or WebP file. Raises ValueError where it is none, cut short, or so
    large that a small file would take all memory."""
    _size(image)
    return _decoded(image)


def _decoded(image: bytes, min_height: int = 0, min_width: int = 0) -> NDArray[np.uint8]:
    """An image whose size is known to be bearable.

    Where it has twice the least size wanted or more, a JPEG may come smaller, at so many eighths of its size:
    its higher frequencies are left out instead of being computed and averaged away.
    """
    if _is_jpeg(image):
        # The sizes between half and whole take longer than the whole.
        least = {"min_height": min_height, "min_width": min_width, "min_factor": 2 if min_height else 1}
        try:
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(image, "RGB", **least)
            return decoded
        except ValueError as error:
            if "Unsupported color conversion" not in str(error):
                raise
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr: Any = cv2.imdecode(np.frombuffer(image, np.uint8), flags) if image else None
    if bgr is None:
        raise ValueError("not an image")
    rgb: NDArray[np.uint8] = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb


def _size(image: bytes) -> tuple[int, int]:
    """Height and width as the file's header tells them. Raises ValueError where it has none, or they are so
    large that a small file would take all memory."""
    if _is_jpeg(image):
        height, width = simplejpeg.decode_jpeg_header(image)[:2]
    else:
        try:
            with Image.open(io.BytesIO(image)) as opened:
                height, width = opened.height, opened.width
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(str(error).partition("<")[0].strip()) from None
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    return height, width


def _is_jpeg(image: bytes) -> bool:
    return image[:2] == b"\xff\xd8"


def crop_box(
    height: int, width: int, scale: tuple[float, float], uniform_D: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop (Szegedy et al., arXiv 1409.4842, Section 6).

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4 to 4/3; after ten tries that do not
    fit, the largest central crop within the ratios is taken, as torchvision does. `uniform_D` holds `DRAWS`
    numbers in [0, 1).
    """
    for t in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform_D[t])
        ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * uniform_D[_TRIES + t])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = uniform_D[2 * _TRIES + t], uniform_D[3 * _TRIES + t]
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resize [H, W, 3] into `out` [S, S, 3], bilinear, as Pillow and torchvision do: where it shrinks, each
    pixel is an average over all that falls into it. OpenCV's, which is faster, takes four pixels always and
    so does only where it shrinks by less than a fifth."""
    if min(image.shape[:2]) <= 1.2 * len(out):
        cv2.resize(image, out.shape[:2], dst=out, interpolation=cv2.INTER_LINEAR)
        return
    image_1CHW = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    small_1CHW = interpolate(image_1CHW, size=out.shape[:2], mode="bilinear", antialias=True)
    np.copyto(out, small_1CHW[0].permute(1, 2, 0).numpy())
