"""Others read the shards: webdataset, and open_clip's own training loader."""

import functools
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from image_runs import CAPTIONS, make_images, recipe_of, selected

from synthclip.keys import image_key, text_id
from synthclip.run.store import RunDirectory


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = selected(tmp_path_factory.mktemp("painted") / "run", CAPTIONS)
    make_images(run, recipe_of("images.captions_per_shard=4"))
    return run


def test_webdataset_reads_every_sample(painted: RunDirectory) -> None:
    urls = sorted(str(path) for path in painted.stage("images").glob("train/*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    wanted = {image_key(text_id(text), variant): text for text in CAPTIONS for variant in range(2)}
    assert {sample["__key__"]: sample["txt"] for sample in samples} == wanted
    for sample in samples:
        assert sample["jpg"].shape == (48, 48, 3)
        assert sample["json"]["caption"] == sample["txt"]


def test_open_clips_training_loader_reads_them_by_sizes_json(
    painted: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from open_clip_train import data
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    from synthclip.models import open_clip

    # open_clip pins a webdataset that marks no end of a tar; newer ones do by default.
    without_marks = functools.partial(data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(data, "tar_file_expander", without_marks)

    shards = str(painted.stage("images") / "train/{00000..00001}.tar")
    assert get_dataset_size(shards) == (2 * len(CAPTIONS), 2)
    args = Namespace(
        train_data=shards,
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=4,
        workers=0,
        world_size=1,
    )
    loader = get_wds_dataset(
        args,
        lambda image: torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
        is_train=True,
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
    ).dataloader
    assert loader.num_samples == 2 * len(CAPTIONS)
    batches = list(loader)
    assert sum(len(images) for images, _ in batches) == 2 * len(CAPTIONS)
    for images, texts in batches:
        assert images.shape[1:] == (3, 48, 48)
        assert texts.shape == (len(images), 77)


def test_datasets_reads_every_sample(painted: RunDirectory, tmp_path: Path) -> None:
    """Its JSON reader knows no numbers above 2^63: ids are strings there."""
    import datasets

    urls = sorted(str(path) for path in painted.stage("images").glob("train/*.tar"))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": urls}, split="train", cache_dir=str(tmp_path)
    )
    wanted = {image_key(text_id(text), variant): text for text in CAPTIONS for variant in range(2)}
    assert {row["__key__"]: row["txt"] for row in loaded} == wanted
    assert max(int(row["json"]["caption_id"]) for row in loaded) >= 2**63
    assert {row["json"]["caption_id"] for row in loaded} == {str(text_id(text)) for text in CAPTIONS}
    assert all(row["jpg"].size == (48, 48) for row in loaded)


def test_sizes_count_what_the_tars_hold(painted: RunDirectory) -> None:
    folder: Path = painted.stage("images") / "train"
    sizes = json.loads((folder / "sizes.json").read_text())
    for name, count in sizes.items():
        assert len(list(webdataset.WebDataset(str(folder / name), shardshuffle=False))) == count
