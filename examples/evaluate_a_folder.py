"""Any open_clip model on a folder of your pictures: `python evaluate_a_folder.py [MODEL] [ROOT] [NAME]`.

ROOT/NAME/test holds a folder of pictures for each class; MODEL is a run, an open_clip folder, `NAME:TAG`
such as `ViT-B-32:openai`, or `hf-hub:ORG/REPO`.
"""

import sys

import synthclip


def main(model: str = "runs/first", root: str = "datasets", name: str = "mine") -> None:
    found = synthclip.evaluate(model, name, data=root, out="evaluations")
    for row in found.results:
        interval = f"{row['ci95_low']:.1%} to {row['ci95_high']:.1%}"
        print(f"{row['task']} {row['metric']}: {row['value']:.1%} ({interval}), chance {row['chance']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
