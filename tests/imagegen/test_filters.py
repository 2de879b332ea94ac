"""Filters: what is refused, with which score and reason, and painted again."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_runs import CAPTIONS, make_images, recipe_of, selected

from synthclip.errors import SynthClipError
from synthclip.imagegen.filters import Contrast, Duplicates, Verdict
from synthclip.imagegen.provenance import repaint
from synthclip.keys import seeds, text_id
from synthclip.run.store import RunDirectory
from synthclip.samples.pictures import encode, fit, perceptual_hash


def scene(seed: int, side: int = 96) -> np.ndarray:
    """A smooth random picture, uint8 [side, side, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def bits(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(perceptual_hash(first) ^ perceptual_hash(second)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(70, 95), st.integers(64, 200))
def test_the_hash_survives_encoding_and_scale_and_tells_pictures_apart(
    seed: int, quality: int, side: int
) -> None:
    picture = scene(seed)
    encoded = cv2.imdecode(np.frombuffer(encode(picture, quality), np.uint8), cv2.IMREAD_COLOR_RGB)
    scaled = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    assert bits(picture, np.asarray(encoded)) <= 6
    assert bits(picture, np.asarray(scaled)) <= 10
    assert bits(picture, scene(seed + 1)) > 10


def test_a_blank_image_is_refused_and_a_picture_is_not() -> None:
    grey = np.full((32, 32, 3), 120, np.uint8)
    verdicts = [Verdict(), Verdict()]
    Contrast(2.0).judge(np.stack([grey, scene(0, 32)]), ["a", "b"], verdicts)
    assert [verdict.reason for verdict in verdicts] == ["blank", None]
    assert verdicts[0].scores["contrast"] == 0
    assert verdicts[1].scores["contrast"] == pytest.approx(
        cv2.cvtColor(scene(0, 32), cv2.COLOR_RGB2GRAY).std(), rel=1e-6
    )


def test_duplicates_are_refused_but_only_against_what_was_kept() -> None:
    pictures = np.stack([scene(0), scene(1), scene(0), scene(2)])
    verdicts = [Verdict(), Verdict(reason="blank"), Verdict(), Verdict()]
    duplicates = Duplicates(4)
    duplicates.judge(pictures, ["a"] * 4, verdicts)
    assert [verdict.reason for verdict in verdicts] == [None, "blank", "duplicate", None]
    again = [Verdict()]
    duplicates.judge(scene(1)[None], ["a"], again)
    assert again[0].reason is None


def test_resizing_is_antialiased() -> None:
    board = np.indices((512, 512)).sum(0) % 2 * 255
    picture = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    assert fit(picture, 256).std() < 2
    assert fit(picture[:, :300], 100).shape == (100, 100, 3)


@pytest.fixture(scope="module")
def blank_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backend of somebody's own that paints blank for even seeds."""
    folder = tmp_path_factory.mktemp("backends")
    (folder / "half_blank").mkdir()
    (folder / "half_blank/__init__.py").write_text("")
    (folder / "half_blank/model.py").write_text(
        "import numpy as np\n"
        "from synthclip.backends import BackendConfig, Painted\n"
        "class Config(BackendConfig):\n"
        "    always: bool = False\n"
        "class Model:\n"
        "    name, licence, batch_size = 'half-blank', 'CC0-1.0', 3\n"
        "    def __init__(self, always): self.always = always\n"
        "    def generate(self, prompts, seeds):\n"
        "        def one(seed):\n"
        "            noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)\n"
        "            return noise * 0 if self.always or seed % 2 == 0 else noise\n"
        "        return Painted(np.stack([one(seed) for seed in seeds]))\n"
        "def build(config): return Model(config.always)\n"
    )
    return str(folder)


@pytest.fixture
def half_blank(blank_model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(blank_model)
    return "text_to_image={backend: half_blank.model}"


def test_what_is_refused_is_painted_again_with_the_next_seed(half_blank: str, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    make_images(run, recipe_of("images.retries=3", "images.max_lost=1", half_blank))
    kept = pq.read_table(run.stage("images") / "train/00000.parquet").to_pylist()
    rejected = pq.read_table(run.stage("images") / "rejected/train/00000.parquet").to_pylist()
    for row in kept:
        tried = [
            int(seeds(row["caption_id"], stream="image", seed=0, index=row["variant"] + 100 * k))
            for k in range(4)
        ]
        first_good = next(seed for seed in tried if seed % 2)
        assert row["seed"] == first_good
        mine = [refused for refused in rejected if refused["key"] == row["key"]]
        assert [refused["seed"] for refused in mine] == tried[: tried.index(first_good)]
        assert [refused["attempt"] for refused in mine] == list(range(len(mine)))
    assert all(row["reason"] == "blank" and dict(row["scores"])["contrast"] == 0 for row in rejected)
    (manifest,) = run.manifests("images")
    assert manifest.rejected == {"blank": len(rejected)}
    assert manifest.rows + manifest.notes["lost"] == 2 * len(CAPTIONS)


def test_too_many_lost_stop_the_stage_with_the_reason(half_blank: str, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    recipe = recipe_of(half_blank.replace("model}", "model, always: true}"))
    with pytest.raises(SynthClipError, match=r"train/00000: 16 of 16 images refused, most often as 'blank'"):
        make_images(run, recipe)
    assert not run.manifests("images")


def test_the_same_run_twice_is_the_same_with_retries(half_blank: str, tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        run = selected(tmp_path / name, CAPTIONS)
        make_images(run, recipe_of("images.max_lost=1", half_blank))
        digests.append(hashlib.sha256((run.stage("images") / "train/00000.tar").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_clip_scores_are_open_clips_own(clip_folder: Path, run: RunDirectory) -> None:
    make_images(
        run,
        recipe_of(f"images.filters.clip_model=local-dir:{clip_folder}", "images.filters.min_clip_score=-1"),
    )
    rows = pq.read_table(run.stage("images") / "train/00000.parquet").to_pylist()

    import open_clip
    import torch
    from PIL import Image

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    for row in rows[:3]:
        jpeg = np.frombuffer(repaint(run.path, row["key"]).jpeg, np.uint8)
        picture = Image.fromarray(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)))
        caption = next(text for text in CAPTIONS if text_id(text) == row["caption_id"])
        with torch.inference_mode():
            image = model.eval().encode_image(transform(picture)[None], normalize=True)
            text = model.encode_text(tokenizer([caption]), normalize=True)
        # The score is of the picture before JPEG.
        assert dict(row["scores"])["clip_score"] == pytest.approx(float((image @ text.T).item()), abs=0.02)


def test_a_low_clip_score_is_refused(clip_folder: Path, run: RunDirectory) -> None:
    recipe = recipe_of(
        f"images.filters.clip_model=local-dir:{clip_folder}",
        "images.filters.min_clip_score=1",
        "images.retries=0",
        "images.max_lost=1",
    )
    make_images(run, recipe)
    rejected = pq.read_table(run.stage("images") / "rejected/train/00000.parquet").to_pylist()
    assert len(rejected) == 12
    assert {row["reason"] for row in rejected} == {"clip score"}
    assert all("clip_score" in dict(row["scores"]) for row in rejected)


@pytest.mark.parametrize("model", ["local-dir:/nowhere", "ViT-B-32/no-such-weights"])
def test_a_missing_clip_model_is_one_line(model: str, run: RunDirectory) -> None:
    with pytest.raises(SynthClipError, match=r"images\.filters\.clip_model") as caught:
        make_images(run, recipe_of(f"images.filters.clip_model={model}"))
    assert "\n" not in str(caught.value)
