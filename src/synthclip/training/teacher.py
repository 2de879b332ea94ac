"""The stage `teacher`: its features of the pictures and texts of a training, computed once, and how they are
read (MobileCLIP, arXiv 2311.17049, Section 3: "dataset reinforcement").

A shard is one file of a source. `<shard>.arrow` holds two record batches for each `_TOGETHER` samples: their
pictures, and the texts that these may be shown with. Prompts of concepts have shards of their own.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthclip.errors import SynthClipError, first_line
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.features import model_files
from synthclip.keys import U64, digest, text_id, text_ids
from synthclip.models.load import refuse_missing
from synthclip.recipe import Recipe
from synthclip.recipe.training import OWN, SourceConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, RunDirectory, ShardWriter, disk_errors
from synthclip.samples import SampleError, Source, files, located
from synthclip.samples.remembered import quick_digests
from synthclip.textgen.concepts import read_bank
from synthclip.training import open_sources, own_tables

_TOGETHER = 4096
"""Samples whose features are held in memory at a time."""
_PROMPTS = 65_536
"""Concepts of one shard of prompts."""


class Teacher(Stage):
    """Features of the teacher, of unit length, of all that the sources of a training hold."""

    name: ClassVar[str] = "teacher"
    may_be_empty: ClassVar[bool] = True
    """Where a later recipe has no teacher, its features go."""
    sections: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        super().__init__(recipe, run)
        config = recipe.training
        own = ["images"] * any(source.kind in OWN for source in config.sources)
        prompts = ["concepts"] * bool(config.concept_prompts)
        self.reads = () if config.teacher is None else (*prompts, *own)

    @property
    def wanted(self) -> bool:
        return self.recipe.training.teacher is not None or bool(self.run.shard_names(self.name))

    @cached_property
    def values(self) -> dict[str, object]:
        """Of a teacher on disk its files count, not its name."""
        if self.recipe.training.teacher is None:
            return {}
        model = self.recipe.training.teacher.model
        self.check()
        parts = model_files(model)
        known = zip((part.name for part in parts), quick_digests(parts), strict=True)
        return {"teacher": digest(*itertools.chain(*known)) if parts else model}

    def check(self) -> None:
        if self.recipe.training.teacher is not None:
            refuse_missing(self.recipe.training.teacher.model, "training.teacher.model")

    def shards(self) -> Sequence[Shard]:
        if self.recipe.training.teacher is None:
            return []
        found = itertools.chain(*self.of_sources(), self.of_prompts())
        return list({shard.name: shard for shard in found}.values())

    def of_sources(self) -> list[list[Shard]]:
        """The shards of each source, in the order of its files."""
        return [list(self._of_source(*source)) for source in enumerate(self.recipe.training.sources)]

    def _of_source(self, number: int, source: SourceConfig) -> Iterator[Shard]:
        recipe = self.recipe
        if source.path is None:
            named = own_tables(recipe, self.manifests_of("images"))[source.kind]
            for part, (table, manifest) in enumerate(named.items()):
                inputs = {table: manifest.digest(table)}
                if recipe.training.share < 1 and source.kind == "run":
                    inputs["share"] = f"{recipe.training.share} {recipe.seed}"
                payload = {"source": number, "part": part}
                yield Shard(manifest.shard, inputs, payload, size=manifest.rows)
            return
        how = json.dumps({**source.results(), "path": None, "weight": None}, sort_keys=True)
        for part, path in enumerate(files.expand(source.path)):
            inputs = {path: files.identity(path), "source": digest(how)}
            payload = {"source": number, "part": part}
            yield Shard(f"source-{number}/{part:05d}", inputs, payload, size=0)

    def of_prompts(self) -> Iterator[Shard]:
        """The shards of all prompts of concepts, where a training draws any."""
        config = self.recipe.training
        if not config.concept_prompts:
            return
        manifests = self.manifests_of("concepts")
        inputs = {entry.path: entry.sha256 for one in manifests for entry in one.files}
        inputs["templates"] = digest(*config.concept_templates)
        count = sum(manifest.rows for manifest in manifests)
        for number, first in enumerate(range(0, count, _PROMPTS)):
            size = min(_PROMPTS, count - first)
            yield Shard(f"prompts/{number:05d}", inputs, {"first": first}, size=size)

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def load(self) -> None:
        from synthclip.models.load import load_encoder

        teacher = self.recipe.training.teacher
        assert teacher is not None
        self._encoder = Encoder(*load_encoder(teacher.model), batch_size=self.recipe.evaluation.batch_size)
        tables = own_tables(self.recipe, self.run.manifests("images"))
        self._sources = open_sources(self.recipe, self.run, tables)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        width = self._encoder.texts([""]).shape[1]
        path = writer.path(_file(shard.name))
        with disk_errors(path), pa.OSFile(str(path), "wb") as sink, _Out(sink, width) as out:
            if "first" in shard.payload:
                rows = self._prompts(shard, out)
            else:
                source = self._sources[shard.payload["source"]].parts[shard.payload["part"]]
                rows = len(source)
                for first in range(0, rows, _TOGETHER):
                    self._samples(source, range(first, min(rows, first + _TOGETHER)), out, writer, tick)
        return Outcome(rows, notes={"logit_scale": round(self._encoder.logit_scale, 6)})

    def _samples(self, source: Source, rows: range, out: "_Out", writer: ShardWriter, tick: Tick) -> None:
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        done = 0

        def pictures() -> Iterator[bytes]:
            for place, row in enumerate(rows):
                try:
                    sample = source.read(row)
                except SampleError as bad:
                    reasons[place] = bad.reason
                    yield b""
                else:
                    texts.update((text_id(text), text) for text in (sample.text, *sample.other_texts))
                    yield sample.image

        def progress(count: int) -> None:
            nonlocal done
            tick(count - done)
            done = count

        encoded = self._encoder.images(pictures(), progress, [source.name_of(rows[0])])
        images_ND = np.full((len(rows), encoded.features.shape[1]), np.nan, np.float16)
        images_ND[encoded.kept] = encoded.features.numpy()
        for place in encoded.unreadable:
            writer.reject({"item": source.name_of(rows[place])}, reasons.get(place, "undecodable image"))
        ids = sorted(texts)
        out.write(images_ND, np.array(ids, np.uint64), self._of_texts([texts[one] for one in ids]))

    def _prompts(self, shard: Shard, out: "_Out") -> int:
        first = shard.payload["first"]
        names = read_bank(self.run)[first : first + _PROMPTS]
        templates = self.recipe.training.concept_templates
        texts = [template.replace("{}", name) for name in names for template in templates]
        ids_T, first_T = np.unique(text_ids(texts), return_index=True)
        features_TD = self._of_texts([texts[at] for at in first_T])
        out.write(features_TD[:0], ids_T, features_TD)
        return len(names)

    def _of_texts(self, texts: list[str]) -> NDArray[np.float16]:
        found: NDArray[np.float16] = self._encoder.texts(texts).numpy().astype(np.float16)
        return found


def _file(shard: str) -> str:
    return f"{shard}.arrow"


class _Out:
    """Writes the features of a shard."""

    def __init__(self, sink: Any, width: int) -> None:
        self._features = pa.list_(pa.float16(), width)
        self._schema = pa.schema([("text_id", pa.uint64()), ("features", self._features)])
        self._out = pa.ipc.new_file(sink, self._schema)

    def __enter__(self) -> "_Out":
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def write(self, images_ND: NDArray[np.float16], text_id_T: U64, texts_TD: NDArray[np.float16]) -> None:
        ids = pa.nulls(len(images_ND), pa.uint64()), pa.array(text_id_T)
        for id_N, features_ND in zip(ids, (images_ND, texts_TD), strict=True):
            flat = pa.array(features_ND.ravel(), pa.float16())
            features = pa.FixedSizeListArray.from_arrays(flat, type=self._features)
            self._out.write_batch(pa.record_batch([id_N, features], schema=self._schema))


@dataclass(frozen=True)
class _Together:
    """Features of some samples, mapped from disk: of their pictures in order, NaN for what could not be read,
    and of their texts by ascending ids."""

    images_ND: NDArray[np.float16]
    text_id_T: U64
    texts_TD: NDArray[np.float16]

    def text(self, wanted: int) -> NDArray[np.float16] | None:
        place = int(np.searchsorted(self.text_id_T, np.uint64(wanted)))
        there = place < len(self.text_id_T) and int(self.text_id_T[place]) == wanted
        return self.texts_TD[place] if there else None


class TeacherFeatures:
    """What the teacher makes of the samples of each source, by their places, and of prompts. Read by many
    threads at once."""

    def __init__(
        self, sources: Sequence[Sequence[_Together]], prompts: Sequence[_Together], scale: float
    ) -> None:
        self._sources, self._prompts, self._scale = sources, prompts, np.float32(scale)
        self._ends = [list(itertools.accumulate(len(one.images_ND) for one in parts)) for parts in sources]

    @property
    def sizes(self) -> list[int]:
        """The samples of each source."""
        return [ends[-1] if ends else 0 for ends in self._ends]

    def knows(self, source: int, index: int) -> bool:
        """Whether the teacher could read that sample's picture."""
        part, row = self._find(source, index)
        return not np.isnan(part.images_ND[row, 0])

    def pair(self, source: int, index: int, text: str) -> NDArray[np.float32]:
        """The features of a sample's picture, times the teacher's inverse temperature, and of a text that it
        may be shown with; float32 [2, E]. Products of one pair's first and another's second are logits."""
        part, row = self._find(source, index)
        wanted = text_id(text)
        found = (one.text(wanted) for one in (part, *self._prompts))
        text_E = next((features for features in found if features is not None), None)
        if text_E is None:
            raise SynthClipError(f"training: no features of the teacher of the text {text!r}: {_AGAIN}")
        return np.stack([part.images_ND[row] * self._scale, text_E.astype(np.float32)])

    def _find(self, source: int, index: int) -> tuple[_Together, int]:
        number, place = located(self._ends[source], index)
        return self._sources[source][number], place


