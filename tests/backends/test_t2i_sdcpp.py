"""The backend on stable-diffusion.cpp, against the real library as far as it goes without weights."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from synthclip.backends.t2i_sdcpp import Config, build
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe

library = pytest.importorskip("cyllama.sd", reason="pip install 'synthclip[sdcpp]'")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(b"no weights at all")
    return path


class Context:
    """In the place of the library's context: takes what that takes, and paints the seed."""

    takes = inspect.signature(library.SDContext.generate)

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def generate(self, **values: Any) -> Any:
        self.takes.bind(self, **values)
        self.values = values
        noise = np.random.default_rng(values["seed"]).integers(
            0, 256, (values["height"], values["width"], 3), np.uint8
        )
        return [library.SDImage.from_numpy(noise)]


def test_what_the_library_cannot_load_is_one_line(weights: Path) -> None:
    with pytest.raises(
        SynthClipError, match=r"noise\.safetensors: stable-diffusion\.cpp cannot load it"
    ) as caught:
        build(Config(backend="sdcpp", model=str(weights)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "dpmpp2n"}, "there is no 'dpmpp2n'; did you mean 'dpmpp2m'"),
        ({"scheduler": "karas"}, "did you mean 'karras'"),
        ({"parts": {"vea": "a/b/c.gguf"}}, "no part is called 'vea'; did you mean 'vae'"),
    ],
)
def test_a_name_that_the_library_does_not_have_names_the_nearest(
    values: dict[str, Any], message: str, weights: Path
) -> None:
    with pytest.raises(SynthClipError, match=message):
        build(Config(backend="sdcpp", model=str(weights), **values))


def test_values_go_to_the_library_under_its_names(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "SDContext", Context)
    values: dict[str, Any] = {
        "steps": 1,
        "guidance": 1.0,
        "size_px": 64,
        "sampler": "lcm",
        "quantize": "q8_0",
    }
    model = build(Config(backend="sdcpp", model=str(weights), parts={"vae": str(weights)}, **values))
    painted = model.generate(["a dog", "a cat"], [1, 2**64 - 1])
    assert painted.images.shape == (2, 64, 64, 3)
    assert (painted.images[0] != painted.images[1]).any()
    context: Any = model._context
    assert context.values["seed"] == 2**63 - 1, "never negative: that is a seed of the clock"
    assert context.values["sample_method"] == library.SampleMethod.LCM
    assert context.parameters.wtype == library.SDType.Q8_0
    assert context.parameters.vae_path == context.parameters.model_path == str(weights)
    assert model.name == "noise.safetensors"


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="no such folder or file"):
        Config(backend="sdcpp", model=str(tmp_path / "none.gguf")).inputs()


def test_a_file_that_does_not_fit_is_refused_before_it_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = SimpleNamespace(rfilename="big.gguf", size=10**15)
    info = SimpleNamespace(sha="0" * 40, siblings=[file, SimpleNamespace(rfilename="other.gguf", size=1)])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, model, **values: info)
    Config(backend="sdcpp", model="some/one/other.gguf").check()
    with pytest.raises(SynthClipError, match=r"parts\.vae: some/one/big\.gguf: 1000000\.0 GB to download"):
        Config(backend="sdcpp", model="some/one/other.gguf", parts={"vae": "some/one/big.gguf"}).check()


def test_a_recipe_without_a_model_is_refused() -> None:
    with pytest.raises(SynthClipError, match="give model, or parts with diffusion_model"):
        load_recipe("demo", ["text_to_image={backend: sdcpp}"])
