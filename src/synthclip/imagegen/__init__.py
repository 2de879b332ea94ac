"""Stage images: paint the selected captions into WebDataset shards."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from synthclip import schema
from synthclip.backends import TextToImage, build_text_to_image
from synthclip.errors import SynthClipError
from synthclip.imagegen import imported, seeds
from synthclip.imagegen.filters import load_filters
from synthclip.imagegen.painting import Attempt, Job, Painting, chosen_painter
from synthclip.imagegen.vision import Looks, Vision
from synthclip.keys import text_id
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.run.durable import FileEntry
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.samples import OTHER_TEXTS
from synthclip.samples.tars import TarWriter
from synthclip.textgen.composition import Pair, exchanged_pairs
from synthclip.textgen.concepts import listed_bank, read_bank
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
            painters = {split: self._painter(split).inputs() | known for split in schema.IMAGE_SPLITS}
            return seeds.shards(self._seeds, painters)
        (balance,) = self.manifests_of("balance")
        images = self.recipe.images
        filters = images.inputs()
        splits = [*schema.SPLITS] + [schema.HELDOUT_PAINTER] * (images.heldout_painter is not None)
        shards = [
            shard
            for split in splits
            for shard in self._shards(split, balance, self._painter(split).inputs() | filters)
        ]
        if images.composition or images.exchanged:
            names = {f"concepts/{e.path}": e.sha256 for m in self.manifests_of("concepts") for e in m.files}
            inputs = names | self.recipe.text_to_image.inputs() | filters
            shards += self._exchanged_shards(inputs)
        return shards

    def _exchanged_shards(self, inputs: dict[str, str]) -> Iterator[Shard]:
        """Those of the pairs of exchanged words, to evaluate on in one, and to train on."""
        images = self.recipe.images
        if images.composition:
            payload = {"start": 0, "stop": images.composition, "variants": 1}
            yield Shard(f"{schema.COMPOSITION}/00000", inputs, payload, size=2 * images.composition)
        step = max(1, images.shard_captions(images.per_caption) // 2)
        for number, start in enumerate(range(0, images.exchanged, step)):
            stop = min(start + step, images.exchanged)
            payload = {"start": start, "stop": stop, "variants": images.per_caption}
            yield Shard(
                f"{schema.EXCHANGED}/{number:05d}",
                inputs | {"pairs": f"{start}:{stop}"},
                payload,
                size=2 * (stop - start) * images.per_caption,
            )

    def _painter(self, split: str) -> BackendConfig:
        heldout = self.recipe.images.heldout_painter
        return heldout if split == schema.HELDOUT_PAINTER and heldout else self.recipe.text_to_image

    def values_of(self, shard: Shard) -> dict[str, object]:
        split = _split_of(shard)
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

    def _shards(self, split: str, balance: Manifest, model: dict[str, str]) -> Iterator[Shard]:
        images = self.recipe.images
        variants = images.per_caption if split == "train" else images.heldout_per_caption
        most = images.shard_captions(variants)
        number = 0
        for entry, rows in self._captions("train" if split == "train" else "heldout", balance):
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

    def _captions(self, split: str, balance: Manifest) -> Iterator[tuple[FileEntry, int]]:
        """The files of the selected captions, and how many each holds: all but the last one are full."""
        files = [
            entry
            for entry in balance.files
            if entry.path.startswith(f"{split}/") and entry.path.endswith(".parquet")
        ]
        total, full = balance.notes.get(split), self.recipe.balance.captions_per_shard
        for number, entry in enumerate(files):
            if total is not None and len(files) == -(-total // full):
                yield entry, min(full, total - number * full)
            else:  # written by other means
                yield entry, pq.read_metadata(self.run.file("balance", entry.path)).num_rows

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
        gpus = [painter.gpus for split in schema.IMAGE_SPLITS for painter in self._painter(split).members]
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
        if self._imported is not None:
            return
        self._filters = load_filters(self.recipe.images.filters)
        config = self.recipe.images.vision
        self._vision = None if config is None else Vision(config)
        self._loaded: dict[str, list[TextToImage]] = {}
        self._models("train")

    def _models(self, split: str) -> list[TextToImage]:
        """The models that paint a split. That of `images.heldout_painter` is loaded at its first shard."""
        key = split if split == schema.HELDOUT_PAINTER else "train"
        if key not in self._loaded:
            self._loaded[key] = [build_text_to_image(config) for config in self._painter(split).members]
        return self._loaded[key]

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        if self._imported is not None:
            return imported.make(shard, writer, tick, self._csv_captions)
        split = _split_of(shard)
        models, configs = self._models(split), self._painter(split).members
        undrawable: list[Job] = []
        comparison = None
        if self._seeds is not None:
            part, seed = shard.payload["part"], self.recipe.seed
            jobs, comparison = seeds.read_part(self._seeds, part, len(models), seed)
        elif split in (schema.COMPOSITION, schema.EXCHANGED):
            jobs = self._exchanged(shard)
        else:
            jobs, undrawable = self._jobs(shard, configs)
        kept: list[dict[str, Any]] = []
        lost: list[int] = []
        cut = 0
        tar_name = f"{shard.name}.tar"
        vision = self._vision
        looks = None if vision is None else Looks(vision, train=split == "train")
        recaption = looks is not None and looks.recaption
        painting = Painting(jobs, models, self._filters(), self.recipe.images, looks)
        asked = (None, None) if vision is None else (vision.llm, vision.config.llm)
        with (
            TarWriter(writer.path(tar_name)) as tar,
            Account(self.run, self.name, shard.name, *asked) as account,
        ):
            for attempt in painting:
                account.note()
                job, model = attempt.job, models[attempt.job.painter]
                row = _row(attempt, model)
                if attempt.reason is not None:
                    writer.reject({**row, "attempt": job.attempt}, attempt.reason)
                    lost += [job.caption_id] * attempt.final
                    tick(int(attempt.final), refused=writer.rejected.total())
                else:
                    place = tar.add(
                        job.key,
                        attempt.jpeg,
                        job.caption,
                        self._metadata(attempt, model, configs[job.painter], recaption),
                    )
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
        columns = schema.CAPTIONED_IMAGE if recaption else schema.IMAGE
        writer.rows(f"{shard.name}.parquet", columns, kept)
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

    def _metadata(
        self, attempt: Attempt, model: TextToImage, config: BackendConfig, recaption: bool
    ) -> dict[str, Any]:
        """All that is needed to paint this one sample again. JSON readers know no numbers above 2^63."""
        job, images = attempt.job, self.recipe.images
        # Never an empty list: readers infer the type of what it holds from the first samples.
        more = {OTHER_TEXTS: attempt.other_texts or ("",)} if recaption else {}
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
            **more,
        }

    def _jobs(self, shard: Shard, painters: Sequence[BackendConfig]) -> tuple[list[Job], list[Job]]:
        """The images to paint, and those of captions that the held-out painter is known not to draw."""
        table = schema.read_table(self.run.file("balance", shard.payload["path"]))
        part = table.slice(shard.payload["start"], shard.payload["stop"] - shard.payload["start"])
        jobs: list[Job] = []
        undrawable: list[Job] = []
        split, seed = _split_of(shard), self.recipe.seed
        shares, unseen = self._painter(split).shares, split == schema.HELDOUT_PAINTER
        # Numbered after the others, so that no two images of a run share a key.
        first = self.recipe.images.heldout_per_caption if unseen else 0
        for row in part.to_pylist():
            able = [at for at, one in enumerate(painters) if not one.undrawable([row["text"]])]
            for variant in range(first, first + shard.payload["variants"]):
                painter = chosen_painter(row["caption_id"], variant, shares, able, seed)
                concept_ids = tuple(row["concept_ids"])
                job = Job(row["caption_id"], row["text"], concept_ids, variant, seed, painter=painter)
                (undrawable if unseen and not able else jobs).append(job)
        return jobs, undrawable

    def _exchanged(self, shard: Shard) -> list[Job]:
        """Both images of every pair of captions: from one seed, by one painter."""
        recipe, painters = self.recipe, self.recipe.text_to_image.members
        split, names = _split_of(shard), read_bank(self.run)
        number = {name: at for at, name in enumerate(names)}
        pairs = composition_pairs(recipe, names) if split == schema.COMPOSITION else to_train(recipe, names)
        jobs: dict[str, Job] = {}
        for pair in pairs[shard.payload["start"] : shard.payload["stop"]]:
            said, first = (pair.caption, pair.exchanged), text_id(pair.caption)
            able = [at for at, one in enumerate(painters) if not one.undrawable(said)]
            # Without concepts, no pair is masked or given a prompt in training: only its words differ.
            things = pair.things if split == schema.COMPOSITION else ()
            concept_ids = tuple(sorted(number[name] for name in things))
            for variant in range(shard.payload["variants"]):
                by = chosen_painter(first, variant, recipe.text_to_image.shares, able, recipe.seed)
                for text in said:
                    one = Job(text_id(text), text, concept_ids, variant, recipe.seed, 0, by, seed_id=first)
                    jobs.setdefault(one.key, one)
        return list(jobs.values())

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


def _split_of(shard: Shard) -> str:
    """One of `schema.IMAGE_SPLITS`."""
    return shard.name.partition("/")[0]


def composition_pairs(recipe: Recipe, names: Sequence[str]) -> list[Pair]:
    """The pairs of captions of `images.composition`, over the concepts that the painters draw."""
    return exchanged_pairs(_drawable(recipe, names), recipe.images.composition, recipe.seed)


def _drawable(recipe: Recipe, names: Sequence[str]) -> list[str]:
    undrawable = set(recipe.text_to_image.undrawable(names))
    return [name for name in names if name not in undrawable]


def to_train(recipe: Recipe, names: Sequence[str]) -> list[Pair]:
    """The pairs of captions of `images.exchanged`, as many as are in no pair of `images.composition`."""
    able = _drawable(recipe, names)
    evaluated = {text for pair in composition_pairs(recipe, names) for text in (pair.caption, pair.exchanged)}
    pairs = exchanged_pairs(able, recipe.images.exchanged, recipe.seed, schema.EXCHANGED)
    return [pair for pair in pairs if evaluated.isdisjoint((pair.caption, pair.exchanged))]


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