_AGAIN = "run `synthclip teacher` again"


def open_features(recipe: Recipe, run: RunDirectory, sizes: Sequence[int]) -> TeacherFeatures:
    """The features that the stage has made for sources of these sizes."""
    stage = Teacher(recipe, run)
    sources, prompts = stage.of_sources(), list(stage.of_prompts())
    scale = stage.manifests_of("teacher")[0].notes["logit_scale"]

    def read(shards: Sequence[Shard]) -> list[_Together]:
        return [one for shard in shards for one in _read(run.file("teacher", _file(shard.name)))]

    found = TeacherFeatures([read(shards) for shards in sources], read(prompts), scale)
    if found.sizes != list(sizes):
        raise SynthClipError(f"{run.stage('teacher')}: features of other samples than the sources': {_AGAIN}")
    return found


def _read(path: Path) -> Iterator[_Together]:
    try:
        with pa.memory_map(str(path)) as mapped:
            file = pa.ipc.open_file(mapped)
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise SynthClipError(f"{path}: cannot be read ({first_line(error)}): {_AGAIN}") from None
    for images, texts in zip(batches[::2], batches[1::2], strict=True):
        ids = texts["text_id"].to_numpy()
        yield _Together(_matrix(images), ids, _matrix(texts))


def _matrix(batch: pa.RecordBatch) -> NDArray[np.float16]:
    features = batch["features"]
    flat: NDArray[np.float16] = features.flatten().to_numpy()
    return flat.reshape(len(features), features.type.list_size)
