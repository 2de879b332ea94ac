"""Your own concepts, from a text file to a trained and evaluated model: `python own_concepts.py [RUN]`."""

import sys
from pathlib import Path

import synthclip

HERE = Path(__file__).parent


def main(out: str = "runs/first") -> None:
    concepts = [{"kind": "text", "path": str(HERE / "concepts.txt")}]
    # `trust`: the recipe names code of ours, my_backends.
    recipe = synthclip.load_recipe(HERE / "recipe.yaml", [f"concepts.sources={concepts}"], trust=True)
    run = synthclip.run(recipe, out)
    for stage in synthclip.status(run.path, recipe).stages:
        print(f"{stage.stage:9} {stage.rows:5} rows, {sum(stage.rejected.values())} refused")
    print(f"open {run.path / 'report.html'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
