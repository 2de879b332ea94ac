"""Training on WebDataset tars of your own: `python train_on_tars.py [TARS] [RUN]`."""

import sys
from pathlib import Path

import synthclip

HERE = Path(__file__).parent


def main(tars: str = "runs/first/images/train/*.tar", out: str = "runs/tars") -> None:
    # KEY.jpg and KEY.txt, as img2dataset writes them; braces name many tars: data/{00000..00331}.tar
    source = {"kind": "webdataset", "path": tars}
    recipe = synthclip.load_recipe(
        HERE / "recipe.yaml", ["name=tars", f"training.sources={[source]}"], trust=True
    )
    run = synthclip.run(recipe, out, stages=["train"])
    [trained] = run.manifests("train")
    print(f"{trained.notes['pairs'][0]} pairs, {trained.notes['steps']} steps -> {run.path}/train/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
