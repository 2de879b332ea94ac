"""A run as a data set of the library `datasets`: `python to_hugging_face.py [RUN] [FOLDER]`."""

import sys
from pathlib import Path

from datasets import load_dataset

from synthclip.interop.images import export_images


def main(run: str = "runs/first", folder: str = "exported") -> None:
    count = export_images(Path(run), Path(folder), "parquet")
    data = load_dataset("parquet", data_files={"train": f"{folder}/data/train-*.parquet"}, split="train")
    first = data[0]
    print(f"{count} images; the first: {first['image'].size}, {first['caption']!r}")
    # `synthclip push images RUN ORG/NAME` uploads the tars, which the hub shows and `datasets` streams.


if __name__ == "__main__":
    main(*sys.argv[1:])
