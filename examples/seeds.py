"""A data set as captions and seeds, painted again: `python seeds.py [RUN] [SEEDS] [AGAIN]`."""

import sys
from pathlib import Path

import synthclip
from synthclip.imagegen.seeds import materialize
from synthclip.interop.seeds import export_seeds


def main(run: str = "runs/first", seeds: str = "seeds", again: str = "runs/again") -> None:
    count = export_seeds(Path(run), Path(seeds))
    size = sum(path.stat().st_size for path in Path(seeds).rglob("*.parquet"))
    print(f"{count} images in {size:,} bytes")
    # In this process, as the run was: another number of threads rounds sums in another order.
    for split in materialize(seeds, again, ["engine.workers=0"]).splits:
        print(f"{split.split}: {split.equal} of {split.images} are equal, byte for byte")
    synthclip.run(again, again, stages=["train"])
    weights = [Path(path, "train/model/open_clip_model.safetensors").read_bytes() for path in (run, again)]
    print(f"the model trained on them is {'the same' if weights[0] == weights[1] else 'another'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
