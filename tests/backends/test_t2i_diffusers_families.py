"""The diffusers backend on tiny pipelines of the families that the presets name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES, save_sdxl

from synthclip.backends.t2i_diffusers import Config, build

pytestmark = pytest.mark.slow

PROMPTS = ["a dog", "two red apples on a table", "", "rain"]
SEEDS = [1, 2, 3, 2**64 - 1]
LONG = " ".join(f"word{number}" for number in range(500))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name in ("sdxl", "sd3", "flux"):
        FAMILIES[name](root / name)
    return {name: root / name for name in ("sdxl", "sd3", "flux")}


def config_as(preset: str, folder: Path, **values: Any) -> Config:
    """The preset with its own guidance, on a small model, in two steps at most."""
    given = {"preset": preset, "model": str(folder), "variant": None, "dtype": "float32", "size_px": 32}
    config = Config.model_validate({"backend": "diffusers", **given, **values})
    return config.model_copy(update={"steps": min(config.steps or 2, 2)})


@contextmanager
def encoded_batches() -> Iterator[list[int]]:
    """The batch size of every call of a text encoder."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    seen: list[int] = []
    inside = False
    with pytest.MonkeyPatch.context() as patch:
        for kind in (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel):

            def forward(
                self: Any, input_ids: Any = None, *args: Any, of: Any = kind.forward, **kwargs: Any
            ) -> Any:
                nonlocal inside
                if inside:  # one kind of encoder wraps another
                    return of(self, input_ids, *args, **kwargs)
                seen.append(len(input_ids))
                inside = True
                try:
                    return of(self, input_ids, *args, **kwargs)
                finally:
                    inside = False

            patch.setattr(kind, "forward", forward)
        yield seen


CASES = [
    ("sdxl", "sdxl", 2),
    ("sdxl-turbo", "sdxl", 2),
    ("sd35-medium", "sd3", 3),
    ("flux-schnell", "flux", 2),
]


@pytest.mark.parametrize(("preset", "family", "encoders"), CASES)
def test_a_preset_paints_what_the_pipeline_itself_paints(
    preset: str, family: str, encoders: int, saved: dict[str, Path]
) -> None:
    import torch
    from diffusers import DiffusionPipeline

    config = config_as(preset, saved[family])
    model = build(config)
    with encoded_batches() as seen:
        ours = model.generate(PROMPTS, SEEDS).images
    assert seen == [len(PROMPTS)] * encoders, "each prompt is encoded once, and nothing else is"

    pipeline = DiffusionPipeline.from_pretrained(saved[family])
    pipeline.set_progress_bar_config(disable=True)
    guidance = {} if config.guidance is None else {"guidance_scale": config.guidance}
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=config.steps,
        height=32,
        width=32,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **guidance,
        **config.arguments,
    ).images
    assert ours.shape == (len(PROMPTS), 32, 32, 3)
    assert len({image.tobytes() for image in ours}) == len(PROMPTS)
    assert np.abs(ours.astype(float) - theirs * 255).max() <= 1


@pytest.mark.parametrize(("guidance", "empty_prompts"), [(4.0, 2), (1.0, 0), (0.0, 0), (None, 2)])
def test_the_empty_prompt_is_encoded_once_and_only_where_guidance_needs_it(
    guidance: float | None, empty_prompts: int, tmp_path: Path
) -> None:
    save_sdxl(tmp_path / "sdxl", zeros=False)
    with encoded_batches() as seen:
        model = build(config_as("sdxl", tmp_path / "sdxl", guidance=guidance))
        assert seen == [1] * empty_prompts
        seen.clear()
        for _ in range(2):
            model.generate(PROMPTS[:2], SEEDS[:2])
        assert seen == [2] * 4


@pytest.mark.parametrize(
    ("family", "tokens", "letters_a_token"),
    [("sdxl", 77, 3), ("sd3", 256, 1), ("flux", 256, 1)],
)
def test_only_what_no_text_encoder_reads_counts_as_cut(
    family: str, tokens: int, letters_a_token: int, saved: dict[str, Path]
) -> None:
    """The tiny T5 has one token a letter or space, CLIP's at most three letters a token of these words."""
    preset = {"sdxl": "sdxl", "sd3": "sd35-medium", "flux": "flux-schnell"}[family]
    painted = build(config_as(preset, saved[family])).generate(["a dog", LONG], [1, 2])
    assert list(painted.cut) == [1]
    unread = painted.cut[1].replace(" ", "")
    letters = LONG.replace(" ", "")
    assert letters.endswith(unread[-40:])
    assert 0.7 * tokens <= len(letters) - len(unread) <= tokens * letters_a_token
