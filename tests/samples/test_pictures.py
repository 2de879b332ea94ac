"""One decoder: the same pixels in training and in evaluation."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from small_inputs import smooth
from synthclip.samples.pictures import SNIFF_BYTES, checked_jpeg_size, decode, is_picture, size

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[3] / "shared"))


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA", "1"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (32, 48)])
def test_decode_equals_pillow(height: int, width: int, kind: str, mode: str) -> None:
    try:
        content = encoded(Image.fromarray(smooth(height, width)).convert(mode), kind)
    except (OSError, ValueError):
        return  # a mode that this format has not
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert expected.shape == (height, width, 3)
    assert np.array_equal(decode(content), expected)
    assert size(content) == (height, width)
    assert is_picture(content[:SNIFF_BYTES])


def test_sixteen_bits_become_their_upper_eight() -> None:
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(deep), kind))
        assert np.array_equal(pixels[..., 0], (deep >> 8).astype(np.uint8))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_padding_before_the_end_mark_is_no_damage_and_a_missing_end_is() -> None:
    whole = simplejpeg.encode_jpeg(smooth(48, 64))
    padded = whole[:-2] + b"\x00\x00\x00" + whole[-2:]
    assert np.array_equal(decode(padded), decode(whole))
    assert checked_jpeg_size(padded) == (48, 64)
    for cut in (1, 2, 10, len(whole) // 2, len(whole) - 5, len(whole) - 30):
        with pytest.raises(ValueError, match=r"."):
            decode(whole[:-cut])
        with pytest.raises(ValueError, match="not a whole JPEG"):
            checked_jpeg_size(whole[:-cut])


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason=f"no cases in {SHARED}")
def test_pictures_of_the_wild() -> None:
    for name in sorted((SHARED / "cases/png16").rglob("*.png")):
        assert 30 < decode(name.read_bytes()).mean() < 100
    with tarfile.open(SHARED / "cases/jpeg_extraneous/0.tar") as tar:
        contents = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".jpg")]
        pictures = [decode(content.read()) for content in contents if content]
    assert len(pictures) == 160
    found = sorted((SHARED / "cases/folder_jfif").rglob("*.*"))
    assert len([path for path in found if is_picture(path.read_bytes()[:SNIFF_BYTES])]) == 45
    assert all(decode(path.read_bytes()).ndim == 3 for path in found)
