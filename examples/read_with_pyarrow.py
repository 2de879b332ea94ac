"""A run's captions, images and scores as tables: `python read_with_pyarrow.py [RUN]`."""

import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds


def main(run: str = "runs/first") -> None:
    # Beside each tar there is a sidecar of the same name, with a row for each image.
    images = ds.dataset(sorted(Path(run, "images/train").glob("*.parquet")))
    print(f"{images.count_rows()} images, with {', '.join(images.schema.names)}")

    concepts = ds.dataset(Path(run, "concepts/00000.parquet")).to_table()["text"].to_pylist()
    table = images.to_table(columns=["key", "text", "concept_ids", "shard", "offset", "length"])
    counts = pc.value_counts(pc.list_flatten(table["concept_ids"])).to_pylist()
    for found in sorted(counts, key=lambda found: -found["counts"])[:3]:
        print(f"{concepts[found['values']]}: {found['counts']} images")

    row = table.slice(0, 1).to_pylist()[0]
    with Path(run, "images", row["shard"]).open("rb") as tar:
        tar.seek(row["offset"])
        Path(run, "first.jpg").write_bytes(tar.read(row["length"]))
    print(f"{row['text']} -> {run}/first.jpg")


if __name__ == "__main__":
    main(*sys.argv[1:])
