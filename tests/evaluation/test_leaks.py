import io
from pathlib import Path

import numpy as np
import pytest
from heldout_run import picture, write_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_datasets import class_folders, tar_of
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.evaluation.data import open_dataset
from synthclip.evaluation.leaks import find_leaks, hash_of, near_hashes, ngrams
from synthclip.recipe import load_recipe
from synthclip.run.store import Outcome, RunDirectory
from synthclip.samples.pictures import ALIKE_BITS

pytestmark = pytest.mark.slow

LONG = "a small brown dog runs along the wet sandy beach at dawn"


def photograph(seed: int) -> Image.Image:
    """A smooth image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((200, 160), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def training_run(path: Path, texts: list[str], images: list[bytes]) -> RunDirectory:
    run = RunDirectory(path)
    with run.begin("balance", "all", "x") as writer:
        rows = [
            {"caption_id": number, "text": text, "concept_ids": [], "keep_probability": 1.0}
            for number, text in enumerate(texts)
        ]
        writer.rows("train/00000.parquet", schema.SELECTED, rows)
        writer.commit(Outcome(len(rows)))
    with run.begin("images", "train/00000", "x") as writer:
        tar_path = writer.path("train/00000.tar")
        tar_of(tar_path, {f"{number}.jpg": data for number, data in enumerate(images)})
        raw = tar_path.read_bytes()
        rows = [
            {"key": f"{number}", "shard": "00000.tar", "offset": raw.index(data), "length": len(data)}
            for number, data in enumerate(images)
        ]
        writer.rows("train/00000.parquet", schema.IMAGE, rows)
        writer.commit(Outcome(len(rows)))
    return run


def test_a_leaked_caption_is_found_by_its_words(tmp_path: Path) -> None:
    members = {"a.jpg": picture(1), "a.txt": LONG.encode(), "b.jpg": picture(2), "b.txt": b"A red bus."}
    tar_of(tmp_path / "data" / "caps" / "test" / "0.tar", members)
    (tmp_path / "data" / "caps" / "dataset_type.txt").write_text("retrieval")
    texts = [
        "Look: a small brown dog runs along the wet grass",
        "A RED BUS",
        "a red bus in the rain",
    ]
    run = training_run(tmp_path / "run", texts, [])
    found = find_leaks(run, [open_dataset("caps", tmp_path / "data")])
    assert {(leak.item, leak.training) for leak in found} == {(LONG, texts[0]), ("A red bus.", texts[1])}


def test_ngrams_of_short_and_long_texts() -> None:
    assert ngrams("A red bus!") == {"a red bus"}
    assert len(ngrams(LONG)) == 12 - 8 + 1
    assert ngrams("…") == set()


def test_a_recompressed_and_resized_image_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mine" / "test"
    for label in range(2):
        (folder / str("ab"[label])).mkdir(parents=True)
        for number in range(10):
            path = folder / str("ab"[label]) / f"{number}.jpg"
            path.write_bytes(encoded(photograph(100 * label + number)))
    copy = encoded(photograph(103).resize((96, 96)), quality=60)
    run = training_run(tmp_path / "run", [], [encoded(photograph(999)), copy, b"no picture"])
    (leak,) = find_leaks(run, [open_dataset("mine", tmp_path / "data")])
    assert (leak.item, leak.training, leak.kind) == ("test/b/3.jpg", "1", "image")


def test_different_images_have_different_hashes() -> None:
    hashes = [hash_of(encoded(photograph(seed))) for seed in range(60)]
    apart = [(a ^ b).bit_count() for a in hashes for b in hashes if a is not None and b is not None and a < b]
    assert min(apart) > ALIKE_BITS


@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
    flips=st.sets(st.integers(0, 63), max_size=9),
)
def test_near_hashes_are_those_of_a_slow_scan(hashes: list[int], flips: set[int]) -> None:
    query = hashes[0]
    for bit in flips:
        query ^= 1 << bit
    apart = {number: bin(query ^ value).count("1") for number, value in enumerate(hashes)}
    expected = {number: bits for number, bits in apart.items() if bits <= ALIKE_BITS}
    assert near_hashes(np.array(hashes, np.uint64), query) == expected


def test_the_command(tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "mine")
    run = training_run(tmp_path / "run", ["a cat"], [picture(100)])
    result = CliRunner().invoke(
        app, ["leaks", str(run.path), "--data", str(tmp_path / "data"), "--suite", "mine,dtd"]
    )
    assert result.exit_code == 0, result.output
    assert "mine image: 'test/bus/0.jpg' ~ training '0'" in result.output
    assert "--download fetches it" in result.output
    assert "1 evaluation items are close" in result.output


def test_heldout_data_of_a_run_is_not_training_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    class_folders(tmp_path / "data" / "mine")
    assert find_leaks(run, [open_dataset("mine", tmp_path / "data")]) == []


def test_other_training_sources_are_scanned(tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "mine")
    run = training_run(tmp_path / "run", [], [])
    tar = tmp_path / "more" / "0.tar"
    tar_of(tar, {"a.jpg": picture(101), "a.txt": b"a bus", "b.jpg": b"no picture", "b.txt": b"none"})
    sources = [{"kind": "run"}, {"kind": "webdataset", "path": str(tar)}]
    run.write_text("recipe.yaml", load_recipe("demo", [f"training.sources={sources}"]).to_yaml())
    result = CliRunner().invoke(
        app, ["leaks", str(run.path), "--data", str(tmp_path / "data"), "--suite", "mine"]
    )
    assert result.exit_code == 0, result.output
    assert "mine image: 'test/bus/1.jpg' ~ training" in result.output
    assert "scanned: the run's captions and images and 1 other training sources" in result.output
