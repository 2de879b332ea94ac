"""Stage images: paint the selected captions into WebDataset shards."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from synthclip import schema
from synthclip.backends import TextToImage, build_text_to_image
from synthclip.engine import Resources, Shard, Tick
from synthclip.errors import SynthClipError
from synthclip.imagegen.filters import Filter, load_filters
from synthclip.imagegen.painting import Job, Painting, Refused
from synthclip.imagegen.shards import TarShard
from synthclip.recipe import Recipe
from synthclip.stage import Stage
from synthclip.store import Manifest, Outcome, RunDirectory, ShardWriter

SPLITS = ("train", "heldout")


class Images(Stage):
    name = "images"
    reads = ("balance",)
    sections = ("text_to_image", "images", "seed")

    def shards(self) -> Sequence[Shard]:
        (balance,) = self.whole("balance")
        model = self.recipe.text_to_image.inputs() | self.recipe.images.filters.inputs()
        return [shard for split in SPLITS for shard in self._shards(split, balance, model)]

    def _shards(self, split: str, balance: Manifest, model: dict[str, str]) -> Iterator[Shard]:
        images = self.recipe.images
        variants = images.per_caption if split == "train" else images.heldout_per_caption
        step = images.shard_captions(variants)
        number = 0
        for entry in balance.files:
            if not (entry.path.startswith(f"{split}/") and entry.path.endswith(".parquet")):
                continue
            rows = pq.read_metadata(self.run.file("balance", entry.path)).num_rows
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                yield Shard(
                    f"{split}/{number:05d}",
                    inputs={entry.path: entry.sha256, "rows": f"{start}:{stop}", **model},
                    payload={"path": entry.path, "start": start, "stop": stop, "variants": variants},
                    size=(stop - start) * variants,
                )
                number += 1

    def resources(self) -> Resources:
        filters = self.recipe.images.filters
        return Resources(gpus=max(self.recipe.text_to_image.gpus, int(filters.clip_model is not None)))

    def load(self) -> "ImageMaker":
        filters = load_filters(self.recipe.images.filters)
        return ImageMaker(self.recipe, self.run, build_text_to_image(self.recipe.text_to_image), filters)

    def finish(self, manifests: Sequence[Manifest]) -> None:
        """`sizes.json`: how many samples each tar holds, as webdataset's users expect it."""
        for split in SPLITS:
            sizes = {
                f"{manifest.shard.removeprefix(f'{split}/')}.tar": manifest.rows
                for manifest in manifests
                if manifest.shard.startswith(f"{split}/")
            }
            self.run.write_json(f"{self.name}/{split}/sizes.json", sizes)


class ImageMaker:
    """Paints the captions of one shard with a model that is loaded."""

    def __init__(
        self, recipe: Recipe, run: RunDirectory, model: TextToImage, filters: Callable[[], list[Filter]]
    ) -> None:
        self._recipe, self._run, self._model, self._filters = recipe, run, model, filters

    def __call__(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        recipe, model = self._recipe, self._model
        jobs = self._jobs(shard)
        tar_name = f"{shard.name}.tar"
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        lost = 0
        cut = 0
        constant = {
            "backend": model.name,
            "licence": model.licence,
            "text_to_image": recipe.text_to_image.results(),
            "size_px": recipe.images.size_px,
            "jpeg_quality": recipe.images.jpeg_quality,
        }
        with TarShard(writer.path(tar_name)) as tar:
            painting = Painting(jobs, model, self._filters(), recipe.images, recipe.seed)
            for result in painting:
                job = result.job
                row = {
                    "key": job.key,
                    "caption_id": job.caption_id,
                    "variant": job.variant,
                    "seed": job.seed,
                    "backend": model.name,
                    "scores": list(result.scores.items()),
                }
                if isinstance(result, Refused):
                    refused.append(
                        {**row, "text": job.caption, "reason": result.reason, "attempt": job.attempt}
                    )
                    lost += result.final
                    tick(int(result.final), refused=len(refused))
                    continue
                cut += bool(result.unread)
                metadata = {
                    **constant,
                    "key": job.key,
                    "caption": job.caption,
                    "prompt": job.caption,
                    "unread": result.unread,
                    "caption_id": job.caption_id,
                    "concept_ids": job.concept_ids,
                    "variant": job.variant,
                    "attempt": job.attempt,
                    "seed": job.seed,
                }
                place = tar.add(job.key, result.jpeg, job.caption, metadata)
                kept.append(
                    {
                        **row,
                        "sha256": result.sha256,
                        "width_px": recipe.images.size_px,
                        "height_px": recipe.images.size_px,
                        "shard": tar_name,
                        "offset": place.offset,
                        "length": place.length,
                    }
                )
                tick(1, idle=painting.idle, **({"cut": cut} if cut else {}))
        writer.rows(f"{shard.name}.parquet", schema.IMAGE, kept)
        writer.rows(f"rejected/{shard.name}.parquet", schema.REJECTED_IMAGE, refused)
        reasons = Counter(row["reason"] for row in refused)
        if lost > recipe.images.max_lost * len(jobs):
            reason, count = reasons.most_common(1)[0]
            raise SynthClipError(
                f"images shard {shard.name}: {lost} of {len(jobs)} images refused, most often as {reason!r} "
                f"({count} times): mend images.filters or the model, or raise images.max_lost"
            )
        notes = {"backend": model.name, "licence": model.licence, "lost": lost, "cut_prompts": cut}
        return Outcome(len(kept), reasons, notes)

    def _jobs(self, shard: Shard) -> list[Job]:
        table = pq.read_table(self._run.file("balance", shard.payload["path"]))
        part = table.slice(shard.payload["start"], shard.payload["stop"] - shard.payload["start"])
        return [
            Job.of(row["caption_id"], row["text"], tuple(row["concept_ids"]), variant, 0, self._recipe.seed)
            for row in part.to_pylist()
            for variant in range(shard.payload["variants"])
        ]
