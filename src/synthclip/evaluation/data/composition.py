"""Sets that ask which words belong together: Winoground, SugarCrepe and SugarCrepe++, as they are published.

Winoground (arXiv 2204.03162): `examples.jsonl` (in the folder or in `data`) beside the folder `images`.
SugarCrepe (arXiv 2306.14610): `swap_att.json` and the like, a file a kind, in the folder or in `data`,
beside COCO's `val2017`. SugarCrepe++ (arXiv 2406.11171) is the same with a second right caption,
`caption2`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Composition, Layout, loose_files, picture_files, read_lines

_WINOGROUND = "examples.jsonl"
_CREPE = ("add_*.json", "replace_*.json", "swap_*.json")


def read_winoground(folder: Path, name: str) -> Composition:
    path = _found(folder, (_WINOGROUND,))[0]
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(read_lines(path), 1)]
    needed = ("caption_0", "caption_1", "image_0", "image_1")
    return _composition(folder, name, list(_checked(rows, needed)), needed[2:], needed[:2])


def read_sugarcrepe(folder: Path, name: str) -> Composition:
    rows: list[tuple[str, dict[str, Any]]] = []
    for path in _found(folder, _CREPE):
        try:
            listed = json.loads(path.read_bytes())
        except ValueError as error:
            raise SynthClipError(f"{path}: not JSON ({error}): fetch it again") from None
        items = listed.items() if isinstance(listed, dict) else enumerate(listed)
        rows += ((f"{path}, {key}", {"tag": path.stem, **item}) for key, item in items)
    captions: tuple[str, ...] = ("caption", "negative_caption")
    if rows and "caption2" in rows[0][1]:
        captions = ("caption", "caption2", "negative_caption")
    needed = ("filename", *captions)
    return _composition(folder, name, list(_checked(rows, needed)), ("filename",), captions)


def _composition(
    folder: Path,
    name: str,
    rows: list[dict[str, Any]],
    image_keys: tuple[str, ...],
    caption_keys: tuple[str, ...],
) -> Composition:
    places = [
        folder,
        *(folder.parent / other for other in ("coco", "val2017") if (folder.parent / other).is_dir()),
    ]
    files = {
        key: path for place in places for path in picture_files(place, []) for key in (path.name, path.stem)
    }
    wanted = list(dict.fromkeys(str(row[key]) for row in rows for key in image_keys))
    if missing := [image for image in wanted if image not in files]:
        raise SynthClipError(
            f"{folder}: {len(missing)} of its {len(wanted)} images are not there ({missing[0]}, …): put "
            "them below it"
        )
    number = {image: at for at, image in enumerate(wanted)}
    text = {
        caption: at for at, caption in enumerate(dict.fromkeys(row[k] for row in rows for k in caption_keys))
    }
    root = folder.parent if len(places) > 1 else folder
    return Composition(
        name,
        loose_files(root, [files[image] for image in wanted]),
        tuple(text),
        np.array([[number[str(row[key])] for key in image_keys] for row in rows], np.int64),
        np.array([[text[row[key]] for key in caption_keys] for row in rows], np.int64),
        tuple(str(row.get("tag") or row.get("collapsed_tag") or "") for row in rows),
    )


def _checked(rows: list[tuple[str, dict[str, Any]]], needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for where, row in rows:
        if lacking := [key for key in needed if not isinstance(row.get(key), str) or not row[key].strip()]:
            raise SynthClipError(f"{where}: no {lacking[0]!r}: it is not as published")
        yield row


def _row(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, Mapping):
        raise SynthClipError(f"{where}: not a line of JSON: fetch the file again")
    return where, dict(row)


def _found(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    for place in (folder, folder / "data"):
        if found := sorted(path for pattern in patterns for path in place.glob(pattern)):
            return found
    return []


LAYOUTS: tuple[Layout, ...] = (
    (lambda folder: bool(_found(folder, (_WINOGROUND,))), read_winoground),
    (lambda folder: bool(_found(folder, _CREPE)), read_sugarcrepe),
)
