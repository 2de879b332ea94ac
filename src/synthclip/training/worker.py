"""One process of several that train one model: `torchrun … -m synthclip.training.worker RUN`.

It trains the run's recipe up to its last checkpoint; `synthclip train RUN` then writes the model from it. The
first process prints a line of JSON for each report: `{"rows": 640, "figures": {"loss": 2.1, …}}`.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.engine.worker import asked_to_stop
from synthclip.run.store import RunDirectory
from synthclip.training.job import build_trainer
from synthclip.training.launch import TELL
from synthclip.training.stage import Train


def main(path: Path) -> None:
    stage = Train(load_recipe(path), RunDirectory(path))

    def report(rows: int, figures: dict[str, float]) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(TELL + json.dumps({"rows": rows, "figures": figures}), flush=True)

    try:
        with asked_to_stop() as stop:
            build_trainer(stage, stage.shards()[0], report, stop).fit()
    except SynthClipError as error:
        print(TELL + json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
