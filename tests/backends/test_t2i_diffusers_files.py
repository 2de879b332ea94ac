"""What a diffusers pipeline is put together from: single files, parts from elsewhere, the hub."""

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES
from tiny_pipeline import save_tiny_pipeline

from synthclip.backends.t2i_diffusers import Config, build
from synthclip.errors import SynthClipError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "flux"
    FAMILIES["flux"](folder)
    return folder


def config(model: Path | str, **values: Any) -> Config:
    given = {"size_px": 32, "steps": 1, "guidance": 0.0, **values}
    return Config.model_validate({"backend": "diffusers", "model": str(model), **given})


def painted(model: Path | str, **values: Any) -> Any:
    return build(config(model, **values)).generate(["a dog"], [1]).images.astype(int)


@pytest.fixture(scope="module")
def expected(flux: Path) -> Any:
    return painted(flux)


def denoiser_in_gguf(folder: Path, target: Path) -> Path:
    """The weights of the pipeline's denoiser in one GGUF file, as they are."""
    import gguf
    from safetensors.numpy import load_file

    writer = gguf.GGUFWriter(target, "flux")
    for name, tensor in load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors").items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_gguf_file_is_the_denoiser_of_its_base(flux: Path, expected: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = denoiser_in_gguf(flux, tmp_path / "flux.gguf")
    assert np.abs(painted(file, base=str(flux)) - expected).max() <= 1
    with pytest.raises(SynthClipError, match=r"text_to_image\.base: a GGUF file holds the denoiser alone"):
        painted(file)


def test_a_single_file_and_parts_from_elsewhere_make_a_pipeline(flux: Path, expected: Any) -> None:
    file = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    parts = {name: str(flux / name) for name in ("vae", "text_encoder", "text_encoder_2")}
    assert np.abs(painted(file, base=str(flux), parts=parts) - expected).max() <= 1
    assert set(config(file, base=str(flux), parts=parts).inputs()) >= {file.name, "vae/config.json"}


def test_a_part_from_a_file_takes_the_place_of_the_pipelines_own(flux: Path, expected: Any) -> None:
    file = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    model = build(config(flux, parts={"transformer": str(file)}))
    assert np.abs(model.generate(["a dog"], [1]).images.astype(int) - expected).max() <= 1
    assert model.name.endswith(f"+ {file.name}")


@pytest.mark.parametrize("quantize", ["torchao-int8", "torchao-fp8"])
def test_weights_in_eight_bits_paint_nearly_the_same(quantize: str, flux: Path, expected: Any) -> None:
    pytest.importorskip("torchao")
    assert 0 < np.abs(painted(flux, quantize=quantize) - expected).mean() < 20


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU can do it")
def test_bitsandbytes_without_a_gpu_is_refused_before_a_download() -> None:
    with pytest.raises(SynthClipError, match="nf4 is bitsandbytes', which needs a GPU"):
        build(config("someone/large", quantize="nf4"))


def test_with_a_cache_a_picture_still_depends_on_nothing_but_its_prompt_and_seed(flux: Path) -> None:
    cached, plain = (build(config(flux, steps=6, cache=cache)) for cache in (0.5, None))
    together = cached.generate(["a dog", "two red apples"], [1, 2]).images
    assert (cached.generate(["two red apples"], [2]).images[0] == together[1]).all()
    assert (plain.generate(["two red apples"], [2]).images[0] != together[1]).any(), "blocks are left out"


def test_a_cache_where_there_is_none_is_one_line(tmp_path: Path) -> None:
    tiny = save_tiny_pipeline(tmp_path / "tiny")
    with pytest.raises(SynthClipError, match=r"cache: diffusers' StableDiffusionPipeline cannot use it"):
        build(config(tiny, cache=0.1))


def test_offloaded_parts_paint_the_same(flux: Path, expected: Any) -> None:
    assert (painted(flux, device="cpu", offload="model") == expected).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": {"transfromer": "x/y"}}, "has no part 'transfromer'; did you mean 'transformer'"),
        ({"arguments": {"max_sequence_lenth": 3}}, "takes no 'max_sequence_lenth'; did you mean"),
        ({"scheduler": "EulerDiscretScheduler"}, "did you mean 'EulerDiscreteScheduler'"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(flux: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SynthClipError, match=message):
        build(config(flux, **values))


def test_a_pipeline_newer_than_the_library_names_the_version(tmp_path: Path) -> None:
    index = {"_class_name": "PaintEverythingPipeline", "_diffusers_version": "9.1.0.dev0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SynthClipError, match=r"has no pipeline PaintEverythingPipeline.*diffusers>=9\.1\.0'"):
        build(config(tmp_path))


def test_a_library_that_is_too_old_is_said_before_a_run(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthclip.backends.diffusers_config.version", lambda package: "0.30.2")
    with pytest.raises(SynthClipError, match=r"diffusers 0\.30\.2 is too old, 0\.42 is needed"):
        config(flux).inputs()
    assert importlib.metadata.version("diffusers") != "0.30.2"


class FakeFile:
    def __init__(self, name: str, size: int) -> None:
        self.rfilename, self.size = name, size


class FakeHub:
    """Says of every repository that its denoiser has `gigabytes`."""

    gigabytes = 0.0

    def model_info(self, repository: str, **values: Any) -> Any:
        size = int(self.gigabytes * 1e9)
        files = [("unet/model.fp16.safetensors", 5), ("unet/model.safetensors", size), ("README.md", 9)]
        return type("Info", (), {"sha": "0" * 40, "siblings": [FakeFile(*file) for file in files]})


@pytest.mark.parametrize(
    ("free_gb", "memory_gb", "message"),
    [
        (10, 1000, r"24\.0 GB to download, and 10\.0 GB free in .*HF_HOME"),
        (1000, 10, r"weights take 12\.0 GB at least, and 10\.0 GB are this machine's memory.*quantize=nf4"),
        (1000, 1000, None),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_it_is_downloaded(
    free_gb: int, memory_gb: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "gigabytes", 24.0)
    disk = type("Usage", (), {"free": free_gb * 10**9})
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    pages = {"SC_PAGE_SIZE": 10**6, "SC_PHYS_PAGES": memory_gb * 1000}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    large = config("someone/large", dtype="float16", device="cpu")
    if message is None:
        large.check()
    else:
        with pytest.raises(SynthClipError, match=message):
            large.check()


def test_a_gated_repository_names_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    from synthclip.models import diffusers

    def refuse(*arguments: Any, **values: Any) -> Any:
        answer: Any = SimpleNamespace(headers={}, request=None, status_code=403)
        raise GatedRepoError("403", response=answer)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    with pytest.raises(
        SynthClipError, match=r"black/gated: needs a token: set HF_TOKEN.*co/black/gated"
    ) as caught:
        build(config("black/gated"))
    assert "\n" not in str(caught.value)
