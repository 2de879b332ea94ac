"""Import of the official data set: what comes in, what is passed over, going on after a kill."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import official_data
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_data import read_samples
from PIL import Image
from typer.testing import CliRunner

from synthclip import keys, schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.imagegen.imported import import_synthci
from synthclip.imagegen.provenance import repaint, trace
from synthclip.interop.images import export_images

pytestmark = pytest.mark.slow


def _files(out: Path) -> dict[str, str]:
    """Digest of every file below `images`."""
    root = out / "images"
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_shards_hold_every_image_with_its_caption(tmp_path: Path) -> None:
    captions = official_data.write_plain(tmp_path / "in", zips=3, images=4)
    summary = import_synthci(tmp_path / "in", tmp_path / "out")
    assert (summary.images, summary.rejected, summary.broken) == (12, {}, ())

    train = tmp_path / "out" / "images" / "train"
    assert json.loads((train / "sizes.json").read_text()) == {f"{n:05d}.tar": 4 for n in range(3)}
    for number in range(3):
        tar_bytes = (train / f"{number:05d}.tar").read_bytes()
        table = pq.read_table(train / f"{number:05d}.parquet")
        assert table.schema.equals(schema.IMAGE)
        samples = list(read_samples(train / f"{number:05d}.tar"))
        for row, sample in zip(table.to_pylist(), samples, strict=True):
            path = sample.metadata["image_path"]
            assert sample.caption == captions[path] == sample.metadata["caption"]
            assert row["key"] == sample.key == sample.metadata["key"]
            assert row["caption_id"] == keys.text_id(sample.caption)
            assert sample.jpeg == official_data.jpeg(1000 * number + int(path.split("/")[1].split("_")[0]))
            assert tar_bytes[row["offset"] : row["offset"] + row["length"]] == sample.jpeg
            assert row["sha256"] == hashlib.sha256(sample.jpeg).hexdigest()
            assert (row["width_px"], row["height_px"]) == (48, 48)


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    captions = official_data.write_plain(tmp_path / "in", zips=1, images=5)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    shard = tmp_path / "out" / "images" / "train" / "00000.tar"
    pairs = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg", "txt"))
    assert sorted(text for _, text in pairs) == sorted(captions.values())
    assert all(isinstance(image, Image.Image) and image.size == (48, 48) for image, _ in pairs)


def test_what_cannot_be_used_is_counted_named_and_passed_over(tmp_path: Path) -> None:
    root, good = tmp_path / "in", official_data.jpeg(1)
    path = official_data.write_zip(
        root,
        0,
        {
            "0/good_0.jpeg": good,
            "0/corrupt_0.jpeg": official_data.jpeg(2),
            "0/cut_0.jpeg": good[: len(good) // 2],
            "0/png_0.jpeg": b"\x89PNG\r\n\x1a\n" + bytes(100),
            "0/empty_0.jpeg": b"",
            "0/nobody_0.jpeg": good,
            "0/../../climbs.jpeg": good,
            "0/good.0.jpeg": good,
        },
    )
    raw = bytearray(path.read_bytes())
    place = raw.index(b"0/corrupt_0.jpeg") + len("0/corrupt_0.jpeg") + 20
    raw[place : place + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(raw)
    official_data.write_csv(
        root,
        [
            ("0/good_0.jpeg", 'A "quoted"\tcaption, with a tab'),
            *((f"0/{name}_0.jpeg", f"A {name} one.") for name in ("corrupt", "cut", "png", "empty", "gone")),
            ("0/good_0.jpeg", "A second caption."),
            ("0/blank_0.jpeg", "  "),
            ("0/../../climbs.jpeg", "Out of the folder."),
            ("/etc/passwd", "Absolute."),
            ("loose.jpeg", "In no zip."),
            ("7/far_0.jpeg", "In a zip that is not here."),
        ],
        raw=b'0/x_0.jpeg\t"never closed\n0/x_0.jpeg\tone\ttoo many\nonly-one\n0/x_0.jpeg\t\xff\xfe\n0/x',
    )
    summary = import_synthci(root, tmp_path / "out", workers=0)
    assert summary.images == 1
    assert summary.rows_without_zip == 1
    assert summary.rejected == {
        "corrupt zip member": 1,
        "empty caption": 1,
        "missing file": 1,
        "no caption": 3,
        "not UTF-8": 1,
        "not a whole JPEG": 3,
        "path leaves the folder": 2,
        "path names no zip": 1,
        "quotes do not match": 1,
        "second row for an image": 1,
        "wrong number of columns": 3,
    }
    images = tmp_path / "out" / "images"
    (sample,) = read_samples(images / "train" / "00000.tar")
    assert sample.caption == 'A "quoted"\tcaption, with a tab'
    named = {
        row["key"]: row["reason"]
        for row in pq.read_table(images / "rejected/train/00000.parquet").to_pylist()
    }
    assert named["0/corrupt_0.jpeg"] == "corrupt zip member"
    assert named["0/gone_0.jpeg"] == "missing file"
    assert named["0/nobody_0.jpeg"] == "no caption"
    rows = {row["key"]: row["reason"] for row in pq.read_table(images / "rejected/csv.parquet").to_pylist()}
    line = f"{official_data.CSV_NAME} line"
    assert rows[f"{line} 10"] == rows[f"{line} 11"] == "path leaves the folder"
    assert rows[f"{line} 14"] == "quotes do not match"
    assert not list(tmp_path.rglob("climbs*"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    captions=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0")), min_size=1
    )
)
def test_any_one_line_caption_comes_through(
    captions: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("data")
    wanted = {f"0/{index}_0.jpeg": text for index, text in enumerate(captions)}
    wanted["0/last_0.jpeg"] = "One that is never blank."
    picture = official_data.jpeg(0)
    official_data.write_zip(root, 0, dict.fromkeys(wanted, picture))
    official_data.write_csv(root, wanted.items())
    import_synthci(root, root / "out", workers=0)
    samples = read_samples(root / "out" / "images" / "train" / "00000.tar")
    got = {sample.metadata["image_path"]: sample.caption for sample in samples}
    assert got == {path: text.strip() for path, text in wanted.items() if text.strip()}


@pytest.mark.parametrize("inside", ["{}", "3/{}", "home/SynthCI-30/data/3/{}"])
def test_zips_may_hold_images_bare_or_under_folders(inside: str, tmp_path: Path) -> None:
    official_data.write_zip(tmp_path / "in", 3, {inside.format("12_1.jpeg"): official_data.jpeg(3)})
    official_data.write_csv(tmp_path / "in", [("3/12_1.jpeg", "A dog.")])
    assert import_synthci(tmp_path / "in" / "SynthCI-30", tmp_path / "out", workers=0).images == 1
    (row,) = pq.read_table(tmp_path / "out" / "images" / "train" / "00003.parquet").to_pylist()
    assert (row["key"], row["variant"]) == ("3-12_1", 1)


def test_zips_that_come_later_are_added_and_nothing_is_made_twice(tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=3, images=4)
    late = tmp_path / "in" / "SynthCI-30" / "data" / "1.zip"
    whole = late.read_bytes()
    late.write_bytes(whole[: len(whole) // 2])
    summary = import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    assert (summary.images, summary.broken) == (8, ("1.zip",))
    early = tmp_path / "out" / "images" / "train" / "00002.tar"
    made = early.stat().st_mtime_ns

    late.write_bytes(whole)
    summary = import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    assert (summary.images, summary.broken) == (12, ())
    assert early.stat().st_mtime_ns == made
    import_synthci(tmp_path / "in", tmp_path / "at once", workers=2)
    assert _files(tmp_path / "out") == _files(tmp_path / "at once")


def test_killed_and_run_again_it_writes_the_same_bytes(tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=8, images=300)
    import_synthci(tmp_path / "in", tmp_path / "undisturbed")
    command = [str(Path(sys.executable).with_name("synthclip")), "import", "synthci", str(tmp_path / "in")]
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], start_new_session=True)
        time.sleep(float(rng.uniform(1.0, 3.0)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    import_synthci(tmp_path / "in", tmp_path / "out")
    assert _files(tmp_path / "out") == _files(tmp_path / "undisturbed")


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="not the official layout"):
        import_synthci(tmp_path, tmp_path / "out")
    official_data.write_plain(tmp_path / "in", zips=1, images=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: demo\n")
    with pytest.raises(SynthClipError, match="holds a run of recipe 'demo'"):
        import_synthci(tmp_path / "in", tmp_path / "run")
    official_data.write_csv(tmp_path / "in", [("0/other_0.jpeg", "Of another data set.")])
    with pytest.raises(SynthClipError, match="not one of its images can be used"):
        import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    (tmp_path / "in" / "SynthCI-30" / official_data.CSV_NAME).write_text("path,caption\n")
    with pytest.raises(SynthClipError, match="columns image_path or filepath and caption or title"):
        import_synthci(tmp_path / "in", tmp_path / "fresh", workers=0)


def test_export_to_the_official_format_and_back(tmp_path: Path) -> None:
    captions = official_data.write_plain(tmp_path / "in", zips=2, images=3)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    assert export_images(tmp_path / "out", tmp_path / "again", "synthci") == 6
    import_synthci(tmp_path / "again", tmp_path / "back", workers=0)
    pairs = []
    for root in ("out", "back"):
        shards = sorted((tmp_path / root / "images" / "train").glob("*.tar"))
        pairs.append([(sample.jpeg, sample.caption) for shard in shards for sample in read_samples(shard)])
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == len(captions)


def test_export_to_parquet_loads_in_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    captions = official_data.write_plain(tmp_path / "in", zips=2, images=3)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    assert export_images(tmp_path / "out", tmp_path / "hf", "parquet") == 6
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train"}
    assert sorted(loaded["train"]["caption"]) == sorted(captions.values())
    assert loaded["train"][0]["image"].size == (48, 48)


def test_export_of_a_damaged_shard_leaves_nothing(tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=1, images=3)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    shard = tmp_path / "out" / "images" / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(SynthClipError, match="damaged shard"):
        export_images(tmp_path / "out", tmp_path / "export", "parquet")
    assert not (tmp_path / "export").exists()
    with pytest.raises(SynthClipError, match="holds no images"):
        export_images(tmp_path, tmp_path / "export", "parquet")


def test_a_shard_is_a_plain_tar(tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=1, images=2)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    data = (tmp_path / "out" / "images" / "train" / "00000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [
            f"0-{index}_0.{kind}" for index in range(2) for kind in ("jpg", "txt", "json")
        ]


def test_the_command_tells_what_it_did_and_what_to_do(tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=2, images=3)
    official_data.write_csv(tmp_path / "in", [("0/0_0.jpeg", "A dog."), ("5/0_0.jpeg", "A cat.")])
    cut = official_data.write_zip(tmp_path / "in", 1, {"1/0_0.jpeg": official_data.jpeg(0)})
    cut.write_bytes(cut.read_bytes()[:-30])
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["import", "synthci", str(tmp_path / "in"), "--out", out])
    assert done.stdout.splitlines() == [
        f"1 images in {out}/images/train",
        "skipped: 2 (no caption)",
        f"details: {out}/images/rejected",
        "rows whose zip is missing: 1",
    ]
    assert isinstance(done.exception, SynthClipError)
    assert "1.zip; the others are imported: download these again" in str(done.exception)
    done = CliRunner().invoke(app, ["export", "images", out, str(tmp_path / "hf")])
    assert done.stdout == f"{tmp_path / 'hf'}: 1 images\n"


def test_an_imported_image_is_traced_and_not_repainted(tmp_path: Path) -> None:
    captions = official_data.write_plain(tmp_path / "in", zips=1, images=1)
    import_synthci(tmp_path / "in", tmp_path / "out", workers=0)
    lines = "\n".join(trace(tmp_path / "out", "0-0_0").lines())
    assert captions["0/0_0.jpeg"] in lines
    assert "0/0_0.jpeg" in lines
    with pytest.raises(SynthClipError, match="was imported, so it cannot be painted again"):
        repaint(tmp_path / "out", "0-0_0")
