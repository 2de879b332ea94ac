"""What every text-to-image backend promises."""

from pathlib import Path

import numpy as np
import pytest

from synthclip.backends import TextToImage, build_text_to_image
from synthclip.recipe.backends import module

PROMPTS = ["A dog on a sofa.", "Two red apples.", "", "Rain over a castle at night.", "§±!?"]
SEEDS = [1, 2, 3, 2**64 - 1, 0]


@pytest.fixture(scope="module", params=["compositor", "diffusers", "openai"])
def model(request: pytest.FixtureRequest) -> TextToImage:
    values: dict[str, object] = {"backend": request.param}
    if request.param == "compositor":
        values["size_px"] = 48
    elif request.param == "openai":
        values |= {"model": "noise", "size_px": 48, "base_url": request.getfixturevalue("images_url")}
    else:
        folder: Path = request.getfixturevalue("tiny_pipeline")
        values |= {"model": str(folder), "steps": 2, "scheduler": "DDIMScheduler"}
    return build_text_to_image(module("t2i", request.param).Config.model_validate(values))


def test_images_are_rgb_bytes_one_a_prompt(model: TextToImage) -> None:
    painted = model.generate(PROMPTS, SEEDS)
    assert painted.images.dtype == np.uint8
    count, height, width, channels = painted.images.shape
    assert (count, channels) == (len(PROMPTS), 3)
    assert height == width
    assert not painted.refused


def test_it_names_itself_and_the_licence_of_its_pictures(model: TextToImage) -> None:
    assert model.name
    assert model.licence
    assert model.batch_size >= 1


def test_an_image_does_not_depend_on_its_batch(model: TextToImage) -> None:
    together = model.generate(PROMPTS, SEEDS).images.astype(int)
    for at, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = model.generate([prompt], [seed]).images[0].astype(int)
        # A batched matrix product may sum in another order: a level of 255 at most.
        assert np.abs(together[at] - alone).max() <= 1


def test_the_same_prompt_and_seed_give_the_same_image_and_another_seed_another(model: TextToImage) -> None:
    first, again = (model.generate(PROMPTS[:1], [7]).images for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (model.generate(PROMPTS[:1], [8]).images != first).any()
