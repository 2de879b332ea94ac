"""The bytes of an image, straight out of its tar."""

import hashlib

from synthclip.errors import SynthClipError
from synthclip.run.store import RunDirectory
from synthclip.samples import files
from synthclip.samples.pictures import MAX_BYTES
from synthclip.view.gallery import Gallery


def read_jpeg(run: RunDirectory, gallery: Gallery, image: int) -> tuple[bytes, str] | None:
    """The JPEG of an image and its SHA-256; None where the index knows no such image.

    The tar is opened each time: a handle that is kept would go on showing a shard that was made again.
    Raises SynthClipError where the bytes are not those that were written.
    """
    place = gallery.place(image)
    if place is None:
        return None
    shard, offset, length, sha256 = place
    tar = run.file("images", f"{shard}.tar")
    try:
        jpeg = files.read_range(str(tar), offset, offset + length, MAX_BYTES)
    except OSError as error:
        raise SynthClipError(f"{tar}: cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(jpeg).hexdigest() != sha256:
        raise SynthClipError(f"{tar}: damaged: run `synthclip verify {run.path} --repair`")
    return jpeg, sha256
