"""From the bytes of an image file to a uint8 crop. Normalisation is left to the device."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from synthclip.samples.pictures import decode, size

_TRIES = 10
DRAWS = 4 * _TRIES
"""Uniform numbers that one crop takes."""
DISTORTIONS = 16
"""Uniform numbers that one distortion takes."""
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def random_crop(
    image: bytes,
    scale: tuple[float, float],
    uniform_D: Sequence[float],
    out: NDArray[np.uint8],
    interpolation: str = "bilinear",
) -> None:
    """A random resized crop of an image file into `out`, uint8 [S, S, 3] in RGB; see `crop_box`.

    Raises ValueError where the file is no image, or cut short.
    """
    height, width = size(image)
    top, left, h, w = crop_box(height, width, scale, uniform_D)
    share = len(out) / min(h, w)
    whole = decode(image, math.ceil(share * height), math.ceil(share * width))
    eighths = 8 * max(whole.shape[:2]) // max(height, width)
    top, left, bottom, right = (round(e * eighths / 8) for e in (top, left, top + h, left + w))
    resize(whole[top:bottom, left:right], out, interpolation)


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


def distort(image: NDArray[np.uint8], strength: float, uniform_D: Sequence[float]) -> None:
    """Change the colours of a picture, uint8 [S, S, 3] in RGB, blur it and erase a rectangle, in place.

    Brightness, contrast, saturation and hue are drawn as in SimCLR (arXiv 2002.05709, appendix A, its colour
    strength times `strength`); a picture becomes grey in 20 %, blurred in 50 % and loses a rectangle of 2 to
    20 % of its area (arXiv 1708.04896) in 25 % of all cases, each times `strength`. `uniform_D` holds
    `DISTORTIONS` numbers in [0, 1).
    """
    u, S = uniform_D, len(image)
    if u[0] < 0.8:
        bright, contrast, colour = (1 + 0.8 * strength * (2 * v - 1) for v in u[1:4])
        turn = _turned(0.2 * strength * (2 * u[4] - 1))
    else:
        bright = contrast = colour = 1.0
        turn = np.eye(3)
    if u[5] < 0.2 * strength:
        colour = 0.0
    grey = np.tile(_LUMINANCE, (3, 1))
    matrix = bright * contrast * turn @ (colour * np.eye(3) + (1 - colour) * grey)
    middle = bright * (1 - contrast) * float(_LUMINANCE @ cv2.mean(image)[:3])
    cv2.transform(image, np.c_[matrix, np.full(3, middle)], dst=image)
    if u[6] < 0.5 * strength:
        cv2.GaussianBlur(image, (0, 0), (0.1 + 1.9 * u[7]) * S / 224, dst=image)
    if u[8] < 0.25 * strength:
        area, ratio = (0.02 + 0.18 * u[9]) * S * S, math.exp(math.log(3) * (2 * u[10] - 1))
        h, w = (min(S, max(1, round(math.sqrt(side)))) for side in (area / ratio, area * ratio))
        top, left = int(u[11] * (S - h + 1)), int(u[12] * (S - w + 1))
        image[top : top + h, left : left + w] = [int(256 * v) for v in u[13:16]]


_LUMINANCE = np.array((0.299, 0.587, 0.114))
_TO_YIQ = np.array((_LUMINANCE, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))


def _turned(turns: float) -> NDArray[np.float64]:
    """A matrix on RGB that turns the hue, as the chroma plane of YIQ is turned."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array(((1, 0, 0), (0, cos, -sin), (0, sin, cos)))
    found: NDArray[np.float64] = np.linalg.solve(_TO_YIQ, turn @ _TO_YIQ)
    return found


def resize(image: NDArray[np.uint8], out: NDArray[np.uint8], interpolation: str = "bilinear") -> None:
    """Resize [H, W, 3] into `out` [S, S, 3], `bilinear` or `bicubic`, as Pillow and torchvision do: where it
    shrinks, each pixel is an average over all that falls into it. OpenCV's, which is faster, takes as few
    pixels as where it grows, and so does only where it shrinks by less than a fifth."""
    if min(image.shape[:2]) <= 1.2 * len(out):
        how = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
        cv2.resize(image, out.shape[:2], dst=out, interpolation=how)
        return
    image_1CHW = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    small_1CHW = interpolate(image_1CHW, size=out.shape[:2], mode=interpolation, antialias=True)
    np.copyto(out, small_1CHW[0].permute(1, 2, 0).numpy())
