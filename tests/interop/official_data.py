"""Makes data in the official SynthCI-30M layout."""

import csv
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

CSV_NAME = "combined_images_and_captions.csv"


def jpeg(seed: int, side_px: int = 48) -> bytes:
    """A picture that no other seed has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((side_px // 6, side_px // 6, 1), dtype=np.uint8))
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 90)
    return encoded


def write_zip(root: Path, number: int, members: Mapping[str, bytes]) -> Path:
    path = root / "SynthCI-30" / "data" / f"{number}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_csv(root: Path, rows: Iterable[tuple[str, str]], raw: bytes = b"") -> Path:
    """The rows as pandas would write them, then `raw` as it is."""
    path = root / "SynthCI-30" / CSV_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["image_path", "caption"])
        table.writerows(rows)
    with path.open("ab") as out:
        out.write(raw)
    return path


def write_plain(root: Path, zips: int, images: int) -> dict[str, str]:
    """Whole zips of whole images; returns captions by image path."""
    captions = {}
    for number in range(zips):
        names = [f"{number}/{index}_0.jpeg" for index in range(images)]
        write_zip(root, number, {name: jpeg(1000 * number + k) for k, name in enumerate(names)})
        captions.update({name: f"Caption {k} of zip {number}." for k, name in enumerate(names)})
    write_csv(root, captions.items())
    return captions


class Sample(NamedTuple):
    key: str
    jpeg: bytes
    caption: str
    metadata: dict[str, Any]


def read_samples(path: Path) -> Iterator[Sample]:
    """What `tarfile` finds in a shard."""
    with tarfile.open(path) as tar:
        contents = [(name, tar.extractfile(name)) for name in tar.getnames()]
        parts = [(*name.rsplit(".", 1), content.read()) for name, content in contents if content]
    for (key, _, jpeg), (_, _, text), (_, _, metadata) in zip(*[iter(parts)] * 3, strict=True):
        yield Sample(key, jpeg, text.decode(), json.loads(metadata))
