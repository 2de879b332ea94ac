"""Images that are painted again from what `synthclip export seeds` wrote, in the place of a model's first.

    SEEDS/seeds.json                  what painted them; every part with its rows, size and SHA-256
    SEEDS/recipe.yaml                 a recipe that paints them and nothing else
    SEEDS/concepts.json               the concept bank, by concept id
    SEEDS/seeds/<split>/<n>.parquet   `schema.SEED`; a part becomes one shard

Each part carries the digest and the perceptual hash of every picture, so painting tells equal pictures from
those that only look alike.
"""

import importlib.metadata
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.imagegen.painting import Attempt, Job
from synthclip.keys import sha256_of, text_id
from synthclip.recipe import RECIPE_FILE, Recipe, load_recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.shareable import CUT, HIDDEN
from synthclip.run.durable import Manifest, stays_inside, unseal
from synthclip.run.engine import Shard
from synthclip.run.store import RunDirectory
from synthclip.samples.pictures import ALIKE_BITS, decode, perceptual_hash

FORMAT = "1"
"""Raised when the files of seeds are laid out in another way."""
SEEDS_FILE = "seeds.json"
BANK_FILE = "concepts.json"
PARTS = "seeds"
SEEDS_FILES = (SEEDS_FILE, BANK_FILE, RECIPE_FILE, f"{PARTS}/*/*.parquet")
"""What is published of a folder of seeds."""
COMPARED_FILE = "compared.json"
"""In a run, what came of painting seeds again."""
_CHECKED = [name for name in schema.SEED.names if name != "crc32"]


