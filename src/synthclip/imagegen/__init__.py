"""Stage images: paint the selected captions into WebDataset shards."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthclip import schema
from synthclip.backends import TextToImage, build_text_to_image
from synthclip.errors import SynthClipError
from synthclip.imagegen import imported, seeds
from synthclip.imagegen.filters import load_filters
from synthclip.imagegen.jobs import caption_shards, exchanged_shards, jobs_of, painter_of, split_of
from synthclip.imagegen.painting import Attempt, Job, Painting
from synthclip.imagegen.vision import Looks, Vision, columns
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.samples import OTHER_TEXTS
from synthclip.samples.tars import TarWriter
from synthclip.textgen.concepts import listed_bank
from synthclip.textgen.spending import Account

_MAX_NAMED = 5


class Images(Stage):
    name = "images"
    revision = 2
    reads: tuple[str, ...] = ("balance",)
    sections = ("text_to_image", "images", "seed")
    rejects = schema.REJECTED_IMAGE

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        super().__init__(recipe, run)
        self._imported, self._seeds = recipe.images.imported, recipe.images.seeds
        self._values_of: dict[str, dict[str, object]] = {}
        if self._imported is not None or self._seeds is not None:
            self.reads = ()

    def shards(self) -> Sequence[Shard]:
        if self._imported is not None:
            return imported.shards(self._imported)
        if self._seeds is not None:
            known = self.recipe.images.inputs()
            inputs = {split: painter_of(self.recipe, split).inputs() | known for split in schema.IMAGE_SPLITS}
            return seeds.shards(self._seeds, inputs)
        (balance,) = self.manifests_of("balance")
        shards = list(caption_shards(self.recipe, self.run, balance))
        if self.recipe.images.composition or self.recipe.images.exchanged:
            shards += exchanged_shards(self.recipe, self.manifests_of("concepts"))
        return shards

    def values_of(self, shard: Shard) -> dict[str, object]:
        split = split_of(shard)
        if split not in self._values_of:
            images = self.recipe.images.results()
            others = {schema.HELDOUT_PAINTER, schema.COMPOSITION, schema.EXCHANGED} - {split}
            if split == schema.EXCHANGED:  # its pairs are none of those that are evaluated on
                others.remove(schema.COMPOSITION)
            for other in others:
                images.pop(other, None)
            if split != "train" and (vision := self.recipe.images.vision):
                del images["vision"]
                if vision.judge:
                    images["vision"] = vision.model_copy(update={"recaption": False}).results()
            self._values_of[split] = self.values | {"images": images}
        return self._values_of[split]

    def check(self) -> None:
        """Refuse models that are not there, and concepts that the painter cannot draw."""
        if self._imported is not None:
            return
        names, painter = listed_bank(self.recipe), self.recipe.text_to_image
        _ = painter.inputs() | self.recipe.images.inputs()
        if self.recipe.engine.kind == "local":
            painter.check()
        if heldout := self.recipe.images.heldout_painter:
            seen = [member.results() for member in painter.members]
            if any(member.results() in seen for member in heldout.members):
                raise SynthClipError(
                    "images.heldout_painter: training sees it: it stands in text_to_image too"
                )
            try:
                heldout.inputs()
            except SynthClipError as error:
                raise SynthClipError(f"images.heldout_painter: {error}") from None
        if missing := painter.undrawable(names or ()):
            shown = ", ".join(missing[:_MAX_NAMED]) + (", …" if len(missing) > _MAX_NAMED else "")
            alone = len(painter.members) == 1
            can = f"{painter.backend} cannot draw" if alone else "none of the painters can draw"
            raise SynthClipError(
                f"text_to_image: {can} {len(missing)} of {len(names or ())} concepts "
                f"({shown}): remove them from concepts.sources, or choose another backend"
            )

    def notes(self) -> Sequence[str]:
        return () if self._imported is not None else self.recipe.text_to_image.notes()

    def resources(self) -> Resources:
        if self._imported is not None:
            return Resources()
        filters = self.recipe.images.filters
        painters = [painter_of(self.recipe, split) for split in schema.IMAGE_SPLITS]
        gpus = [member.gpus for painter in painters for member in painter.members]
        return Resources(gpus=max(*gpus, int(filters.clip_model is not None)))

    def prepare(self) -> None:
        if self._imported is not None:
            imported.split_csv(self._imported, self._csv_captions)
        # The workers of a cluster may reach a server that this machine does not.
        if self.recipe.images.vision is not None and self.recipe.engine.kind == "local":
            Vision(self.recipe.images.vision).check()

    @property
    def _csv_captions(self) -> Path:
        """Where the captions of an import wait for its workers."""
        return self.run.file(self.name, "partial/csv")

    def load(self) -> None:
        config = self.recipe.images.vision
        self._vision = None if config is None else Vision(config)
        if self._imported is not None:
            return
        self._filters = load_filters(self.recipe.images.filters)
        self._loaded: dict[str, list[TextToImage]] = {}
        self._models("train")

    def _models(self, split: str) -> list[TextToImage]:
        """The models that paint a split. That of `images.heldout_painter` is loaded at its first shard."""
        key = split if split == schema.HELDOUT_PAINTER else "train"
        if key not in self._loaded:
            members = painter_of(self.recipe, split).members
            self._loaded[key] = [build_text_to_image(config) for config in members]
        return self._loaded[key]

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        vision = self._vision
        looks = None if vision is None else Looks(vision, train=split_of(shard) == "train")
        asked = (None, None) if vision is None else (vision.llm, vision.config.llm)
        with Account(self.run, self.name, shard.name, *asked) as account:

            def noted(rows: int, **figures: float | str) -> None:
                account.note()
                tick(rows, **figures)

            if self._imported is not None:
                return imported.make(shard, writer, noted, self._csv_captions, looks)
            return self._paint(shard, writer, noted, looks)

    def _paint(self, shard: Shard, writer: ShardWriter, tick: Tick, looks: Looks | None) -> Outcome:
        split = split_of(shard)
        models, configs = self._models(split), painter_of(self.recipe, split).members
        undrawable: list[Job] = []
        comparison = None
        if self._seeds is not None:
            part, seed = shard.payload["part"], self.recipe.seed
            jobs, comparison = seeds.read_part(self._seeds, part, len(models), seed)
        else:
            jobs, undrawable = jobs_of(self.recipe, self.run, shard)
        kept: list[dict[str, Any]] = []
        lost: list[int] = []
        cut = 0
        tar_name = f"{shard.name}.tar"
        painting = Painting(jobs, models, self._filters(), self.recipe.images, looks)
        with TarWriter(writer.path(tar_name)) as tar:
            for attempt in painting:
                job, model = attempt.job, models[attempt.job.painter]
                row = _row(attempt, model)
                if attempt.reason is not None:
                    writer.reject({**row, "attempt": job.attempt}, attempt.reason)
                    lost += [job.caption_id] * attempt.final
                    tick(int(attempt.final), refused=writer.rejected.total())
                else:
                    about = self._metadata(attempt, model, configs[job.painter])
                    about |= looks.metadata(attempt.other_texts) if looks else {}
                    place = tar.add(job.key, attempt.jpeg, job.caption, about)
                    size_px = self.recipe.images.size_px
                    row |= {"concept_ids": job.concept_ids, "width_px": size_px, "height_px": size_px}
                    row[OTHER_TEXTS] = attempt.other_texts
                    kept.append({**row, "sha256": attempt.sha256, "shard": tar_name, **place._asdict()})
                    cut += bool(attempt.unread)
                    if looks is not None:
                        looks.count(attempt.scores, attempt.other_texts, attempt.unusable)
                    if comparison is not None:
                        comparison.add(attempt)
                    tick(1, idle=painting.idle, cut=cut)
            for job in undrawable:
                writer.reject({**_row(Attempt(job, {}), models[0]), "attempt": 0}, "painter cannot draw it")
                tick(1, refused=writer.rejected.total())
        writer.rows(f"{shard.name}.parquet", columns(looks), kept)
        # One caption alone stops no run: its content may be what a filter refuses.
        if len(set(lost)) > 1 and len(lost) > self.recipe.images.max_lost * len(jobs):
            reason, count = writer.rejected.most_common(1)[0]
            raise SynthClipError(
                f"images shard {shard.name}: {len(lost)} of {len(jobs)} images refused, most often as "
                f"{reason!r} ({count} times): check images.filters and the model, or raise images.max_lost"
            )
        names, licences = [model.name for model in models], list(dict.fromkeys(m.licence for m in models))
        notes = {
            "backend": names if len(names) > 1 else names[0],
            "licence": licences if len(licences) > 1 else licences[0],
            "lost": len(lost),
            "cut_prompts": cut,
            **(looks.notes(shard.name) if looks else {}),
        }
        if comparison is not None:
            writer.rows(f"compared/{shard.name}.parquet", schema.COMPARED, comparison.rows)
            notes |= comparison.notes
        return Outcome(len(kept), notes=notes)

    def _metadata(self, attempt: Attempt, model: TextToImage, config: BackendConfig) -> dict[str, Any]:
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
            "backend": model.name,
            "licence": model.licence,
            "text_to_image": config.results(),
            "size_px": images.size_px,
            "jpeg_quality": images.jpeg_quality,
        }

    def finish(self, manifests: Sequence[Manifest]) -> None:
        """`sizes.json`: how many samples each tar holds, as webdataset's users expect it."""
        shutil.rmtree(self._csv_captions, ignore_errors=True)
        for split in schema.IMAGE_SPLITS:
            sizes = {
                f"{manifest.shard.removeprefix(f'{split}/')}.tar": manifest.rows
                for manifest in manifests
                if manifest.split == split
            }
            if sizes or split in schema.SPLITS:
                self.run.write_json(f"{self.name}/{split}/sizes.json", sizes)


def _row(attempt: Attempt, model: TextToImage) -> dict[str, Any]:
    """What the sidecar and the list of the rejected both say of an attempt."""
    job = attempt.job
    return {
        "key": job.key,
        "caption_id": job.caption_id,
        "text": job.caption,
        "variant": job.variant,
        "seed": job.seed,
        "backend": model.name,
        "scores": list(attempt.scores.items()),
    }
