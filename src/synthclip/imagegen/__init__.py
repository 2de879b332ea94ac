"""Stage images: paint the selected captions into WebDataset shards."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from synthclip import schema
from synthclip.backends import build_text_to_image
from synthclip.errors import SynthClipError
from synthclip.imagegen import imported
from synthclip.imagegen.filters import load_filters
from synthclip.imagegen.painting import Attempt, Job, Painting
from synthclip.recipe import Recipe
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.samples.tars import TarWriter
from synthclip.textgen.concepts import listed_bank

_MAX_NAMED = 5


class Images(Stage):
    name = "images"
    revision = 2
    reads: tuple[str, ...] = ("balance",)
    sections = ("text_to_image", "images", "seed")
    rejects = schema.REJECTED_IMAGE

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        super().__init__(recipe, run)
        self._imported = recipe.images.imported
        if self._imported is not None:
            self.reads = ()

    def shards(self) -> Sequence[Shard]:
        if self._imported is not None:
            return imported.shards(self._imported)
        (balance,) = self.manifests_of("balance")
        model = self.recipe.text_to_image.inputs() | self.recipe.images.filters.inputs()
        return [shard for split in schema.SPLITS for shard in self._shards(split, balance, model)]

    def _shards(self, split: str, balance: Manifest, model: dict[str, str]) -> Iterator[Shard]:
        images = self.recipe.images
        variants = images.per_caption if split == "train" else images.heldout_per_caption
        most = images.shard_captions(variants)
        number = 0
        for entry in balance.files:
            if not (entry.path.startswith(f"{split}/") and entry.path.endswith(".parquet")):
                continue
            rows = pq.read_metadata(self.run.file("balance", entry.path)).num_rows
            # Tars of one file are of even size, unless the recipe says how many captions each has.
            step = most if images.captions_per_shard else -(-rows // max(1, -(-rows // most)))
            for start in range(0, rows, step or 1):
                stop = min(start + step, rows)
                yield Shard(
                    f"{split}/{number:05d}",
                    inputs={entry.path: entry.sha256, "rows": f"{start}:{stop}", **model},
                    payload={"path": entry.path, "start": start, "stop": stop, "variants": variants},
                    size=(stop - start) * variants,
                )
                number += 1

    def check(self) -> None:
        """Refuse models that are not there, and concepts that the painter cannot draw."""
        if self._imported is not None:
            return
        names, painter = listed_bank(self.recipe), self.recipe.text_to_image
        _ = painter.inputs() | self.recipe.images.filters.inputs()
        if missing := painter.undrawable(names or ()):
            shown = ", ".join(missing[:_MAX_NAMED]) + (", …" if len(missing) > _MAX_NAMED else "")
            raise SynthClipError(
                f"text_to_image: {painter.backend} cannot draw {len(missing)} of {len(names or ())} concepts "
                f"({shown}): remove them from concepts.sources, or choose another backend"
            )

    def resources(self) -> Resources:
        if self._imported is not None:
            return Resources()
        filters = self.recipe.images.filters
        return Resources(gpus=max(self.recipe.text_to_image.gpus, int(filters.clip_model is not None)))

    def prepare(self) -> None:
        if self._imported is not None:
            imported.split_csv(self._imported, self._csv_captions)

    @property
    def _csv_captions(self) -> Path:
        """Where the captions of an import wait for its workers."""
        return self.run.file(self.name, "partial/csv")

    def load(self) -> None:
        if self._imported is not None:
            return
        self._filters = load_filters(self.recipe.images.filters)
        self._model = build_text_to_image(self.recipe.text_to_image)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        if self._imported is not None:
            return imported.make(shard, writer, tick, self._csv_captions)
        jobs = self._jobs(shard)
        kept: list[dict[str, Any]] = []
        lost: list[int] = []
        cut = 0
        tar_name = f"{shard.name}.tar"
        painting = Painting(jobs, self._model, self._filters(), self.recipe.images)
        with TarWriter(writer.path(tar_name)) as tar:
            for attempt in painting:
                job, row = attempt.job, self._row(attempt)
                if attempt.reason is not None:
                    writer.reject({**row, "attempt": job.attempt}, attempt.reason)
                    lost += [job.caption_id] * attempt.final
                    tick(int(attempt.final), refused=writer.rejected.total())
                else:
                    place = tar.add(job.key, attempt.jpeg, job.caption, self._metadata(attempt))
                    size_px = self.recipe.images.size_px
                    row |= {"concept_ids": job.concept_ids, "width_px": size_px, "height_px": size_px}
                    kept.append({**row, "sha256": attempt.sha256, "shard": tar_name, **place._asdict()})
                    cut += bool(attempt.unread)
                    tick(1, idle=painting.idle, cut=cut)
        writer.rows(f"{shard.name}.parquet", schema.IMAGE, kept)
        # One caption alone stops no run: its content may be what a filter refuses.
        if len(set(lost)) > 1 and len(lost) > self.recipe.images.max_lost * len(jobs):
            reason, count = writer.rejected.most_common(1)[0]
            raise SynthClipError(
                f"images shard {shard.name}: {len(lost)} of {len(jobs)} images refused, most often as "
                f"{reason!r} ({count} times): check images.filters and the model, or raise images.max_lost"
            )
        model = self._model
        notes = {"backend": model.name, "licence": model.licence, "lost": len(lost), "cut_prompts": cut}
        return Outcome(len(kept), notes=notes)

    def _row(self, attempt: Attempt) -> dict[str, Any]:
        """What the sidecar and the list of the rejected both say of an attempt."""
        job = attempt.job
        return {
            "key": job.key,
            "caption_id": job.caption_id,
            "text": job.caption,
            "variant": job.variant,
            "seed": job.seed,
            "backend": self._model.name,
            "scores": list(attempt.scores.items()),
        }

    def _metadata(self, attempt: Attempt) -> dict[str, Any]:
        """All that is needed to paint this one sample again. JSON readers know no numbers above 2^63."""
        job, images = attempt.job, self.recipe.images
        return {
            "key": job.key,
            "caption": job.caption,
            "caption_id": str(job.caption_id),
            "concept_ids": job.concept_ids,
            "variant": job.variant,
            "attempt": job.attempt,
            "seed": str(job.seed),
            "prompt": job.caption,
            "unread": attempt.unread,
            "backend": self._model.name,
            "licence": self._model.licence,
            "text_to_image": self.recipe.text_to_image.results(),
            "size_px": images.size_px,
            "jpeg_quality": images.jpeg_quality,
        }

    def _jobs(self, shard: Shard) -> list[Job]:
        table = schema.read_table(self.run.file("balance", shard.payload["path"]))
        part = table.slice(shard.payload["start"], shard.payload["stop"] - shard.payload["start"])
        return [
            Job(row["caption_id"], row["text"], tuple(row["concept_ids"]), variant, self.recipe.seed)
            for row in part.to_pylist()
            for variant in range(shard.payload["variants"])
        ]

    def finish(self, manifests: Sequence[Manifest]) -> None:
        """`sizes.json`: how many samples each tar holds, as webdataset's users expect it."""
        shutil.rmtree(self._csv_captions, ignore_errors=True)
        for split in schema.SPLITS:
            sizes = {
                f"{manifest.shard.removeprefix(f'{split}/')}.tar": manifest.rows
                for manifest in manifests
                if manifest.shard.startswith(f"{split}/")
            }
            self.run.write_json(f"{self.name}/{split}/sizes.json", sizes)
