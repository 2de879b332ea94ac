"""From the bytes of an image file to a uint8 crop. Normalisation is left to the device."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TRIES = 10
DRAWS = 4 * _TRIES
"""Uniform numbers that one crop takes."""
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def decode(image: bytes) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of a JPEG, PNG or WebP file. Raises ValueError where it is none, or cut short."""
    import cv2
    import simplejpeg

    if image[:2] == b"\xff\xd8":
        try:
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(image, "RGB")
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
    """Resize [H, W, 3] into `out` [size, size, 3], bilinear; where it shrinks by more than a fifth, by
    averaging areas, which takes five times as long and is needed against aliasing only there."""
    import cv2

    size = len(out)
    shrinks = min(image.shape[:2]) > 1.2 * size
    cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
