"""Stage images: shards that stand by themselves, the same however they came about."""

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from image_runs import CAPTIONS, make_images, recipe_of, selected

from synthclip import schema
from synthclip.imagegen import Images
from synthclip.keys import image_key, seeds, text_id
from synthclip.recipe.imagegen import ImagesConfig
from synthclip.run.engine import Shard
from synthclip.run.store import Outcome, RunDirectory

pytestmark = pytest.mark.slow


def files(run: RunDirectory) -> dict[str, str]:
    root = run.stage("images")
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_caption_is_painted_as_often_as_asked_and_the_sidecar_finds_its_bytes(
    run: RunDirectory,
) -> None:
    make_images(run, recipe_of("images.captions_per_shard=4", "images.heldout_per_caption=1"))
    rows = []
    for sidecar in sorted((run.stage("images") / "train").glob("*.parquet")):
        for row in pq.read_table(sidecar).to_pylist():
            tar = run.stage("images") / row["shard"]
            with tar.open("rb") as handle:
                handle.seek(row["offset"])
                jpeg = handle.read(row["length"])
            assert hashlib.sha256(jpeg).hexdigest() == row["sha256"]
            assert simplejpeg.decode_jpeg(jpeg).shape == (row["height_px"], row["width_px"], 3) == (48, 48, 3)
            rows.append(row)
    wanted = {image_key(text_id(text), variant) for text in CAPTIONS[:6] for variant in range(2)}
    assert {row["key"] for row in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert row["seed"] == seeds(row["caption_id"], stream="image", seed=0, index=row["variant"])
    sizes = json.loads((run.stage("images") / "train/sizes.json").read_text())
    assert sizes == {"00000.tar": 8, "00001.tar": 4}
    assert json.loads((run.stage("images") / "heldout/sizes.json").read_text()) == {"00000.tar": 2}


def test_a_sample_says_how_it_was_made_and_under_which_licence(run: RunDirectory) -> None:
    make_images(run, recipe_of())
    with tarfile.open(run.stage("images") / "train/00000.tar") as tar:
        names = tar.getnames()
        stems = [name.partition(".")[0] for name in names]
        assert [name.partition(".")[2] for name in names] == ["jpg", "txt", "json"] * 12
        assert stems[::3] == stems[1::3] == stems[2::3]
        assert all(member.mtime == 0 and member.uid == 0 for member in tar.getmembers())
        caption = tar.extractfile(names[1])
        assert caption
        text = caption.read().decode()
        entry = tar.extractfile(names[2])
        assert entry
        metadata = json.loads(entry.read())
    assert text in CAPTIONS
    assert metadata["caption"] == text
    assert metadata["caption_id"] == str(text_id(text))
    assert metadata["concept_ids"] == [CAPTIONS.index(text)]
    assert "no diffusion model" in metadata["backend"]
    assert metadata["licence"] == "CC-BY-SA-4.0 (OpenMoji)"


def test_worker_count_changes_no_byte(tmp_path: Path) -> None:
    recipe = recipe_of("images.captions_per_shard=2")
    alone = selected(tmp_path / "alone", CAPTIONS)
    make_images(alone, recipe, workers=0)
    together = selected(tmp_path / "together", CAPTIONS)
    make_images(together, recipe, workers=2)
    assert files(alone) == files(together)


def test_shards_are_cut_by_captions_and_no_image_depends_on_the_cut(tmp_path: Path) -> None:
    hashes = []
    for size in (2, 5, 100):
        run = selected(tmp_path / str(size), CAPTIONS)
        make_images(run, recipe_of(f"images.captions_per_shard={size}"))
        tables = [pq.read_table(path) for path in sorted((run.stage("images") / "train").glob("*.parquet"))]
        hashes.append({row["key"]: row["sha256"] for table in tables for row in table.to_pylist()})
        assert len(tables) == int(np.ceil(len(CAPTIONS) / size))
    assert hashes[0] == hashes[1] == hashes[2]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = recipe_of("images.captions_per_shard=1", "images.per_caption=8")
    undisturbed = selected(tmp_path / "undisturbed", CAPTIONS)
    make_images(undisturbed, recipe)
    killed = selected(tmp_path / "killed", CAPTIONS)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from image_runs import RunDirectory, make_images, recipe_of\n"
        "recipe = recipe_of('images.captions_per_shard=1', 'images.per_caption=8')\n"
        f"make_images(RunDirectory(Path({str(killed.path)!r})), recipe)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not killed.manifests("images"):
        time.sleep(0.01)
    process.kill()
    process.wait()
    with killed.lock():
        make_images(killed, recipe)
    assert files(killed) == files(undisturbed)


def test_shards_are_sized_in_bytes_where_no_count_is_given() -> None:
    config = ImagesConfig(size_px=256, jpeg_quality=75, shard_mb=100)
    assert 4_000 < config.shard_captions(1) < 8_000
    assert config.shard_captions(4) == pytest.approx(config.shard_captions(1) / 4, abs=1)
    assert ImagesConfig(captions_per_shard=7).shard_captions(3) == 7
    assert ImagesConfig(shard_mb=1e-6).shard_captions(1) == 1


@pytest.mark.parametrize("train", [0, 1, 5, 6, 7, 15])
def test_the_counts_of_the_selection_say_what_its_files_hold(tmp_path: Path, train: int) -> None:
    """So that no file is opened to list the shards; without the counts all are."""
    full = 5
    shards: list[Sequence[Shard]] = []
    recipe = recipe_of(f"balance.captions_per_shard={full}", "images.captions_per_shard=2")
    for notes in ({"train": train, "heldout": 3}, {}, {"train": train + 100, "heldout": 3}):
        run = RunDirectory(tmp_path / f"{len(shards)}")
        with run.begin("balance", "all", "fingerprint") as writer:
            for split, count in (("train", train), ("heldout", 3)):
                for start in range(0, count, full):
                    rows = [{"caption_id": at} for at in range(start, min(start + full, count))]
                    writer.rows(f"{split}/{start // full:05d}.parquet", schema.SELECTED, rows)
            writer.commit(Outcome(train + 3, notes=notes))
        shards.append(Images(recipe, run).shards())
    assert shards[0] == shards[1] == shards[2]
    assert sum(shard.size for shard in shards[0]) == 2 * train + 3 * recipe.images.heldout_per_caption


def test_two_samples_of_one_key_are_never_both_written(tmp_path: Path) -> None:
    run = selected(tmp_path / "run", [*CAPTIONS, CAPTIONS[0]])
    make_images(run, recipe_of())
    (manifest,) = run.manifests("images")
    assert manifest.rows == 2 * len(CAPTIONS)
    assert manifest.rejected == {"key taken": 2}


def test_an_empty_caption_is_named_and_passed_over(tmp_path: Path) -> None:
    run = selected(tmp_path / "run", [*CAPTIONS, " "])
    make_images(run, recipe_of())
    rejected = pq.read_table(run.stage("images") / "rejected/train/00000.parquet").to_pylist()
    assert [(row["text"], row["reason"]) for row in rejected] == [(" ", "empty caption")] * 2
    (manifest,) = run.manifests("images")
    assert manifest.rows == 2 * len(CAPTIONS)
    assert manifest.rejected == {"empty caption": 2}


def test_a_bad_image_is_counted_a_cut_prompt_reported_and_the_rest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flawed").mkdir()
    (tmp_path / "flawed/__init__.py").write_text("")
    (tmp_path / "flawed/model.py").write_text(
        "import numpy as np\n"
        "from synthclip.backends import BackendConfig, Painted\n"
        "class Config(BackendConfig): pass\n"
        "class Model:\n"
        "    name, licence, batch_size = 'flawed', 'CC0-1.0', 4\n"
        "    def generate(self, prompts, seeds):\n"
        "        noise = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3)) for seed in seeds]\n"
        "        bad = {at: 'nan' for at, prompt in enumerate(prompts) if 'dog' in prompt}\n"
        "        cut = {at: prompt[500:] for at, prompt in enumerate(prompts) if len(prompt) > 500}\n"
        "        return Painted(np.stack(noise).astype(np.uint8), bad, cut)\n"
        "def build(config): return Model()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    long = "A cat" + " and another cat" * 60 + "."
    run = selected(tmp_path / "run", [*CAPTIONS, long])
    make_images(run, recipe_of("images.retries=1", "text_to_image={backend: flawed.model}"))
    (manifest,) = run.manifests("images")
    dogs = 2 * sum("dog" in text for text in CAPTIONS)
    assert (manifest.rows, manifest.rejected) == (2 * (len(CAPTIONS) + 1) - dogs, {"nan": 2 * dogs})
    assert manifest.notes["cut_prompts"] == 2
    with tarfile.open(run.stage("images") / "train/00000.tar") as tar:
        entries = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")]
        unread = {row["caption"]: row["unread"] for row in (json.loads(one.read()) for one in entries if one)}
    assert unread.pop(long) == long[500:]
    assert set(unread.values()) == {""}
