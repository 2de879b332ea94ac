"""The diffusers backend on a tiny pipeline with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pipeline import save_tiny_pipeline

from synthclip.backends.t2i_diffusers import Config, Diffusers, build
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe

pytestmark = pytest.mark.slow


def config(folder: Path, **values: Any) -> Config:
    given = {"steps": 2, "guidance": 2.0, "scheduler": "DDIMScheduler", **values}
    return Config(backend="diffusers", model=str(folder), **given)


def test_it_paints_what_the_pipeline_itself_paints(tiny_pipeline: Path) -> None:
    ours = build(config(tiny_pipeline)).generate(["a dog", "a cat"], [3, 4]).images

    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a dog", "a cat"],
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
    ).images
    for our, their in zip(ours, theirs, strict=True):
        assert np.abs(our.astype(int) - np.asarray(their).astype(int)).max() <= 1


def test_the_end_of_a_long_prompt_is_reported(tiny_pipeline: Path) -> None:
    words = " ".join(f"word{number}" for number in range(300))
    painted = build(config(tiny_pipeline)).generate(["a dog", words], [1, 2])
    assert list(painted.cut) == [1]
    assert words.endswith(painted.cut[1].replace(" ", "")[-7:])


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    painted = build(config(save_tiny_pipeline(tmp_path / "nan", nan=True))).generate(["a", "b"], [1, 2])
    assert painted.refused == {0: "nan", 1: "nan"}


def test_the_safety_checker_refuses_only_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "prude", checker=True)
    assert build(config(folder)).generate(["a"], [1]).refused == {}
    assert build(config(folder, safety_checker=True)).generate(["a"], [1]).refused == {0: "unsafe"}


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Room for four samples in the denoiser (two images under guidance); a list that can shrink it."""
    import torch
    from diffusers import UNet2DConditionModel

    room = [4]
    forward = UNet2DConditionModel.forward

    def bounded(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > room[0]:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 1 GiB")
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", bounded)
    return room


def test_the_batch_shrinks_until_the_memory_holds_it(tiny_pipeline: Path, small_memory: list[int]) -> None:
    model: Diffusers = build(config(tiny_pipeline))
    prompts, seeds = [f"thing {number}" for number in range(7)], list(range(7))
    painted = model.generate(prompts, seeds).images
    assert model.batch_size == 2
    small_memory[0] = 1000
    whole = build(config(tiny_pipeline, batch_size=7)).generate(prompts, seeds).images
    assert np.abs(painted.astype(int) - whole.astype(int)).max() <= 1


def test_no_room_for_one_image_is_one_line(tiny_pipeline: Path, small_memory: list[int]) -> None:
    small_memory[0] = 0
    with pytest.raises(SynthClipError, match=r"out of memory at batch size 1.*size_px") as caught:
        build(config(tiny_pipeline)).generate(["a"], [1])
    assert "\n" not in str(caught.value)


def test_a_preset_gives_defaults_and_yields_to_what_is_said() -> None:
    paper = Config.model_validate({"backend": "diffusers"})
    assert (paper.preset, paper.steps, paper.guidance, paper.scheduler, paper.size_px, paper.dtype) == (
        "sd15-paper",
        50,
        2.0,
        "DDIMScheduler",
        512,
        "float16",
    )
    turbo = Config.model_validate({"backend": "diffusers", "preset": "sdxl-turbo", "steps": 2})
    assert (turbo.model, turbo.steps, turbo.guidance) == ("stabilityai/sdxl-turbo", 2, 0.0)
    assert Config.model_validate(turbo.model_dump()) == turbo


def test_a_preset_keeps_the_arguments_that_are_not_named() -> None:
    said = {"backend": "diffusers", "preset": "lumina2", "arguments": {"cfg_normalization": False}}
    config = Config.model_validate(said)
    assert config.arguments == {"cfg_trunc_ratio": 0.25, "cfg_normalization": False}
    assert Config.model_validate(config.model_dump()).arguments == config.arguments
    said["arguments"] = {"cfg_trunc_ratio": 1.0}
    assert Config.model_validate(said).arguments == {"cfg_trunc_ratio": 1.0}


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SynthClipError, match="did you mean 'sdxl-turbo'"):
        load_recipe("demo", ["text_to_image={backend: diffusers, preset: sdxl-trubo}"])


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_missing_folder_is_one_line(model: str) -> None:
    with pytest.raises(SynthClipError, match="no such folder"):
        Config(backend="diffusers", model=model).inputs()


def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match=r"holds no model_index\.json"):
        Config(backend="diffusers", model=str(tmp_path)).inputs()
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(SynthClipError, match="cannot be loaded"):
        build(Config(backend="diffusers", model=str(tmp_path)))


@pytest.mark.parametrize("steps", [1001, 2000])
def test_values_that_the_pipeline_refuses_are_one_line(tiny_pipeline: Path, steps: int) -> None:
    with pytest.raises(SynthClipError, match=r"refuses the recipe's values.*steps") as error:
        build(config(tiny_pipeline, steps=steps)).generate(["a"], [1])
    assert "\n" not in str(error.value)


def test_a_size_that_no_pipeline_paints_is_refused_with_the_recipe() -> None:
    with pytest.raises(SynthClipError, match="multiple of 8"):
        load_recipe("demo", ["text_to_image={backend: diffusers, size_px: 500}"])


def test_an_unknown_scheduler_names_the_nearest(tiny_pipeline: Path) -> None:
    with pytest.raises(SynthClipError, match="did you mean 'DDIMScheduler'"):
        build(config(tiny_pipeline, scheduler="DDIMSchedular"))


def test_other_weights_are_another_model(tiny_pipeline: Path, tmp_path: Path) -> None:
    other = save_tiny_pipeline(tmp_path / "tiny", nan=True)
    assert config(tiny_pipeline).inputs() != config(other).inputs()
    assert build(config(tiny_pipeline)).name != build(config(other)).name


def test_an_adapter_is_fused_and_few_steps_draw_from_the_images_own_noise(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    """LCM's way: a LoRA, its scheduler, no guidance; the scheduler adds noise in every step."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = {
        name: torch.randn_like(value) for name, value in get_peft_model_state_dict(pipeline.unet).items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    few = {"scheduler": "LCMScheduler", "guidance": 1.0, "steps": 3}
    with_adapter = build(config(tiny_pipeline, adapter=str(tmp_path / "lora"), **few))
    without = build(config(tiny_pipeline, **few))
    together = with_adapter.generate(["a", "b"], [1, 2]).images
    assert (together != without.generate(["a", "b"], [1, 2]).images).any()
    alone = with_adapter.generate(["b"], [2]).images[0]
    assert np.abs(together[1].astype(int) - alone.astype(int)).max() <= 1
    assert with_adapter.name.endswith("+ lora")