@dataclass(frozen=True)
class Seeds:
    """What `SEEDS/seeds.json` says."""

    folder: Path
    values: Mapping[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """`path`, `rows`, `size_bytes` and `sha256` of each part."""
        return list(self.values["parts"])

    def painters(self, split: str) -> list[dict[str, Any]]:
        """`name`, `licence`, `values` and `inputs` of each model that painted a split."""
        painters: Mapping[str, Any] = self.values["painters"]
        return list(painters.get(split) or painters["train"])


def open_seeds(path: Path) -> Seeds:
    """Seeds by their folder or a file in it.

    Raises SynthClipError where it holds none, those of another version, or a part that is missing or cut.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / SEEDS_FILE
    if not file.is_file():
        raise SynthClipError(
            f"{path}: no seeds: expected the {SEEDS_FILE} that `synthclip export seeds` writes"
        )
    raw = file.read_bytes()
    try:
        format = json.loads(raw)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SynthClipError(f"{file}: damaged, or no seeds: download or export it again") from None
    if format != FORMAT:
        raise SynthClipError(
            f"{file}: of another version of SynthCLIP (format {str(format)[:20]!r}, not {FORMAT}): "
            "install that version, or export the seeds again"
        )
    values = unseal(raw)
    if values is None:
        raise SynthClipError(f"{file}: changed since it was written: download or export it again")
    seeds = Seeds(folder, values)
    for part in seeds.parts:
        if not stays_inside(part["path"]):
            raise SynthClipError(f"{file}: {part['path']!r}: a part outside its folder")
        target = folder / part["path"]
        size = target.stat().st_size if target.is_file() else 0
        if size != part["size_bytes"]:
            what = f"cut to {size:,} of {part['size_bytes']:,} bytes" if size else "missing"
            raise SynthClipError(f"{target}: {what}: download or export it again")
    return seeds


def shards(path: str, inputs: Mapping[str, Mapping[str, str]]) -> list[Shard]:
    """One for every part; `inputs` are the digests of the painters, by split."""
    return [
        Shard(
            part["path"].removeprefix(f"{PARTS}/").removesuffix(".parquet"),
            {"seeds": part["sha256"], **inputs[part["path"].split("/")[1]]},
            {"part": part},
            part["rows"],
        )
        for part in open_seeds(Path(path)).parts
    ]


def read_part(
    path: str, part: Mapping[str, Any], painters: int, run_seed: int
) -> tuple[list[Job], "Comparison"]:
    """The images of a part, and what they are compared with.

    Raises SynthClipError where the part is not as it was written, with the first row that differs.
    """
    file = Path(path) / part["path"]
    if sha256_of(file) != part["sha256"]:
        raise SynthClipError(
            f"{file}{_changed_row(file)}: changed since it was written: download or export it again"
        )
    rows = schema.read_table(file).to_pylist()
    for number, row in enumerate(rows, 1):
        if row["painter"] >= painters:
            raise SynthClipError(
                f"{file} row {number}: painter {row['painter']} is missing: text_to_image has {painters}"
            )
    jobs = [
        Job(
            text_id(row["text"]),
            row["text"],
            tuple(row["concept_ids"]),
            row["variant"],
            run_seed,
            row["attempt"],
            row["painter"],
            known_seed=row["seed"],
        )
        for row in rows
    ]
    return jobs, Comparison(rows)


def checksum(row: Mapping[str, Any]) -> int:
    """`crc32` of a row of `schema.SEED`."""
    return zlib.crc32(json.dumps([row[name] for name in _CHECKED]).encode())


def _changed_row(file: Path) -> str:
    try:
        rows = schema.read_table(file).to_pylist()
        bad = (number for number, row in enumerate(rows, 1) if row["crc32"] != checksum(row))
        return f" row {next(bad)}"
    except (SynthClipError, StopIteration, KeyError):
        return ""


class Comparison:
    """Compares the images of a shard with those that its part was written from."""

    def __init__(self, expected: Iterable[Mapping[str, Any]]) -> None:
        self._expected = {row["key"]: (row["sha256"], row["perceptual_hash"]) for row in expected}
        self.rows: list[dict[str, Any]] = []
        """Of `schema.COMPARED`."""

    def add(self, attempt: Attempt) -> None:
        """Compare an image that was painted."""
        sha256, expected = self._expected[attempt.job.key]
        bits = None
        if attempt.sha256 != sha256:
            bits = int(np.bitwise_count(perceptual_hash(decode(attempt.jpeg)) ^ np.uint64(expected)))
        self.rows.append({"key": attempt.job.key, "equal": bits is None, "bits": bits})

    @property
    def notes(self) -> dict[str, Any]:
        """For the manifest: how many are equal, and how many of the others differ in so many bits."""
        bits = Counter(str(row["bits"]) for row in self.rows if not row["equal"])
        return {
            "expected": len(self._expected),
            "equal": sum(row["equal"] for row in self.rows),
            "bits": dict(bits),
        }


@dataclass(frozen=True)
class Compared:
    """The images of one split, compared with those that the seeds were taken from."""

    split: str
    images: int
    equal: int
    """The JPEG has the expected SHA-256."""
    alike: int
    """Other bytes, but perceptual hashes that differ in at most `ALIKE_BITS` bits."""
    different: int
    refused: int
    """Not painted: refused by the model this time, or blank."""


@dataclass(frozen=True)
class Materialized:
    """What came of painting seeds again."""

    run: RunDirectory
    splits: tuple[Compared, ...]
    differences: tuple[str, ...]
    """What is not as it was when the seeds were written: models, their files, libraries."""

    @property
    def as_expected(self) -> bool:
        """Whether every image is equal or alike."""
        return not any(one.different or one.refused for one in self.splits)


def recipe_of(source: Path | str, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """The recipe that paints seeds again; `overrides` and `trust` are those of `load_recipe`.

    Raises SynthClipError where the seeds are damaged or of another version, or a model that painted them is
    missing.
    """
    folder = open_seeds(Path(source)).folder
    here = folder.resolve()
    values = [f"images.seeds={json.dumps(str(here))}"]
    if (here / BANK_FILE).is_file():
        values.append(f"concepts.sources={json.dumps([{'kind': 'json', 'path': str(here / BANK_FILE)}])}")
    recipe = load_recipe(folder / RECIPE_FILE, [*values, *overrides], trust=trust)
    for section, _, painter in _painters(recipe):
        _refuse_cut_paths(painter, section)
    return recipe


def materialize(
    source: Path | str, out: Path | str, overrides: Sequence[str] = (), *, trust: bool = False
) -> Materialized:
    """Paint the images of seeds again, into the run `out`, and compare each with the first.

    Resumes as every run does. Also writes `out/compared.json`; `out/images/compared/` says the same of each
    image. Parameters and errors as in `recipe_of`.
    """
    from synthclip.run import pipeline

    seeds, recipe = open_seeds(Path(source)), recipe_of(source, overrides, trust=trust)
    stages = ["concepts"] * (seeds.folder / BANK_FILE).is_file() + ["images"]
    run = pipeline.run(recipe, out, stages=stages)
    manifests = run.manifests("images")
    splits = tuple(
        _compared(split, own)
        for split in schema.IMAGE_SPLITS
        if (own := [one for one in manifests if one.split == split])
    )
    done = Materialized(run, splits, tuple(_differences(seeds, recipe, manifests)))
    rows = [asdict(one) for one in splits]
    compared = {
        "splits": rows,
        "alike_bits": ALIKE_BITS,
        "differences": done.differences,
        "captions_by": seeds.values["captions_by"],
    }
    run.write_json(COMPARED_FILE, compared)
    return done


def _painters(recipe: Recipe) -> Iterator[tuple[str, str, BackendConfig]]:
    """Each section of the recipe that paints, with a split that it paints."""
    yield "text_to_image", "train", recipe.text_to_image
    if recipe.images.heldout_painter is not None:
        yield "images.heldout_painter", schema.HELDOUT_PAINTER, recipe.images.heldout_painter


def _refuse_cut_paths(painter: BackendConfig, section: str) -> None:
    """Refuse a model that was in a folder, or on a server, of the machine that wrote the seeds."""
    for at, member in enumerate(painter.members):
        prefix = f"{section}.{at}" if len(painter.members) > 1 else section
        for key, value in _texts(member.model_dump(mode="json"), prefix):
            if value.startswith((CUT, HIDDEN)) or f"://{CUT[0]}" in value:
                raise SynthClipError(
                    f"{key}: {value} is missing: it was known to the machine that painted alone; "
                    f"give yours: {key}=VALUE"
                )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted key and value of every text in nested values."""
    if isinstance(value, str):
        yield key, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from _texts(one, f"{key}.{name}")


def _compared(split: str, manifests: Sequence[Manifest]) -> Compared:
    images = sum(one.notes["expected"] for one in manifests)
    equal = sum(one.notes["equal"] for one in manifests)
    bits = Counter[int]()
    for one in manifests:
        bits.update({int(number): count for number, count in one.notes["bits"].items()})
    alike = sum(count for number, count in bits.items() if number <= ALIKE_BITS)
    return Compared(split, images, equal, alike, bits.total() - alike, images - equal - bits.total())


def _differences(seeds: Seeds, recipe: Recipe, manifests: Sequence[Manifest]) -> Iterator[str]:
    """What may explain why images are not equal."""
    for section, split, painter in _painters(recipe):
        for first, member in zip(seeds.painters(split), painter.members, strict=False):
            if first["inputs"] != member.inputs():
                yield f"{section}: other files of {first['name']}"
    before = {painter["name"] for split in schema.IMAGE_SPLITS for painter in seeds.painters(split)}
    noted = (one.notes["backend"] for one in manifests)
    now = {name for names in noted for name in ([names] if isinstance(names, str) else names)}
    for name in sorted(now - before):
        yield f"painter: {name}, not {' or '.join(sorted(before - now)) or 'one of the first'}"
    installed = versions(seeds.values["libraries"])
    for name, version in seeds.values["libraries"].items():
        if installed.get(name) != version:
            yield f"{name}: {installed.get(name, 'not installed')}, not {version}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed."""
    found = {}
    for name in sorted(packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
