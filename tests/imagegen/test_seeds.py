"""Images as captions and seeds: exported, painted again, compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_runs import CAPTIONS, make_images, recipe_of, selected
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.imagegen.seeds import checksum, materialize, open_seeds, read_part
from synthclip.imagegen.seeds import recipe_of as recipe_of_seeds
from synthclip.interop.seeds import _painters, export_seeds
from synthclip.keys import sha256_of
from synthclip.plan import make_plan
from synthclip.run.durable import Manifest, seal, unseal
from synthclip.run.store import Outcome, RunDirectory
from synthclip.training.flops import parse_devices

HERE = ["engine.workers=0"]
CONCEPTS = ["dog", "cat", "bicycle", "elephant", "rocket", "penguin", "violin", "apple"]


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two painters, a held-out painter, exchanged captions, and refused attempts: every kind of image."""
    run = selected(tmp_path_factory.mktemp("painted") / "run", CAPTIONS[:6], CAPTIONS[6:])
    with run.begin("concepts", "all", "fingerprint") as writer:
        rows = [{"concept_id": at, "text": name, "source": "test"} for at, name in enumerate(CONCEPTS)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(len(rows)))
    recipe = recipe_of(
        "text_to_image=[{backend: compositor, size_px: 64},"
        " {backend: compositor, size_px: 64, artist: noto}]",
        "images={size_px: 48, per_caption: 4, captions_per_shard: 3, composition: 2, exchanged: 2,"
        " max_lost: 1, heldout_painter: {backend: compositor, artist: openmoji-black, size_px: 64},"
        " filters: {max_duplicate_bits: 12}}",
        *HERE,
    )
    stage = make_images(run, recipe)
    run.write_stage_values("images", stage.values)
    return run


@pytest.fixture(scope="module")
def seeds(painted: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "seeds"
    export_seeds(painted.path, folder)
    return folder


def copy_of(seeds: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeds, tmp_path / "copy"))


def rewrite(seeds: Path, **values: Any) -> None:
    file = seeds / "seeds.json"
    file.write_text(seal({**(unseal(file.read_bytes()) or {}), **values}))


