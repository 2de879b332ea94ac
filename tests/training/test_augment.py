"""Cropping, against Pillow and torchvision, and pictures that are refused."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shape_runs import with_training
from torch import Tensor

from small_inputs import smooth
from synthclip.recipe import Recipe
from synthclip.run.store import RunDirectory
from synthclip.samples.pictures import decode
from synthclip.training import Train
from synthclip.training.augment import DRAWS, crop_box, random_crop, resize
from synthclip.training.job import build_trainer


@pytest.mark.parametrize(
    "damage", [lambda jpeg: b"", lambda jpeg: jpeg[: len(jpeg) // 2], lambda jpeg: b"<html>404</html>"]
)
def test_what_is_no_whole_image_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(damage(simplejpeg.encode_jpeg(smooth(64, 64))))


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    low=st.floats(0.05, 1),
    seed=st.integers(0, 1000),
)
def test_a_crop_lies_in_the_image(height: int, width: int, low: float, seed: int) -> None:
    draws = np.random.default_rng(seed).random(DRAWS).tolist()
    top, left, h, w = crop_box(height, width, (low, 1.0), draws)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0


def test_a_small_file_of_a_huge_picture_is_refused_before_memory_is_taken() -> None:
    forged = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), dtype=np.uint8)))
    size = forged.index(b"\xff\xc0") + 5
    forged[size : size + 4] = (65_000).to_bytes(2, "big") * 2
    png = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(png, "PNG")
    for image in (bytes(forged), png.getvalue()):
        with pytest.raises(ValueError, match="pixels"):
            decode(image)
        with pytest.raises(ValueError, match="pixels"):
            random_crop(image, (0.5, 1.0), [0.5] * DRAWS, np.empty((32, 32, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=5)
@given(height=st.integers(150, 300), width=st.integers(150, 300))
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(height, width, (0.5, 1.0), rng.random(DRAWS).tolist()) for _ in range(1500)])
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
    error = theirs.std(axis=0) / np.sqrt(1500) * 5 * np.sqrt(2) + 1e-9
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all()


@pytest.mark.parametrize("size", [224, 170, 140, 64])
def test_resize_is_close_to_pillows_antialiased_bilinear(size: int) -> None:
    image = smooth(200, 180)
    out = np.empty((size, size, 3), dtype=np.uint8)
    resize(image, out)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    difference = np.abs(out.astype(int) - expected.astype(int))
    assert difference.mean() < 2
    if 1.2 * size < 180:
        assert difference.max() <= 1


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 1200), width=st.integers(1, 1200), seed=st.integers(0, 1000))
def test_a_crop_of_a_file_is_torchvisions_of_its_pixels(height: int, width: int, seed: int) -> None:
    """However much of the JPEG was decoded: a crop begins at most half a pixel of the result elsewhere."""
    from torchvision.transforms.functional import resized_crop

    draws = np.random.default_rng(seed).random(DRAWS).tolist()
    picture = Image.fromarray(smooth(60, 80)).resize((width, height), Image.Resampling.BICUBIC)
    jpeg = simplejpeg.encode_jpeg(np.asarray(picture), 95, colorsubsampling="444")
    out = np.empty((224, 224, 3), dtype=np.uint8)
    random_crop(jpeg, (0.5, 1.0), draws, out)
    box = crop_box(height, width, (0.5, 1.0), draws)
    expected = np.asarray(resized_crop(Image.open(io.BytesIO(jpeg)), *box, [224, 224]))
    assert np.abs(out.astype(int) - expected.astype(int)).mean() < 3


def test_a_crop_keeps_at_least_its_own_resolution() -> None:
    """One pixel in two of a chequerboard survives whole decoding only."""
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (128, 128))[..., None].repeat(3, axis=2)
    jpeg = simplejpeg.encode_jpeg(fine, 95, colorsubsampling="444")
    draws = [0.0] * DRAWS
    contrast = []
    for size in (256, 128):
        out = np.empty((size, size, 3), dtype=np.uint8)
        random_crop(jpeg, (1.0, 1.0), [0.0] * 10 + [0.5] * 10 + draws[20:], out)
        contrast.append(int(out.max()) - int(out.min()))
    assert contrast[0] > 200 > 50 > contrast[1]


def test_a_picture_is_mirrored_by_chance_and_anew_in_each_pass(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    def pictures(probability: float) -> Tensor:
        stage = Train(with_training(tiny_recipe, horizontal_flip=probability), run)
        trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False)
        return torch.cat([batch.images for batch in trainer.loader.batches(0, 12)])

    plain_BHWC, mirrored_BHWC, some_BHWC = pictures(0), pictures(1).flip(2), pictures(0.5)
    assert torch.equal(plain_BHWC, mirrored_BHWC)
    kept_B = (some_BHWC == plain_BHWC).flatten(1).all(dim=1)
    assert torch.equal(some_BHWC[~kept_B], plain_BHWC[~kept_B].flip(2))
    assert 60 < kept_B.sum() < 132
    assert not torch.equal(kept_B[:96], kept_B[96:])
