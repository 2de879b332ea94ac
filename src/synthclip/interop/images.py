"""A run's images in the formats of others: the official zips and CSV, or Hugging Face Parquet."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.run.durable import new_folder
from synthclip.samples import OTHER_TEXTS, images
from synthclip.schema import IMAGE_SPLITS, split_tables

ImageFormat = Literal["synthci", "parquet"]
_ROWS_A_GROUP = 500
_PARQUET = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("caption_id", pa.uint64()),
        ("concept_ids", pa.list_(pa.int32())),
        ("captions", pa.list_(pa.string())),
    ]
).with_metadata(
    {
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "image": {"_type": "Image"},
                        "caption": {"dtype": "string", "_type": "Value"},
                        "key": {"dtype": "string", "_type": "Value"},
                        "caption_id": {"dtype": "uint64", "_type": "Value"},
                        "concept_ids": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"},
                        "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
                    }
                }
            }
        )
    }
)


def export_images(run: Path, folder: Path, format: ImageFormat) -> int:
    """Write the images of a run, or of an import, into a new folder; returns how many.

    - `synthci`: `SynthCI-30/data/<n>.zip` and the tab-separated CSV of the official data set. It holds the
      split `train` alone, as that data set has no other.
    - `parquet`: `data/<split>-<i>-of-<n>.parquet`, which `datasets.load_dataset(folder)` reads; `captions`
      are all that an image has, `caption` the one that it was painted from.

    Raises SynthClipError where there are no images, a shard is damaged, or `folder` is not empty.
    """
    shards = {split: split_tables(run / "images", split) for split in IMAGE_SPLITS}
    if not shards["train"]:
        raise SynthClipError(f"{run}: holds no images: expected {run}/images/train/<n>.tar")
    with new_folder(folder) as partial:
        if format == "synthci":
            return _write_synthci(shards["train"], partial)
        return sum(_write_parquet(split, paths, partial) for split, paths in shards.items())


def _write_synthci(shards: list[Path], folder: Path) -> int:
    from synthclip.imagegen.imported import CSV_NAME, SUBFOLDER

    root, count = folder / SUBFOLDER, 0
    (root / "data").mkdir(parents=True)
    with (root / CSV_NAME).open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, delimiter="\t", lineterminator="\n")
        rows.writerow(["image_path", "caption"])
        for number, sidecar in enumerate(shards):
            with zipfile.ZipFile(root / "data" / f"{number}.zip", "w", zipfile.ZIP_STORED) as archive:
                for row in images([sidecar], ["text"]):
                    image_path = f"{number}/{row['key']}.jpeg"
                    archive.writestr(zipfile.ZipInfo(image_path), row["jpeg"])
                    rows.writerow([image_path, " ".join(row["text"].splitlines())])
                    count += 1
    return count


def _write_parquet(split: str, shards: list[Path], folder: Path) -> int:
    count = 0
    (folder / "data").mkdir(exist_ok=True)
    for number, sidecar in enumerate(shards):
        path = folder / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        with pq.ParquetWriter(path, _PARQUET, compression="zstd") as out:
            rows: list[dict[str, Any]] = []
            more = {OTHER_TEXTS} & set(pq.read_schema(sidecar).names)
            for row in images([sidecar], ["text", "caption_id", "concept_ids", *more]):
                rows.append(
                    {
                        "image": {"bytes": row["jpeg"], "path": f"{row['key']}.jpg"},
                        "caption": row["text"],
                        "key": row["key"],
                        "caption_id": row["caption_id"],
                        "concept_ids": row["concept_ids"],
                        "captions": [row["text"], *(row.get(OTHER_TEXTS) or ())],
                    }
                )
                count += 1
                if len(rows) == _ROWS_A_GROUP:
                    out.write_table(pa.Table.from_pylist(rows, _PARQUET))
                    rows.clear()
            if rows:
                out.write_table(pa.Table.from_pylist(rows, _PARQUET))
    return count