def test_every_image_is_painted_again_byte_for_byte(
    painted: RunDirectory, seeds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    done = CliRunner().invoke(app, ["materialize", str(seeds), *HERE, "--out", str(out)])
    assert done.exit_code == 0, done.output
    again = RunDirectory(out)
    retried = 0
    for split in schema.IMAGE_SPLITS:
        expected, found = (
            {
                row["key"]: row
                for path in schema.split_tables(run.stage("images"), split)
                for row in schema.read_table(path).to_pylist()
            }
            for run in (painted, again)
        )
        assert expected
        same = ("text", "concept_ids", "variant", "seed", "backend", "sha256", "caption_id")
        for key, row in expected.items():
            assert [found[key][name] for name in same] == [row[name] for name in same]
        assert expected.keys() == found.keys()
        told = json.loads((out / "compared.json").read_text())["splits"]
        counts = next(one for one in told if one["split"] == split)
        assert counts["images"] == counts["equal"] == len(expected)
        retried += sum(
            row["attempt"] > 0
            for path in (seeds / "seeds" / split).glob("*.parquet")
            for row in schema.read_table(path).to_pylist()
        )
    tars = {path.relative_to(out): path for path in out.glob("images/*/*.tar")}
    assert len(tars) >= len(schema.IMAGE_SPLITS)
    assert all(sha256_of(path) == sha256_of(painted.path / name) for name, path in tars.items())
    assert retried, "no image of a later attempt is tested"
    assert any(split in done.output for split in schema.IMAGE_SPLITS)


def test_the_plan_counts_the_seeds_and_no_captions(
    painted: RunDirectory, seeds: Path, tmp_path: Path
) -> None:
    counts = dict.fromkeys(schema.IMAGE_SPLITS, 0)
    for manifest in painted.manifests("images"):
        counts[manifest.split] += manifest.rows
    recipe = recipe_of_seeds(seeds, ["training.batch_size=2"])
    made = make_plan(recipe, parse_devices("1xcpu"))
    assert [stage.stage for stage in made.stages] == ["images", "train", "eval"]
    assert made.volumes.images == sum(counts.values())
    assert made.volumes.train_images == counts["train"]
    assert made.volumes.unseen_images == counts["heldout_painter"]
    command = ["materialize", str(seeds), "training.batch_size=2", "--plan", "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"{sum(counts.values())} images of 48 px" in done.output
    assert not (tmp_path / "again").exists()


def test_what_is_painted_again_never_takes_the_place_of_the_run(painted: RunDirectory, seeds: Path) -> None:
    with pytest.raises(SynthClipError, match=r"holds a run of recipe 'demo', not of 'demo\.seeds'"):
        materialize(seeds, painted.path, HERE)


def test_what_is_painted_is_not_painted_again_also_from_another_folder(seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    run = materialize(seeds, out, HERE).run
    part = next(iter(run.manifests("images"))).shard
    before = {path: path.stat().st_mtime_ns for path in out.glob("images/*/*.tar")}
    (out / "images" / f"{part}.tar").unlink()
    assert materialize(copy_of(seeds, tmp_path), out, HERE).as_expected
    after = {path: path.stat().st_mtime_ns for path in out.glob("images/*/*.tar")}
    changed = {path.relative_to(out / "images").as_posix() for path in after if after[path] != before[path]}
    assert changed == {f"{part}.tar"}


def test_a_stopped_export_goes_on_and_ends_in_the_same_bytes(
    painted: RunDirectory, seeds: Path, tmp_path: Path
) -> None:
    copy = copy_of(seeds, tmp_path)
    (copy / "seeds.json").unlink()
    victim = next(copy.glob("seeds/train/*.parquet"))
    victim.write_bytes(victim.read_bytes()[:100])
    next(copy.glob("seeds/manifests/train/*.json")).unlink()
    export_seeds(painted.path, copy)
    names = ["seeds.json", "recipe.yaml", "concepts.json"]
    names += [path.relative_to(seeds).as_posix() for path in seeds.glob("seeds/*/*.parquet")]
    assert {name: sha256_of(copy / name) for name in names} == {
        name: sha256_of(seeds / name) for name in names
    }


@pytest.mark.parametrize(
    ("changed", "column", "code", "said"),
    [
        (["images.jpeg_quality=94"], "alike", 0, ""),
        (
            [
                "text_to_image=[{backend: compositor, artist: noto},"
                " {backend: compositor, artist: openmoji-silhouette}]"
            ],
            "different",
            1,
            "other than before: painter: compositor of OpenMoji",
        ),
    ],
)
def test_other_pictures_are_told_apart(
    changed: list[str], column: str, code: int, said: str, seeds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    done = CliRunner().invoke(app, ["materialize", str(seeds), *HERE, *changed, "--out", str(out)])
    assert done.exit_code == code, done.output
    told = json.loads((out / "compared.json").read_text())
    train = next(one for one in told["splits"] if one["split"] == "train")
    assert train[column] > train["images"] / 2
    assert train["equal"] + train["alike"] + train["different"] + train["refused"] == train["images"]
    assert said in done.output
    rows = schema.read_table(out / "images/compared/train/00000.parquet").to_pylist()
    assert all(row["equal"] == (row["bits"] is None) for row in rows)


def test_seeds_name_no_path_of_the_machine(painted: RunDirectory, seeds: Path) -> None:
    for name in ("seeds.json", "recipe.yaml", "seeds/stage.json", "metrics.jsonl"):
        assert str(painted.path.parent) not in (seeds / name).read_text()
    painters = open_seeds(seeds).painters("train")
    assert [one["licence"] for one in painters] == ["CC-BY-SA-4.0 (OpenMoji)", "OFL-1.1 (Noto Emoji)"]


def _cut(seeds: Path) -> None:
    part = seeds / "seeds/train/00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])


def _damaged(seeds: Path) -> None:
    part = seeds / "seeds/train/00000.parquet"
    part.write_bytes(b"X" * part.stat().st_size)


def _edited(seeds: Path) -> None:
    file = seeds / "seeds.json"
    file.write_text(file.read_text().replace("OpenMoji", "Somebody"))


def _painter(seeds: Path, text: str) -> None:
    file = seeds / "recipe.yaml"
    head, _, rest = file.read_text().partition("text_to_image:")
    file.write_text(f"{head}text_to_image: {text}\nimages:{rest.partition('images:')[2]}")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_cut, r"train/00000\.parquet: cut to .* bytes: download or export it again"),
        (lambda seeds: (seeds / "seeds/train/00001.parquet").unlink(), r"train/00001\.parquet: missing"),
        (_damaged, r"train/00000\.parquet: changed since it was written"),
        (lambda seeds: (seeds / "seeds.json").write_text("{"), "damaged, or no seeds"),
        (lambda seeds: (seeds / "seeds.json").unlink(), "no seeds: expected the seeds.json"),
        (_edited, r"seeds\.json: changed since it was written"),
        (lambda seeds: rewrite(seeds, format="99"), "of another version of SynthCLIP"),
        (
            lambda seeds: rewrite(
                seeds,
                parts=[{"path": "../run/x.parquet", "rows": 1, "size_bytes": 1, "sha256": ""}],
            ),
            "a part outside its folder",
        ),
        (
            lambda seeds: _painter(seeds, "{backend: compositor}"),
            r"\.parquet row \d+: painter 1 is missing: text_to_image has 1",
        ),
        (
            lambda seeds: _painter(seeds, "{backend: sdcpp, model: '…/sd.gguf'}"),
            r"text_to_image\.model: …/sd\.gguf is missing",
        ),
        (
            lambda seeds: _painter(seeds, "{backend: openai, model: x, base_url: 'http://…/v1'}"),
            r"text_to_image\.base_url: http://…/v1 is missing",
        ),
        (lambda seeds: _painter(seeds, "{backend: their.code}"), "allow it by --trust"),
        (lambda seeds: _painter(seeds, "{backend: unheard-of}"), "unknown backend"),
    ],
)
def test_what_cannot_be_painted_is_named(break_it: Any, said: str, seeds: Path, tmp_path: Path) -> None:
    copy = copy_of(seeds, tmp_path)
    break_it(copy)
    with pytest.raises(SynthClipError, match=said):
        materialize(copy, tmp_path / "again", HERE)


@settings(max_examples=12)
@given(at=st.integers(0, 5), column=st.sampled_from([n for n in schema.SEED.names if n != "crc32"]))
def test_a_changed_row_is_named(
    seeds: Path, at: int, column: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = copy_of(seeds, tmp_path_factory.mktemp("changed"))
    part = open_seeds(copy).parts[-1]
    file = copy / part["path"]
    table = pq.read_table(file)
    rows = table.to_pylist()
    value = rows[at][column]
    rows[at][column] = [*value, 7] if isinstance(value, list) else value + type(value)(1)
    assert checksum(rows[at]) != rows[at]["crc32"]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    with pytest.raises(SynthClipError, match=rf"{part['path']} row {at + 1}: changed since it was written"):
        read_part(str(copy), part, 2, 0)


def test_a_model_of_the_hub_is_pinned_to_the_revision_that_painted() -> None:
    revision = "0f" * 20
    values = {"backend": "diffusers", "model": "a/b", "revision": None, "safety_checker": False}
    used = {"painters": {"0": [f"a/b@{revision} + c/lora", "MIT"]}}
    made = {"text_to_image": values, "images": {}}
    [painter] = _painters(made, [Manifest("train/0", "f", (), 1, {}, used)])["train"]
    assert painter["values"] == {**values, "revision": revision}
    assert painter["name"] == f"a/b@{revision} + c/lora"
    assert painter["licence"] == "MIT"


def test_runs_that_have_no_seeds_are_refused(painted: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="holds a run: choose another folder"):
        export_seeds(painted.path, painted.path)
    empty = selected(tmp_path / "empty", CAPTIONS[:1])
    empty.write_text("recipe.yaml", recipe_of().to_yaml())
    with pytest.raises(SynthClipError, match="holds no images"):
        export_seeds(empty.path, tmp_path / "out")
    copy = RunDirectory(shutil.copytree(painted.path, tmp_path / "imported"))
    values = copy.stage_values("images")
    copy.write_stage_values("images", values | {"images": values["images"] | {"imported": "/data"}})
    with pytest.raises(SynthClipError, match="were imported, so no seed"):
        export_seeds(copy.path, tmp_path / "out")
