"""A painter of your own, in one file: `python own_backend.py [RUN]`."""

import sys
from pathlib import Path

import synthclip

HERE = Path(__file__).parent


def main(out: str = "runs/discs") -> None:
    recipe = synthclip.load_recipe(
        HERE / "recipe.yaml",
        [
            f"concepts.sources={[{'kind': 'text', 'path': str(HERE / 'concepts.txt')}]}",
            "text_to_image={backend: my_backends.discs, size_px: 96}",  # see my_backends/discs.py
        ],
        trust=True,
    )
    run = synthclip.run(recipe, out, stages=["concepts", "captions", "match", "balance", "images"])
    for manifest in run.manifests("images"):
        print(f"{manifest.shard}: {manifest.rows} images by {manifest.notes['backend']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
