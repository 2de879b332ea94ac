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

from synthclip.backends import build_text_to_image
from synthclip.engine import Done, EngineConfig, Resources, Shard, Tick, Work, build_engine
from synthclip.recipe import Recipe, load_recipe
from synthclip.store import Outcome

_READY = "ready"
CAPTIONS = (
    "Two red cats sit under a tree.",
    "A small boat at night.",
    "A dog next to a yellow bus in the snow.",
)


@dataclass(frozen=True)
class Painter:
    """Paints and encodes as many images as a shard asks for, and writes them into one file."""

    recipe: Recipe
    path: Path
    workers: int

    def __call__(self) -> Work:
        from synthclip.imagegen.painting import encode

        painter = build_text_to_image(self.recipe.text_to_image)

        def work(shard: Shard, tick: Tick) -> Outcome:
            if shard.name.startswith(_READY):  # wait for the others, so that none starts while work is timed
                (self.path / shard.name).touch()
                while len(list(self.path.glob(f"{_READY}*"))) < self.workers:
                    time.sleep(0.005)
            with (self.path / shard.name).open("wb") as out:
                for start in range(0, shard.size, painter.batch_size):
                    count = min(painter.batch_size, shard.size - start)
                    prompts = [CAPTIONS[(start + k) % len(CAPTIONS)] for k in range(count)]
                    seeds = [start + k for k in range(count)]
                    for image in painter.generate(prompts, seeds).images:
                        out.write(encode(image, 90))
                    tick(count)
            return Outcome(shard.size)

        return work


def start_ray(cores: int) -> float:
    """Seconds for Ray as the engine starts it; the engine then joins this one."""
    started = time.monotonic()
    import ray

    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return time.monotonic() - started


def run(kind: str, recipe: Recipe, images: int, shards: int, workers: int) -> tuple[float, float]:
    """Seconds until the workers have made an image each, and then for all shards of `images`."""
    config = EngineConfig.model_validate({"kind": kind, "workers": workers})
    with tempfile.TemporaryDirectory() as folder:
        warm = [Shard(f"{_READY}{n}", {}, size=1) for n in range(workers)]
        work = [Shard(f"{n:05d}", {}, size=images) for n in range(shards)]
        started = time.monotonic()
        first = last = started
        seen = 0
        for event in build_engine(config).map(
            Painter(recipe, Path(folder), workers), [*warm, *work], Resources()
        ):
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
    recipe = load_recipe("demo", ["text_to_image.size_px=224"])
    own = start_ray(options.workers)
    print(f"{options.shards} shards, {options.workers} workers, 224 px; Ray's own start {own:.1f} s\n")
    print(
        "| images/shard | engine | workers' start, s | work, s | images/s | work | with workers | with all |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for images in options.images:
        start, work = run("local", recipe, images, options.shards, options.workers)
        rate = images * options.shards / work
        print(
            f"| {images} | local | {start:.1f} | {work:.1f} | {rate:.0f} | 1.00 | 1.00 | 1.00 |", flush=True
        )
        ray_start, ray_work = run("ray", recipe, images, options.shards, options.workers)
        rate = images * options.shards / ray_work
        both, all_ = ray_start + ray_work, own + ray_start + ray_work
        print(
            f"| {images} | ray | {ray_start:.1f} | {ray_work:.1f} | {rate:.0f} | {ray_work / work:.2f} | "
            f"{both / (start + work):.2f} | {all_ / (start + work):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
