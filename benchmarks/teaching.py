"""What teaches: one run's images, the demo's model, each lever of training on and off, several seeds.

    synthclip images demo --out runs/teaching       # once: captions and images
    python benchmarks/teaching.py runs/teaching --seeds 0 1 2 --cifar ../shared/data/cifar10 --parallel 8

Each row changes one thing of the run's recipe. All are trained for as many steps as the recipe says, unless
the row says "equal cost", and judged on

- known drawings: held-out captions, painted by the artists that training sees (zero-shot over the concept
bank), - unseen artist: the same captions, painted by `images.heldout_painter`, - composition: pairs of
captions of exchanged words (Winoground's text, image and group score), - CIFAR-10: a linear probe on
features, `--probe-images` images to learn from and 10,000 to judge on.

Below them stand the same architecture with random weights, and a probe on raw 8 x 8 pixels. What is finished
stands in `OUT/results.jsonl` and is not trained again.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

FIRST_ARTIST = "first artist"
"""Marks the rows that see the images of one artist alone."""
UNTRAINED = "random weights"
PIXELS = "raw 8 x 8 pixels"
FIGURES = (
    ("known", "heldout", "zero_shot", "top1"),
    ("unseen", "heldout_painter", "zero_shot", "top1"),
    ("unseen top5", "heldout_painter", "zero_shot", "top5"),
    ("CIFAR-10", "cifar10", "linear_probe", "top1"),
    ("text", "composition", "composition", "text_score"),
    ("image", "composition", "composition", "image_score"),
    ("group", "composition", "composition", "group_score"),
)
"""Column, data set, task and metric of each figure of the table."""


class Row(NamedTuple):
    """A line of the table: the recipe values that it changes."""

    name: str
    overrides: tuple[str, ...] = ()
    epochs: float = 1.0
    """Times the recipe's own."""


ALL_OFF = (
    "training.concept_prompts=0",
    "training.mask_false_negatives=null",
    "training.resolutions=[]",
    "training.distortion=0",
)
HALF_COST = 0.51
"""Of a step at 64 px that one costs on average where 80 % of the steps see 40 px."""
ROWS = (
    Row("the recipe"),
    Row("without concept prompts", ("training.concept_prompts=0",)),
    Row("concept prompts 0.2", ("training.concept_prompts=0.2",)),
    Row("concept prompts 0.6", ("training.concept_prompts=0.6",)),
    Row("without masking", ("training.mask_false_negatives=null",)),
    Row("64 px throughout, equal steps", ("training.resolutions=[]",)),
    Row("64 px throughout, equal cost", ("training.resolutions=[]",), HALF_COST),
    Row(FIRST_ARTIST),
    Row(f"{FIRST_ARTIST}, all levers off", ALL_OFF),
    Row("all levers off", ALL_OFF),
    Row("distortion 0.25", ("training.distortion=0.25",)),
    Row("distortion 0.5", ("training.distortion=0.5",)),
    Row("distortion 1", ("training.distortion=1",)),
    Row("gradients clipped at 1", ("training.max_grad_norm=1",)),
    Row("weights averaged, 0.99", ("training.ema_decay=0.99",)),
    Row("multi-positive loss", ("training.loss=multi-positive",)),
)


class Job(NamedTuple):
    row: Row
    seed: int
    run: Path
    out: Path
    cifar: Path | None
    probe_images: int
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        name = "".join(char if char.isalnum() else "-" for char in self.row.name)
        return self.out / "runs" / f"{name}-{self.seed}"


def train_and_judge(job: Job) -> dict[str, Any]:
    """One training and its figures. The seed is that of weights and order alone: the data stay the same."""
    from synthclip.evaluation import Eval
    from synthclip.recipe import load_recipe
    from synthclip.run.store import RunDirectory
    from synthclip.training import Train

    own = load_recipe(job.run, job.overrides).training.epochs
    epochs = own * job.row.epochs
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    for stage in ("concepts", "balance", "images"):
        (job.folder / stage).symlink_to((job.run / stage).resolve())
    if job.row.name.startswith(FIRST_ARTIST):
        epochs *= _only_first_artist(job)
    seed = f"training.seed={job.seed}"
    overrides = [*job.overrides, *job.row.overrides, f"training.epochs={epochs}", seed]
    recipe = load_recipe(job.run, overrides)
    run, seconds = RunDirectory(job.folder), time.monotonic()
    if job.row.name != UNTRAINED:
        _make(Train(recipe, run))
        seconds = time.monotonic() - seconds
    else:
        _save_untrained(recipe, run)
        seconds = 0.0
    _make(Eval(recipe, run))
    rows = pq.read_table(run.file("eval", "results.parquet")).to_pylist()
    figures = {f"{row['dataset']}/{row['task']}/{row['metric']}": row["value"] for row in rows}
    if job.cifar is not None:
        figures["cifar10/linear_probe/top1"] = _probe(_features_of(run), job)
    shutil.rmtree(job.folder)
    return {"row": job.row.name, "seed": job.seed, "seconds": round(seconds, 1), "figures": figures}


