"""The engines side by side on the compositor: what Ray adds to local processes, over shards of growing size.

    python benchmarks/engine.py            # 20 shards, two workers

Ray's own start (its import and its daemons) is paid once a run, the workers' start (processes, loading the
glyphs) once a stage, and what handing shards out costs once a shard. The last columns compare with local: the
work alone, work and workers' start, and all with Ray's own start.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from imagegen import captions, selected
from synthclip.imagegen import Images
from synthclip.recipe import load_recipe
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Resources, Shard, Tick, Work, build_engine
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome

_READY = "ready"


@dataclass(frozen=True)
class Load:
    """Stage images; a shard called ready waits for the other workers, till all are up."""

    stage: StageLoad
    workers: int

    def __call__(self) -> Work:
        make = self.stage()

        def work(shard: Shard, tick: Tick) -> Outcome:
            if not shard.name.startswith(_READY):
                return make(shard, tick)
            (self.stage.path / shard.name).touch()
            while len(list(self.stage.path.glob(f"{_READY}*"))) < self.workers:
                time.sleep(0.005)
            return Outcome(0)

        return work


def start_ray(cores: int) -> float:
    """Seconds for Ray as the engine starts it; the engine then joins this one."""
    started = time.monotonic()
    import ray

    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return time.monotonic() - started


def run(kind: str, images: int, shards: int, workers: int) -> tuple[float, float]:
    """Seconds until the workers are ready, and then for all shards of `images`."""
    config = EngineConfig.model_validate({"kind": kind, "workers": workers})
    sizes = ["text_to_image.size_px=224", "images.size_px=224", f"images.captions_per_shard={images}"]
    recipe = load_recipe("demo", ["images.per_caption=1", *sizes])
    with tempfile.TemporaryDirectory() as folder:
        stage = Images(recipe, selected(Path(folder), captions(shards * images)))
        ready = [Shard(f"{_READY}{n}", {}) for n in range(workers)]
        load = Load(StageLoad(Images, recipe, Path(folder)), workers)
        started = time.monotonic()
        first = last = started
        seen = 0
        for event in build_engine(config).map(load, [*ready, *stage.shards()], Resources()):
            if isinstance(event, Done):
                seen += 1
                last = time.monotonic()
                if seen == workers:
                    first = last
    return first - started, last - first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, nargs="+", default=[25, 100, 400], help="images of a shard")
    options = parser.parse_args()
    own = start_ray(options.workers)
    print(f"{options.shards} shards, {options.workers} workers, 224 px; Ray's own start {own:.1f} s\n")
    print(
        "| images/shard | engine | workers' start, s | work, s | images/s | work | with workers | with all |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for images in options.images:
        start, work = run("local", images, options.shards, options.workers)
        rate = images * options.shards / work
        print(
            f"| {images} | local | {start:.1f} | {work:.1f} | {rate:.0f} | 1.00 | 1.00 | 1.00 |", flush=True
        )
        ray_start, ray_work = run("ray", images, options.shards, options.workers)
        rate = images * options.shards / ray_work
        both, all_ = ray_start + ray_work, own + ray_start + ray_work
        print(
            f"| {images} | ray | {ray_start:.1f} | {ray_work:.1f} | {rate:.0f} | {ray_work / work:.2f} | "
            f"{both / (start + work):.2f} | {all_ / (start + work):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
