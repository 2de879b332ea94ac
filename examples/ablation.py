"""Two variants of a recipe, trained and compared: `python ablation.py [RUN] [OUT]`."""

import sys

import synthclip


def main(run: str = "runs/first", out: str = "sweeps/crops") -> None:
    asked = synthclip.Sweep(
        recipe=run,
        about="Do tighter crops help?",
        variants={"whole": {"training.crop_scale": [1.0, 1.0]}, "crops": {"training.crop_scale": [0.6, 1.0]}},
        overrides=["training.epochs=1"],
        seeds=1,  # three or more tell a difference from chance
    )
    swept = synthclip.sweep(asked, out, trust=True)
    print(f"{len(swept.runs)} trainings, {len(swept.failed)} failed; see {swept.directory.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