def _only_first_artist(job: Job) -> float:
    """Write the images stage again with the first artist's images alone; how many times more there are in
    all."""
    from synthclip import schema
    from synthclip.run.store import Outcome, RunDirectory

    (job.folder / "images").unlink()
    whole, view = RunDirectory(job.run), RunDirectory(job.folder)
    seen = kept = 0
    for manifest in whole.manifests("images"):
        with view.begin("images", manifest.shard, FIRST_ARTIST) as writer:
            table = schema.read_table(whole.file("images", f"{manifest.shard}.parquet"))
            if manifest.shard.startswith("train/"):
                names = manifest.notes["backend"]
                first = names if isinstance(names, str) else names[0]
                own = table.filter(pc.equal(table["backend"], first))
                seen, kept, table = seen + table.num_rows, kept + own.num_rows, own
            writer.rows(f"{manifest.shard}.parquet", schema.IMAGE, table.to_pylist())
            shutil.copyfile(
                whole.file("images", f"{manifest.shard}.tar"), writer.path(f"{manifest.shard}.tar")
            )
            writer.commit(Outcome(table.num_rows, notes=manifest.notes))
    return seen / kept


def _make(stage: Any) -> None:
    from synthclip.run.stage import StageLoad

    work = StageLoad(type(stage), stage.recipe, stage.run.path)()
    for shard in stage.shards():
        work(shard, lambda rows, **figures: None)


def _save_untrained(recipe: Any, run: Any) -> None:
    import torch

    from synthclip.models.build import build_model, save_open_clip
    from synthclip.run.store import Outcome

    torch.manual_seed(recipe.training_seed)
    with run.begin("train", "all", "untrained") as writer:
        save_open_clip(build_model(recipe.model), writer.path("model/open_clip_config.json").parent)
        writer.path("model/open_clip_model.safetensors")
        writer.commit(Outcome(1))


def _features_of(run: Any) -> Callable[[Iterator[Any]], Any]:
    from synthclip.evaluation.encoder import Encoder
    from synthclip.models.load import load_model

    encoder = Encoder(*load_model(run.file("train", "model")))
    return lambda pictures: encoder.images(pictures).features


def _pixels(pictures: Iterator[Any]) -> Any:
    import cv2
    import numpy as np
    import torch

    from synthclip.samples.pictures import decode

    rows = [
        cv2.resize(decode(picture) if isinstance(picture, bytes) else np.asarray(picture), (8, 8))
        for picture in pictures
    ]
    return torch.from_numpy(np.stack(rows).reshape(len(rows), -1).astype(np.float32) / 255)


def _probe(features: Callable[[Iterator[Any]], Any], job: Job) -> float:
    """Top-1 of a linear probe on CIFAR-10's test images."""
    import numpy as np

    from synthclip.evaluation.data import open_dataset
    from synthclip.evaluation.probes import fit_probe

    assert job.cifar is not None
    data: Any = open_dataset(job.cifar.name, job.cifar.parent)
    train, test = data.splits["train"], data.splits["test"]
    step = max(1, len(train.labels) // job.probe_images)
    taken = np.arange(0, len(train.labels), step)
    probe = fit_probe(features(train.pictures.only(taken).read()), train.labels[taken], classes=10)
    return float((probe.predict(features(test.pictures.read())) == test.labels).mean())


def table(results: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: mean and standard deviation over seeds, in percent."""
    head = ["", *(figure[0] for figure in FIGURES), "seconds", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for name in names:
        mine = [result for result in results if result["row"] == name]
        if not mine:
            continue
        cells = []
        for _, *key in FIGURES:
            values = [100 * r["figures"]["/".join(key)] for r in mine if "/".join(key) in r["figures"]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        seconds = statistics.mean(result["seconds"] for result in mine)
        lines.append("| " + " | ".join([name, *cells, f"{seconds:.0f}", str(len(mine))]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run whose images are painted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", help="only rows whose name holds one of these")
    parser.add_argument("--cifar", type=Path, help="the folder of CIFAR-10 in a layout that eval reads")
    parser.add_argument("--probe-images", type=int, default=10_000)
    parser.add_argument("--parallel", type=int, default=2, help="trainings at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--out", type=Path, default=Path("teaching"))
    parser.add_argument("overrides", nargs="*", help="recipe values for all rows: training.epochs=2")
    options = parser.parse_intermixed_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    overrides = (
        f"training.data_threads={options.threads}",
        "training.loggers=[]",
        "evaluation.untrained=false",
        *options.overrides,
    )
    wanted = [row for row in (*ROWS, Row(UNTRAINED)) if _is_wanted(row.name, options.rows)]
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(result["row"], result["seed"]) for result in results}
    shared = (options.run, options.out, options.cifar, options.probe_images, overrides)
    jobs = [Job(row, seed, *shared) for seed in options.seeds for row in wanted]
    jobs = [job for job in jobs if (job.row.name, job.seed) not in done]
    if options.cifar is not None and (PIXELS, 0) not in done:
        value = _probe(_pixels, Job(Row(PIXELS), 0, *shared))
        figures = {"cifar10/linear_probe/top1": value}
        results.append({"row": PIXELS, "seed": 0, "seconds": 0.0, "figures": figures})
        log.write_text("".join(json.dumps(result) + "\n" for result in results))
    names = [*(row.name for row in wanted), PIXELS]
    with ProcessPoolExecutor(options.parallel, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_and_judge, job) for job in jobs]):
            results.append(future.result())
            with log.open("a") as handle:
                handle.write(json.dumps(results[-1]) + "\n")
            print(f"{results[-1]['row']}, seed {results[-1]['seed']}: {results[-1]['seconds']} s", flush=True)
    print(table(results, names))
    (options.out / "table.md").write_text(table(results, names) + "\n")


def _is_wanted(name: str, parts: list[str] | None) -> bool:
    return parts is None or any(part in name for part in parts)


if __name__ == "__main__":
    main()
