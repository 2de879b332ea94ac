"""Every family of diffusion models paints through the product's own loader and backend."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES

from synthclip.backends import Painted
from synthclip.backends.t2i_diffusers import Config, Diffusers, build
from synthclip.errors import SynthClipError

pytestmark = pytest.mark.slow

PROMPTS = ["a dog", "two red apples on a table"]
SEEDS = [1, 2**64 - 1]
LONG = " ".join(f"word{number}" for number in range(400))
FIXED_SIZE = {"hidream", "kandinsky5"}
"""These paint at their own size whatever they are asked for: seconds each."""
NO_GUIDANCE = {"flux2-klein"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Diffusers]:
    """Load a family's tiny pipeline, made once; the last one is kept loaded."""
    root = tmp_path_factory.mktemp("families")

    @functools.cache
    def saved(name: str) -> Path:
        FAMILIES[name](root / name)
        return root / name

    @functools.lru_cache(maxsize=1)
    def load(name: str, **values: Any) -> Diffusers:
        guided = {} if name in NO_GUIDANCE else {"guidance": 1.0 if name in FIXED_SIZE else 3.0}
        given = {"size_px": 32, "steps": 1 if name in FIXED_SIZE else 2, **guided, **values}
        return build(Config.model_validate({"backend": "diffusers", "model": str(saved(name)), **given}))

    return load


def largest_difference(one: Painted, other: Painted) -> int:
    return int(np.abs(one.images.astype(int) - other.images.astype(int)).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_paints_on_the_cpu_and_as_on_a_gpu(name: str, family: Callable[..., Diffusers]) -> None:
    """`cpu:0` takes every branch that a GPU takes: the layout of weights, the decoder's slices."""
    cheap = {"device": "cpu:0"} if name in FIXED_SIZE else {}
    painted = family(name, **cheap).generate(PROMPTS, SEEDS)
    images = painted.images
    assert images.dtype == np.uint8
    assert images.shape[0] == len(PROMPTS)
    assert images.shape[3] == 3
    assert images.shape[1:3] == (32, 32) or name in FIXED_SIZE
    assert painted.refused == {}
    assert painted.cut == {}
    assert len({image.tobytes() for image in images}) == len(PROMPTS)
    if cheap:
        return
    alone_on_gpu = family(name, device="cpu:0").generate(PROMPTS[:1], SEEDS[:1])
    assert largest_difference(alone_on_gpu, Painted(images[:1])) <= 1


@pytest.mark.parametrize("name", ["flux", "lcm", "qwen-image", "sana-sprint"])
def test_guidance_reaches_the_denoiser_whatever_its_name(name: str, family: Callable[..., Diffusers]) -> None:
    weak, strong = (family(name, guidance=scale).generate(PROMPTS[:1], SEEDS[:1]) for scale in (1.5, 9.0))
    assert largest_difference(weak, strong) > 0


def test_guidance_that_a_model_would_ignore_is_refused(family: Callable[..., Diffusers]) -> None:
    with pytest.raises(SynthClipError, match="distilled for use without it"):
        family("flux2-klein", guidance=3.0)


@pytest.mark.parametrize("name", ["flux2", "qwen-image"])
def test_the_end_of_a_long_prompt_is_reported(name: str, family: Callable[..., Diffusers]) -> None:
    """Its tokenizers have a token a letter; one of them is inside a processor."""
    cut = family(name).generate(["a dog", LONG], [1, 2]).cut
    assert list(cut) == [1]
    assert LONG.replace(" ", "").endswith(cut[1].replace(" ", "")[-40:])


def test_a_report_that_fails_loses_no_picture(
    family: Callable[..., Diffusers], caplog: pytest.LogCaptureFixture
) -> None:
    model = family("sana")

    def unable(*arguments: Any, **values: Any) -> Any:
        raise ValueError("no text here")

    model._readers = [(unable, 10)]
    assert len(model.generate(PROMPTS, SEEDS).images) == len(PROMPTS)
    assert caplog.text.count("no text here") == 1
