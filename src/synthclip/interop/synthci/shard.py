"""One zip of the official data set, turned into one shard."""

import hashlib
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.interop.synthci.captions import read_captions
from synthclip.keys import digest, text_id
from synthclip.run.engine import Shard, Tick, Work
from synthclip.run.store import Outcome, RunDirectory, ShardWriter, disk_errors
from synthclip.samples.tars import TarWriter

STAGE = "images"
BACKEND = "SynthCI-30M"
LICENCE = "as stated on the data set's page"
_REVISION = "1"
_LARGEST_BYTES = 64 * 2**20
_LARGEST_PIXELS = 64 * 2**20
_TICK = 64


class _ImageError(Exception):
    """A member that cannot be used; the message is the reason it is counted under."""


def fingerprint(shard: Shard) -> str:
    """What a shard's manifest must say for it to be taken as done."""
    return digest(_REVISION, json.dumps(dict(shard.inputs), sort_keys=True))


@dataclass(frozen=True)
class LoadShardMaker:
    """What a worker is sent: where the shards go, and where the captions of each zip lie."""

    out: Path
    captions: Path

    def __call__(self) -> Work:
        directory = RunDirectory(self.out)

        def work(shard: Shard, tick: Tick) -> Outcome:
            with (
                disk_errors(self.out),
                directory.begin(STAGE, shard.name, fingerprint(shard)) as writer,
            ):
                outcome = _make(shard, self.captions, writer, tick)
                writer.commit(outcome)
            return outcome

        return work


def _make(shard: Shard, captions_folder: Path, writer: ShardWriter, tick: Tick) -> Outcome:
    path = Path(shard.payload["zip"])
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []

    def refuse(image_path: str, reason: str, caption: str | None = None) -> None:
        refused.append({"key": image_path, "backend": BACKEND, "text": caption, "reason": reason})

    captions: dict[str, str] = {}
    for image_path, caption in read_captions(captions_folder / f"{path.stem}.tsv"):
        if image_path in captions:
            refuse(image_path, "second row for an image", caption)
        else:
            captions[image_path] = caption

    tar_name = f"{shard.name}.tar"
    with _open(path) as archive, TarWriter(writer.path(tar_name)) as tar:
        for member, image_path in _members(archive, path.stem):
            if image_path not in captions:
                refuse(image_path, "no caption")
                continue
            caption = captions.pop(image_path)
            try:
                row = _add(tar, image_path, _read(archive, member), caption)
            except _ImageError as error:
                refuse(image_path, str(error), caption)
                continue
            kept.append({**row, "shard": tar_name})
            if len(kept) % _TICK == 0:
                tick(_TICK)
    for image_path, caption in captions.items():
        refuse(image_path, "missing file", caption)
    if not kept:
        named = f", such as {refused[0]['key']!r} ({refused[0]['reason']})" if refused else ""
        raise SynthClipError(
            f"{path}: not one of its images can be used{named}: is the CSV that of this zip?"
        )
    writer.rows(f"{shard.name}.parquet", schema.IMAGE, kept)
    writer.rows(f"rejected/{shard.name}.parquet", schema.REJECTED_IMAGE, refused)
    return Outcome(
        len(kept), Counter(row["reason"] for row in refused), {"backend": BACKEND, "licence": LICENCE}
    )


def _add(tar: TarWriter, image_path: str, jpeg: bytes, caption: str) -> dict[str, Any]:
    """Put one sample into the tar; returns its row of the sidecar, all but the shard's name."""
    height_px, width_px = _checked_size(jpeg)
    key, variant = _key(image_path)
    identity = {
        "key": key,
        "caption_id": text_id(caption),
        "concept_ids": [],
        "variant": variant,
        "seed": None,
        "backend": BACKEND,
    }
    extra = {"caption": caption, "licence": LICENCE, "image_path": image_path}
    about = {**identity, **extra, "caption_id": str(identity["caption_id"])}
    try:
        place = tar.add(key, jpeg, caption, about)
    except ValueError:
        raise _ImageError("second image of a key") from None
    return {
        **identity,
        "text": caption,
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "width_px": width_px,
        "height_px": height_px,
        "scores": [],
        "offset": place.offset,
        "length": place.length,
    }


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise SynthClipError(f"{path}: cannot be opened ({error}): fetch it again") from None


def _members(archive: zipfile.ZipFile, zip_name: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The files, in the order in which they lie, each with the path that the CSV knows it by.

    A zip may hold its images bare, under its own number, or under folders above that.
    """
    for member in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not member.is_dir():
            _, found, inside = f"/{member.filename}".rpartition(f"/{zip_name}/")
            yield member, f"{zip_name}/{inside if found else member.filename}"


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _LARGEST_BYTES:
        raise _ImageError("larger than 64 MiB")
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        # In this order: wrong checksum or header, damaged stream, cut stream, encrypted, unknown method.
        raise _ImageError("corrupt zip member") from None


def _checked_size(jpeg: bytes) -> tuple[int, int]:
    """Height and width in pixels of a JPEG that decodes to its last block."""
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if height * width > _LARGEST_PIXELS:
            raise _ImageError("more than 64 megapixels")
        # An eighth of the size is all libjpeg need compute; it still reads every block.
        simplejpeg.decode_jpeg(jpeg, "GRAY", fastdct=True, min_height=1, min_width=1, min_factor=8)
    except ValueError:
        raise _ImageError("not a whole JPEG") from None
    return height, width


def _key(image_path: str) -> tuple[str, int]:
    """A key without separators, and the variant j of official names `<chunk>/<index>_<j>.jpeg`."""
    stem = image_path.rsplit(".", 1)[0]
    variant = re.search(r"_(\d{1,6})$", stem)
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem), int(variant[1]) if variant else 0
