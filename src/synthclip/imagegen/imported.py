"""Images from the official SynthCI-30M files in the place of a model's.

On the hub the data set is `SynthCI-30/data/<n>.zip`, images inside, and one tab-separated
`SynthCI-30/combined_images_and_captions.csv` whose `image_path` is relative to `SynthCI-30/data/`. Every zip
becomes one shard; the shard `csv` holds the rows of the CSV that were refused. The images are never unpacked
to disk, and memory is bounded by the captions of one zip for each worker. A vision model may look at the
images on their way.
"""

import json
import re
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from synthclip.errors import SynthClipError
from synthclip.imagegen.filters import Verdict
from synthclip.imagegen.vision import Looks, columns
from synthclip.keys import digest, text_id
from synthclip.run.durable import rejected_by_reason
from synthclip.run.engine import Shard, Tick
from synthclip.run.store import Outcome, ShardWriter
from synthclip.run.threads import in_order
from synthclip.samples import OTHER_TEXTS
from synthclip.samples.csv_rows import RowError, numbered_rows
from synthclip.samples.pictures import MAX_BYTES, checked_jpeg_size
from synthclip.samples.remembered import quick_digests
from synthclip.samples.tars import TarWriter

SUBFOLDER = "SynthCI-30"
CSV_NAME = "combined_images_and_captions.csv"
RECIPE = "synthci-30m"
"""The recipe that an import is a run of."""

_SPLIT = "train"
_CSV_SHARD = "csv"
_BACKEND = "SynthCI-30M"
_LICENCE = "as stated on the data set's page"
_BROKEN_ZIP = "broken zip, or not named by a number"
_REFUSED_ROWS = "refused.jsonl"
_BUFFERED_BYTES = 64 * 2**20
_SHOWN_CHARACTERS = 500
_TICK = 64


@dataclass(frozen=True)
class ImportSummary:
    """The result of an import, over all zips that are in `out` now."""

    images: int
    rejected: Mapping[str, int]
    """Images and rows that were skipped, by reason. Each is named in `images/rejected/`."""
    rows_without_zip: int = 0
    """Rows of the CSV whose zip is not here (yet)."""
    broken: tuple[str, ...] = ()
    """Zips that cannot be opened, cut short perhaps. Download them again and repeat the command."""


def import_synthci(source: Path, out: Path, workers: int | Literal["auto"] = "auto") -> ImportSummary:
    """Turn the official files under `source` into a run whose images they are: `out/images/train/<n>.tar`.

    Every JPEG is decoded; what is damaged, missing, or reaches out of the folder is counted, named in
    `images/rejected/` and skipped. Zips that are imported already are not imported again, so a stopped
    command resumes, and more zips can be downloaded and added later.

    Raises SynthClipError where `source` is not in the official layout or `out` holds something else.
    """
    from synthclip.recipe import load_recipe
    from synthclip.run import pipeline

    overrides = [f"images.imported={json.dumps(str(source.resolve()))}", f"engine.workers={workers}"]
    run = pipeline.run(load_recipe(RECIPE, overrides), out, stages=["images"])
    manifests = run.manifests("images")
    rejected = rejected_by_reason(manifests)
    del rejected[_BROKEN_ZIP]
    [csv] = [manifest for manifest in manifests if manifest.shard == _CSV_SHARD]
    return ImportSummary(
        sum(manifest.rows for manifest in manifests),
        dict(sorted(rejected.items())),
        csv.notes["rows_without_zip"],
        tuple(csv.notes["broken"]),
    )


def shards(path: str) -> list[Shard]:
    """One for the rows of the CSV, and one for every zip. Raises SynthClipError where `path` is not in the
    official layout."""
    csv, data = _locate(Path(path).expanduser())
    zips, broken = _zips(data)
    csv_digest, *digests = quick_digests([csv, *zips.values()])
    names = [file.name for file in zips.values()]
    rows = Shard(_CSV_SHARD, {"csv": csv_digest, "zips": digest(*names, "", *broken)}, {"broken": broken})
    return [rows] + [
        Shard(f"{_SPLIT}/{number:05d}", {"zip": known, "csv": csv_digest}, {"zip": str(file)})
        for (number, file), known in zip(zips.items(), digests, strict=True)
    ]


