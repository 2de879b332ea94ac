"""A run's images and real pictures, mixed in every batch: `python mix_real_data.py [RUN] [CSV] [OUT]`.

The CSV has the columns `file` and `caption`; files are relative to its folder.
"""

import sys
from pathlib import Path

import synthclip


def main(run: str = "runs/first", csv: str = "photos.csv", out: str = "runs/mixed") -> None:
    real = {"kind": "csv", "path": csv, "image_column": "file", "text_column": "caption", "weight": 0.5}
    sources = [{"kind": "run"}, real]  # two thirds of every batch are the run's
    recipe = synthclip.load_recipe(run, [f"training.sources={sources}"], trust=True)
    # `reuse`: images that are made of just the same are linked, not painted again.
    stages = ["concepts", "captions", "match", "balance", "images", "train"]
    mixed = synthclip.run(recipe, out, stages=stages, reuse=[Path(run)])
    [trained] = mixed.manifests("train")
    print(f"trained on {trained.notes['pairs']} pairs of run and CSV")


if __name__ == "__main__":
    main(*sys.argv[1:])
