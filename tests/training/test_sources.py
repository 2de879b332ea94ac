"""Where samples come from: tars, tables, the official CSV, near and far, whole and damaged."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_runs import losses, picture, train, with_training, write_images

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.training import SourceConfig
from synthclip.run.store import RunDirectory
from synthclip.samples import SampleError, any_shards, own_shards
from synthclip.samples.files import expand
from synthclip.samples.tars import entries, members
from synthclip.training.tables import open_csv, open_parquet

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[3] / "shared"))


CLASSES = SourceConfig(kind="parquet", path="x", text_column="label", template="a photo of a {}.")


def jpeg(seed: int = 0) -> bytes:
    return bytes(simplejpeg.encode_jpeg(picture("red", "circle", np.random.default_rng(seed))))


def tar_of(files: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_a_source_is_named_by_stars_and_by_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/000.tar", "a/001.tar", "b/000.tar", "b/[x].tar"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)

    assert expand("*/00?.tar") == ["a/000.tar", "a/001.tar", "b/000.tar"]
    assert expand(f"{tmp_path}/a/{{000..001}}.tar") == [f"{tmp_path}/a/{name}.tar" for name in ("000", "001")]
    assert expand("b/[x].tar") == ["b/[x].tar"]
    with pytest.raises(SynthClipError, match=r"a/002\.tar: no such file"):
        expand("a/{000..002}.tar")


names = st.text("abcdefgh0123456789_-/", min_size=1, max_size=120).filter(lambda n: not n.endswith("/"))


@settings(deadline=None, max_examples=40)
@given(keys=st.lists(names, min_size=1, max_size=6, unique=True), kind=st.sampled_from([0, 1, 2]))
def test_members_of_any_tar_are_what_tarfile_reads(keys: list[str], kind: int) -> None:
    files = {f"{key}.x{number}": os.urandom(number * 300) for number, key in enumerate(keys)}
    try:
        region = tar_of(files, kind)
    except ValueError:
        return  # a name too long for the format
    found = {
        name: region[place.offset :][: place.length]
        for name, place in members(io.BytesIO(region), len(region))
    }
    assert found == files


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_webdataset_tars_are_indexed_once_and_read_at_random(tmp_path: Path, kind: int) -> None:
    long = "folder/" + "n" * 150
    keys = ["a", "dir/b.c", "e"] if kind == tarfile.USTAR_FORMAT else ["a", long, "e"]
    files: dict[str, bytes] = {}
    for key in keys:
        files |= {f"{key}.json": b"{}", f"{key}.png": jpeg(), f"{key}.txt": f"text of {key}".encode()}
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(files, kind))
    source = any_shards([str(path)])
    assert [source.read(i).text for i in (2, 0, 1)] == [f"text of {keys[i]}" for i in (2, 0, 1)]
    assert source.read(1).image == jpeg()
    (index,) = tmp_path.glob("*.index")
    whole, made = index.read_bytes(), index.stat().st_mtime_ns
    assert len(any_shards([str(path)])) == 3
    assert index.stat().st_mtime_ns == made
    for damaged in (b"", whole[:-9], whole.replace(b"text of a", b"text of b")):
        index.write_bytes(damaged)
        assert any_shards([str(path)]).read(0).text == "text of a"
        assert index.read_bytes() == whole


def test_a_changed_tar_is_indexed_anew(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of({"a.jpg": jpeg(), "a.txt": b"one"}))
    assert len(any_shards([str(path)])) == 1
    path.write_bytes(tar_of({"a.jpg": jpeg(), "a.txt": b"one", "b.jpg": jpeg(), "b.txt": b"two"}))
    assert len(any_shards([str(path)])) == 2


def test_the_sidecars_give_what_a_scan_of_the_tar_gives(run: RunDirectory) -> None:
    own = own_shards([run.file("images", "train/00000.parquet")])
    path = str(run.file("images", "train/00000.tar"))
    assert len(own) == 48
    scanned = any_shards([path])
    assert [own.read(i) for i in range(48)] == [scanned.read(i) for i in range(48)]
    assert own.read(7).concept_ids == (1, 7)


def test_a_truncated_tar_loses_only_its_last_sample(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for key in "abc":
        files |= {f"{key}.jpg": jpeg(), f"{key}.txt": key.encode()}
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(files))
    with path.open("rb") as handle:
        last = entries(handle, path.stat().st_size)[0][2].files["jpg"]
    path.write_bytes(tar_of(files)[: last.offset + last.length // 2])
    source = any_shards([str(path)])
    assert [source.read(i).text for i in range(len(source))] == ["a", "b"]
    assert source.bad_rows == {f"{path} after b": "cut off: unexpected end of data"}


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(SynthClipError, match=r"0\.tar: not a tar"):
        any_shards([str(tmp_path / "0.tar")])


def test_a_shard_that_vanishes_is_a_bad_sample(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of({"a.jpg": jpeg(), "a.txt": b"one"}))
    source = any_shards([str(path)])
    path.unlink()
    with pytest.raises(SampleError, match="unreadable shard"):
        source.read(0)


def test_tars_far_away(tmp_path: Path) -> None:
    with fsspec.open("memory://far/0.tar", "wb") as handle:
        handle.write(tar_of({"a.jpg": jpeg(), "a.txt": b"one", "b.jpg": jpeg(1), "b.txt": b"two"}))
    source = any_shards(["memory://far/0.tar"])
    assert [source.read(i).text for i in (1, 0)] == ["two", "one"]


def test_the_official_csv(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.jpeg").write_bytes(jpeg())
    table = 'image_path\tcaption\n0.jpeg\tA "red" circle, here\nbroken line\n1.jpeg\tgone\n'
    (tmp_path / "all.csv").write_text(table)
    source = open_csv(
        str(tmp_path / "all.csv"), SourceConfig(kind="csv", path="x", root=str(tmp_path / "data"))
    )
    assert len(source) == 2
    assert list(source.bad_rows.values()) == ["CSV row: wrong number of columns"]
    assert "line 3" in next(iter(source.bad_rows))
    assert (source.read(0).image, source.read(0).text) == (jpeg(), 'A "red" circle, here')
    with pytest.raises(SampleError, match="missing image"):
        source.read(1)


def test_a_csv_may_have_commas(tmp_path: Path) -> None:
    (tmp_path / "0.jpeg").write_bytes(jpeg())
    table = 'caption,image_path\n"a cat, asleep",0.jpeg\na dog,0.jpeg\na bird, alas,0.jpeg\n'
    (tmp_path / "all.csv").write_text(table, encoding="utf-8-sig")
    source = open_csv(str(tmp_path / "all.csv"), SourceConfig(kind="csv", path="x"))
    assert [source.read(index).text for index in range(len(source))] == ["a cat, asleep", "a dog"]
    assert list(source.bad_rows.values()) == ["CSV row: wrong number of columns"]


def test_a_csv_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("image\ttext\n0.jpeg\tno\n")
    with pytest.raises(SynthClipError, match=r"all\.csv, line 1: expected .*image_path"):
        open_csv(str(tmp_path / "all.csv"), SourceConfig(kind="csv", path="x"))


def test_parquet_with_classes_and_a_template(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    rows = [{"image": {"bytes": jpeg(i), "path": None}, "label": i % 2} for i in range(5)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "0.parquet")
    source = open_parquet(str(tmp_path / "0.parquet"), CLASSES)
    assert [source.read(i).text for i in (3, 0)] == ["a photo of a dog.", "a photo of a cat."]
    assert source.read(4).image == jpeg(4)
    with pytest.raises(SynthClipError, match=r"set text_column .*: no column 'nope'; known: image, label"):
        open_parquet(str(tmp_path / "0.parquet"), CLASSES.model_copy(update={"text_column": "nope"}))


@pytest.mark.skipif(not (SHARED / "data/cifar10").is_dir(), reason=f"no CIFAR-10 in {SHARED}")
def test_cifar10_as_it_is() -> None:
    source = open_parquet(str(SHARED / "data/cifar10/test.parquet"), CLASSES)
    assert len(source) == 10000
    assert source.read(9999).text.startswith("a photo of a ")


def test_own_and_other_pairs_are_mixed_by_weight(tmp_path: Path, tiny_recipe: Recipe) -> None:
    run = RunDirectory(tmp_path / "run")
    write_images(run, 96)
    files: dict[str, bytes] = {}
    for number in range(20):
        files |= {f"{number}.jpg": jpeg(number), f"{number}.txt": f"other {number}".encode()}
    (tmp_path / "0.tar").write_bytes(tar_of(files))
    other = {"kind": "webdataset", "path": str(tmp_path / "*.tar"), "weight": 0.25}
    recipe = with_training(tiny_recipe, sources=[{}, other])
    assert train(recipe, run).notes["steps"] == 2 * (96 // 13)
    assert len(losses(run)) == 14


def test_training_starts_from_a_checkpoint(tmp_path: Path, tiny_recipe: Recipe) -> None:
    first, second = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b")
    for run in (first, second):
        write_images(run, 96)
    train(with_training(tiny_recipe, epochs=8), first)
    folder = str(first.file("train", "model"))
    train(with_training(tiny_recipe, epochs=1, init=folder, lr=1e-5), second)
    assert losses(second)[0] < losses(first)[0] - 0.2
    wider = tiny_recipe.model_copy(update={"model": tiny_recipe.model.model_copy(update={"embed_dim": 8})})
    with pytest.raises(
        SynthClipError,
        match=r"another architecture.*text_projection is \[32, 16\], not \[32, 8\].*change model or",
    ):
        train(with_training(wider, init=folder), second)


def test_a_smaller_share_of_captions_is_a_subset_of_a_larger(run: RunDirectory) -> None:
    sidecars = sorted(run.stage("images").glob("train/*.parquet"))

    def texts(share: float, seed: int = 0) -> set[str]:
        source = own_shards(sidecars, share, seed)
        return {source.read(index).text for index in range(len(source))}

    quarter, half, all_ = texts(0.25), texts(0.5), texts(1.0)
    assert quarter < half < all_
    assert 0.3 * len(all_) < len(half) < 0.7 * len(all_)
    assert texts(0.5, seed=1) != half
