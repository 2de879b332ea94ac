"""Pictures decoded, fitted, encoded and hashed: for training, evaluation and imagegen alike."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

RGB = NDArray[np.uint8]
"""uint8 [H, W, 3]."""

MAX_BYTES = 256 * 2**20
"""The largest picture file that is read."""
MAX_PIXELS = 178_956_970
"""Where Pillow, too, takes a picture for a decompression bomb."""

_MAGIC = (
    (0, (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"\xff\x0a", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ")),
    (0, (b"\0\0\0\x0cjP  ", b"8BPS", b"\0\0\1\0", b"qoif")),
    (4, (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")),
    (8, (b"WEBP",)),
)
SNIFF_BYTES = 16
"""How many bytes of a file `is_picture` looks at."""


def is_picture(start: bytes) -> bool:
    """Whether a file that begins with `start` is a picture, by its content and not by its name."""
    return any(start.startswith(magic, at) for at, magic in _MAGIC)


def size(image: bytes) -> tuple[int, int]:
    """Height and width by the file's header. Raises ValueError where it has none, or where they are so large
    that a small file would take all memory."""
    return _header(image)[:2]


def _header(image: bytes) -> tuple[int, int, bool]:
    """Height, width, and whether simplejpeg turns it into the same RGB as Pillow."""
    import simplejpeg

    plain = False
    try:
        if image[:2] != b"\xff\xd8":
            raise ValueError
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
        plain = colours in ("YCbCr", "Gray", "RGB")
    except (ValueError, KeyError):  # KeyError of a header that is cut before it names the colours
        with _opened(image) as opened:
            height, width = opened.height, opened.width
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    return height, width, plain


def checked_jpeg_size(image: bytes) -> tuple[int, int]:
    """Height and width of a JPEG that decodes to its last block. Raises ValueError with a plain reason."""
    import simplejpeg

    try:
        if image[:2] != b"\xff\xd8":
            raise ValueError
        height, width = size(image)
        try:
            # An eighth of the size is all libjpeg need compute; it still reads every block.
            simplejpeg.decode_jpeg(image, "GRAY", fastdct=True, min_height=1, min_width=1, min_factor=8)
        except ValueError:
            _by_pillow(image)
    except ValueError:
        raise ValueError("not a whole JPEG") from None
    return height, width


def decode(image: bytes, min_height: int = 0, min_width: int = 0) -> RGB:
    """RGB uint8 [H, W, 3] of a picture file; its orientation tag is ignored, as CLIP's data sets do.

    Where it has twice the minimum size or more, a JPEG may come smaller, at so many eighths of its size: its
    higher frequencies are left out instead of being computed and averaged away. Raises ValueError where the
    file is no picture, cut short, or so large that a small file would take all memory.
    """
    import simplejpeg

    if _header(image)[2]:
        # The sizes between half and whole take longer than the whole.
        wanted = {"min_height": min_height, "min_width": min_width, "min_factor": 2 if min_height else 1}
        try:
            decoded: RGB = simplejpeg.decode_jpeg(image, "RGB", **wanted)
            return decoded
        except ValueError:  # Pillow ignores padding between the blocks
            pass
    return _by_pillow(image)


def decode_over_white(image: bytes) -> RGB:
    """As `decode`, transparent parts over white."""
    with _opened(image) as opened:
        if not opened.has_transparency_data:
            return decode(image)
        from PIL import Image

        colours = opened.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return np.array(Image.alpha_composite(white, colours).convert("RGB"))


def _by_pillow(image: bytes) -> RGB:
    with _opened(image) as opened:
        if opened.mode.startswith("I;16") or opened.mode == "I":
            # Pillow's conversion clips at 255; 16 bits become their upper 8, as in libpng.
            grey = np.clip(np.asarray(opened).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if opened.mode == "F":
            raise ValueError("floating-point pixels")
        return np.array(opened.convert("RGB"))


@contextmanager
def _opened(image: bytes) -> Iterator["Image"]:
    """A picture in Pillow. Raises ValueError of one line where it is none, or damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            yield opened
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).partition("<")[0].strip() or type(error).__name__) from None


def fit(image: RGB, size_px: int) -> RGB:
    """The middle square of uint8 [H, W, 3] at [size_px, size_px, 3]; antialiased where it shrinks."""
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size_px:
        return square
    how = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
    resized: Any = cv2.resize(square, (size_px, size_px), interpolation=how)
    return np.asarray(resized, np.uint8)


def encode(image: RGB, quality: int) -> bytes:
    """JPEG of uint8 [H, W, 3] in RGB, chroma at half resolution as in most photographs."""
    import simplejpeg

    jpeg: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return jpeg


ALIKE_BITS = 6
"""Pictures whose perceptual hashes differ in no more of 64 bits look alike: what another size and stronger
compression come to. Two unrelated pictures are so close once in 10^11."""


def perceptual_hash(image: RGB) -> np.uint64:
    """The DCT hash of uint8 [H, W, 3]: 64 bits that change little with scale, noise and encoding.

    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), section 3.2.1.
    """
    import cv2

    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low: Any = cv2.dct(grey.astype(np.float32))[1:9, 1:9]
    bits = (low > np.median(low)).ravel()
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes(), "big"))