def split_csv(path: str, folder: Path) -> None:
    """Write `folder/<zip>.tsv`, lines of image path and caption, for every zip that is here, and the rows
    that are refused."""
    csv, data = _locate(Path(path).expanduser())
    zips = {file.stem for file in _zips(data)[0].values()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    without_zip = 0
    buffers: defaultdict[str, list[bytes]] = defaultdict(list)
    buffered = 0
    with csv.open("rb") as lines, (folder / _REFUSED_ROWS).open("w", encoding="utf-8") as refused:
        for number, line, row in numbered_rows(lines, str(csv)):
            try:
                if isinstance(row, RowError):
                    raise row
                image_path, caption = row
                zip_name = _zip_name(image_path)
                if not caption:
                    raise RowError("empty caption")
                caption = re.sub(r"\r?\n", " ", caption)
            except RowError as error:
                shown = line[:_SHOWN_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
                bad = {"key": f"{CSV_NAME} line {number}", "text": shown, "reason": str(error)}
                refused.write(json.dumps(bad) + "\n")
                continue
            if zip_name not in zips:
                without_zip += 1
                continue
            entry = f"{image_path}\t{caption}\n".encode()
            buffers[zip_name].append(entry)
            buffered += len(entry)
            if buffered >= _BUFFERED_BYTES:
                _flush(buffers, folder)
                buffered = 0
        refused.write(json.dumps({"rows_without_zip": without_zip}) + "\n")
    _flush(buffers, folder)


def make(
    shard: Shard, writer: ShardWriter, tick: Tick, captions: Path, looks: Looks | None = None
) -> Outcome:
    """Make one shard of what `split_csv` wrote into the folder `captions`."""
    if shard.name == _CSV_SHARD:
        return _make_csv(shard, writer, captions)
    path = Path(shard.payload["zip"])
    first = ""

    def refuse(image_path: str, reason: str, caption: str | None = None) -> None:
        nonlocal first
        first = first or f", such as {image_path!r} ({reason})"
        writer.reject({"key": image_path, "backend": _BACKEND, "text": caption}, reason)

    texts: dict[str, str] = {}
    for image_path, caption in _captions(captions / f"{path.stem}.tsv"):
        if image_path in texts:
            refuse(image_path, "second row for an image", caption)
        else:
            texts[image_path] = caption

    def usable(archive: zipfile.ZipFile) -> Iterator[_Picture]:
        for member, image_path in _members(archive, path.stem):
            if image_path not in texts:
                refuse(image_path, "no caption")
                continue
            caption = texts.pop(image_path)
            try:
                jpeg = _read(archive, member)
                yield _Picture(image_path, jpeg, caption, checked_jpeg_size(jpeg))
            except ValueError as error:
                refuse(image_path, str(error), caption)

    kept: list[dict[str, Any]] = []
    tar_name = f"{shard.name}.tar"
    with _open(path) as archive, TarWriter(writer.path(tar_name)) as tar:
        for picture in _seen(usable(archive), looks):
            if picture.verdict.reason is not None:
                refuse(picture.path, picture.verdict.reason, picture.caption)
                continue
            kept.append({**_add(tar, picture, looks), "shard": tar_name})
            if len(kept) % _TICK == 0:
                tick(_TICK)
    for image_path, caption in texts.items():
        refuse(image_path, "missing file", caption)
    if not kept:
        raise SynthClipError(
            f"{path}: not one of its images can be used{first}: check that the CSV belongs to this zip"
        )
    writer.rows(f"{shard.name}.parquet", columns(looks), kept)
    seen = looks.notes(shard.name) if looks else {}
    return Outcome(len(kept), notes={"backend": _BACKEND, "licence": _LICENCE, **seen})


def _make_csv(shard: Shard, writer: ShardWriter, captions: Path) -> Outcome:
    for name in shard.payload["broken"]:
        writer.reject({"key": name}, _BROKEN_ZIP)
    notes: dict[str, Any] = {"broken": shard.payload["broken"]}
    with (captions / _REFUSED_ROWS).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if "reason" in row:
                writer.reject({"key": row["key"], "text": row["text"]}, row["reason"])
            else:
                notes |= row
    return Outcome(0, notes=notes)


def _locate(source: Path) -> tuple[Path, Path]:
    """The CSV and the folder of zips, `source` being the download or its `SynthCI-30`."""
    for root in (source, source / SUBFOLDER):
        if (root / CSV_NAME).is_file() and (root / "data").is_dir():
            return root / CSV_NAME, root / "data"
    raise SynthClipError(
        f"{source}: not the official layout: expected {CSV_NAME} and a folder data with <n>.zip in it; "
        "`synthclip fetch synthci` downloads them"
    )


def _zips(data: Path) -> tuple[dict[int, Path], list[str]]:
    """The zips by their number, in order, and the names of those that are no zips or not numbered."""
    usable, broken = {}, []
    for path in data.glob("*.zip"):
        if path.stem.isdecimal() and zipfile.is_zipfile(path):
            usable[int(path.stem)] = path
        else:
            broken.append(path.name)
    if not usable:
        raise SynthClipError(
            f"{data}: holds no complete zip named by a number, such as 0.zip: download some first"
        )
    return dict(sorted(usable.items())), sorted(broken)


def _zip_name(image_path: str) -> str:
    """The zip that holds the image: the path's first folder."""
    parts = PurePosixPath(image_path).parts
    if image_path.startswith("/") or ".." in parts or "\\" in image_path or "\0" in image_path:
        raise RowError("path leaves the folder")
    if len(parts) < 2:
        raise RowError("path names no zip")
    return parts[0]


def _flush(buffers: defaultdict[str, list[bytes]], folder: Path) -> None:
    for name, lines in buffers.items():
        with (folder / f"{name}.tsv").open("ab") as out:
            out.writelines(lines)
    buffers.clear()


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    """Image path and caption of every row that `split_csv` wrote to a file."""
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                image_path, _, caption = line.decode().rstrip("\n").partition("\t")
                yield image_path, caption


@dataclass(frozen=True)
class _Picture:
    path: str
    jpeg: bytes
    caption: str
    size_px: tuple[int, int]
    """Height and width."""
    verdict: Verdict = field(default_factory=Verdict)


def _seen(pictures: Iterator[_Picture], looks: Looks | None) -> Iterator[_Picture]:
    """The same pictures after the vision model."""
    if looks is None:
        return pictures

    def look(picture: _Picture) -> _Picture:
        looks.judge([picture.jpeg], [picture.caption], [text_id(picture.path)], [picture.verdict])
        return picture

    return in_order(look, pictures, threads=looks.pictures_at_once)


def _add(tar: TarWriter, picture: _Picture, looks: Looks | None) -> dict[str, Any]:
    """Put one sample into the tar; returns its row of the sidecar, all but the shard's name."""
    # Official names are `<chunk>/<index>_<j>.jpeg`, j the variant.
    stem, caption, verdict = picture.path.rsplit(".", 1)[0], picture.caption, picture.verdict
    variant = re.search(r"_(\d{1,6})$", stem)
    row = {
        "key": re.sub(r"[^A-Za-z0-9_-]", "-", stem),
        "caption_id": text_id(caption),
        "concept_ids": [],
        "variant": int(variant[1]) if variant else 0,
        "seed": None,
        "backend": _BACKEND,
    }
    about = {**row, "caption_id": str(row["caption_id"]), "caption": caption, "licence": _LICENCE}
    if looks is not None:
        looks.count(verdict.scores, verdict.other_texts, verdict.unusable)
        about |= looks.metadata(verdict.other_texts)
    place = tar.add(str(row["key"]), picture.jpeg, caption, {**about, "image_path": picture.path})
    row |= {"text": caption, OTHER_TEXTS: verdict.other_texts, "scores": list(verdict.scores.items())}
    row["sha256"] = sha256(picture.jpeg).hexdigest()
    height_px, width_px = picture.size_px
    return {**row, "width_px": width_px, "height_px": height_px, **place._asdict()}


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise SynthClipError(f"{path}: cannot be opened ({error}): download it again") from None


def _members(archive: zipfile.ZipFile, zip_name: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The files, in the order in which they lie, each with the path that the CSV knows it by.

    A zip may hold its images bare, under its own number, or under folders above that.
    """
    for member in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not member.is_dir():
            _, found, inside = f"/{member.filename}".rpartition(f"/{zip_name}/")
            yield member, f"{zip_name}/{inside if found else member.filename}"


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Raises ValueError with the reason why it cannot be used."""
    if member.file_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB")
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        # In this order: wrong checksum or header, damaged stream, cut stream, encrypted, unknown method.
        raise ValueError("corrupt zip member") from None
