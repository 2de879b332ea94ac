"""The engines side by side on the compositor: what Ray adds to local processes, over shards of growing size.

    python benchmarks/engine.py            # 20 shards, two workers

Start-up (Ray itself, worker processes, loading the glyphs) is told apart from the work: it is paid once,
while the overhead of handing shards out is paid for each.
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

    def __call__(self) -> Work:
        from synthclip.imagegen.painting import encode

        painter = build_text_to_image(self.recipe.text_to_image)

        def work(shard: Shard, tick: Tick) -> Outcome:
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


def run(kind: str, recipe: Recipe, images: int, shards: int, workers: int) -> tuple[float, float]:
    """Seconds until the first shard of no size was done, and seconds for all shards of `images`."""
    config = EngineConfig.model_validate({"kind": kind, "workers": workers})
    with tempfile.TemporaryDirectory() as folder:
        warm = [Shard(f"warm{n}", {}, size=1) for n in range(workers)]
        work = [Shard(f"{n:05d}", {}, size=images) for n in range(shards)]
        started = time.monotonic()
        first = last = started
        seen = 0
        for event in build_engine(config).map(Painter(recipe, Path(folder)), [*warm, *work], Resources()):
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
    parser.add_argument("--images", type=int, nargs="+", default=[25, 100], help="images of a shard")
    options = parser.parse_args()
    recipe = load_recipe("demo", ["text_to_image.size_px=224"])
    print(f"{options.shards} shards, {options.workers} workers, compositor at 224 px")
    print("engine  images/shard  start s  work s  images/s  work/local")
    for images in options.images:
        local = 0.0
        for kind in ("local", "ray"):
            start, work = run(kind, recipe, images, options.shards, options.workers)
            local = local or work
            rate = images * options.shards / work
            print(
                f"{kind:6}  {images:12}  {start:7.1f}  {work:6.1f}  {rate:8.0f}  {work / local:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
