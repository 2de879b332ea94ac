"""A sweep over the whole pipeline: shared stages, equal samples, seeds, crashes, resume."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.plan import make_plan
from synthclip.recipe import inspect_recipe, load_recipe
from synthclip.recipe.training import TrainingConfig
from synthclip.run.pipeline import status
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory
from synthclip.run.verify import verify
from synthclip.sweeps.judge import pixel_encoder
from synthclip.sweeps.results import find, write
from synthclip.sweeps.runs import Swept, pairs_of_equal_cost, sweep, with_epochs
from synthclip.sweeps.variants import Sweep, runs_of
from synthclip.training.flops import parse_devices

pytestmark = pytest.mark.slow


def run(asked: Sweep, out: Path) -> tuple[Swept, str]:
    told = io.StringIO()
    return sweep(asked, out, console=Console(told), trust=True), told.getvalue()


@pytest.fixture(scope="module")
def asked(recipe: str) -> Sweep:
    return Sweep(
        recipe=recipe,
        variants={"once": (), "twice": ("images.per_caption=2",)},
        seeds=2,
        equal="samples",
        baselines=("untrained",),
        judges=("twice",),
    )


@pytest.fixture(scope="module")
def swept(asked: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return run(asked, tmp_path_factory.mktemp("sweep") / "x")[0]


def shards(swept: Swept, run_name: str) -> dict[str, list[str]]:
    """By stage, the shards that a run has linked from others."""
    found: dict[str, list[str]] = {}
    for line in RunDirectory(swept.directory.path / "runs" / run_name).metrics():
        if line["event"] == "shard":
            found.setdefault(line["stage"], []).append(line.get("linked_from", "made"))
    return found


def test_what_variants_share_is_made_once(swept: Swept) -> None:
    assert set(shards(swept, "once.s0")["captions"]) == {"made"}
    twice = shards(swept, "twice.s0")
    assert all("made" not in twice[stage] for stage in ("concepts", "captions", "match", "balance"))
    assert set(twice["images"]) == {"made"}
    seed = shards(swept, "twice.s1")
    assert "made" not in seed["images"]
    assert seed["train"] == ["made"]
    tars = [swept.directory.path / f"runs/{name}/images/train/00000.tar" for name in ("twice.s0", "twice.s1")]
    assert tars[0].samefile(tars[1])


def test_each_run_is_an_ordinary_run(swept: Swept) -> None:
    for one in swept.runs:
        assert verify(swept.path(one)) == []
        states = {state.stage: state.state for state in status(swept.path(one), trust=True).stages}
        assert set(states.values()) == {"current", "new"}
        assert states["train"] == "current"
    assert verify(swept.directory.path) == []


def test_all_see_as_many_samples_with_the_same_share_of_warm_up(swept: Swept) -> None:
    models = [RunDirectory(swept.path(one)).manifest("train", "all") for one in swept.runs]
    assert len({model.rows for model in models if model}) == 1
    pairs = [model.notes["pairs"][0] for model in models if model]
    assert pairs[1] == 2 * pairs[0]
    configs: list[TrainingConfig] = [inspect_recipe(swept.path(one)).training for one in swept.runs]
    assert {round(config.warmup_epochs / config.epochs, 9) for config in configs} == {0.25}


def test_one_held_out_set_judges_all_and_no_run_trains_on_it(swept: Swept) -> None:
    judged = [
        pq.read_table(swept.directory.file("judged", f"{one.name}/items.parquet"))["item"].to_pylist()
        for one in swept.runs
    ]
    assert all(items == judged[0] for items in judged)
    held = {name.partition(": ")[2] for name in judged[0] if ": " in name}
    for one in swept.runs:
        trained = pq.read_table(swept.path(one) / "images/train/00000.parquet")["text"].to_pylist()
        assert held
        assert not held & set(trained)


def test_the_results_hold_every_figure_of_every_variant(swept: Swept) -> None:
    found = find(swept)
    write(swept.directory, found)
    rows = pq.read_table(swept.directory.path / "results/results.parquet").to_pylist()
    top1 = {
        row["variant"]: row
        for row in rows
        if (row["dataset"], row["task"], row["metric"]) == ("heldout", "zero_shot", "top1")
    }
    assert list(top1) == ["once", "twice", "untrained"]
    assert top1["once"]["difference"] is None
    assert top1["twice"]["difference"] == pytest.approx(top1["twice"]["value"] - top1["once"]["value"])
    assert {row["dataset"] for row in rows} == {"heldout", "heldout of twice"}
    low, high = top1["twice"]["difference_low"], top1["twice"]["difference_high"]
    assert low <= top1["twice"]["difference"] <= high
    assert [row["seeds"] for row in top1.values()] == [2, 2, 2]
    assert top1["twice"]["device_hours"] > 0
    assert found.spent_hours < sum(row["device_hours"] * 2 for row in top1.values() if row["device_hours"])
    runs = pq.read_table(swept.directory.path / "results/runs.parquet").to_pylist()
    assert {row["run"] for row in runs} == {one.name for one in swept.runs}


def test_the_same_command_makes_nothing_and_a_wider_one_only_what_is_new(asked: Sweep, swept: Swept) -> None:
    models = {one.name: swept.path(one) / "train/model/open_clip_model.safetensors" for one in swept.runs}
    before = {name: path.stat().st_mtime_ns for name, path in models.items()}
    bad = {
        **asked.variants,
        "mute": ("captions.max_refused=0.0", "captions.min_words=30", "captions.max_words=31"),
    }
    again, told = run(asked.model_copy(update={"variants": bad, "seeds": 1}), swept.directory.path)
    assert {name: path.stat().st_mtime_ns for name, path in models.items()} == before
    assert list(again.failed) == ["mute.s0"]
    assert "mute.s0: " in told
    assert {row.variant for row in find(again).findings} == {"once", "twice", "untrained"}


def test_the_command_says_which_run_failed_and_ends_with_2(recipe: str, tmp_path: Path) -> None:
    out, grid = str(tmp_path / "x"), "captions.min_words=3,30"
    command = ["sweep", recipe, grid, "captions.max_words=40", "training.epochs=0.5", "--out", out, "--trust"]
    told = CliRunner().invoke(app, command)
    assert isinstance(told.exception, SynthClipError)
    assert "min_words=30.s0 failed: " in str(told.exception)
    assert "zero_shot/top1" in told.output
    page = (tmp_path / "x" / "sweep.html").read_text()
    assert "Not all runs came to an end" in page
    assert "min_words=30.s0" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "it needs nothing beside it"


def test_what_cannot_work_is_named_before_anything_is_made(recipe: str, tmp_path: Path) -> None:
    bad = Sweep(
        recipe=recipe, variants={"a": (), "b": ("training.batch_size=4096",), "c": ("training.init=/no",)}
    )
    out = tmp_path / "x"
    with pytest.raises(SynthClipError) as error:
        run(bad, out)
    assert "variant 'b': training.batch_size=4096 takes 4096 pairs of the source 'run'" in str(error.value)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(SynthClipError, match="no sweep: choose another --out"):
        run(bad.model_copy(update={"variants": {"a": ()}}), out)


def test_of_equal_cost_each_variant_costs_what_the_base_costs() -> None:
    sweep = Sweep(
        recipe="demo", variants={"a": (), "b": ("images.per_caption=40",), "c": ("captions.per_concept=4",)}
    )
    runs = {one.variant: one for one in runs_of(sweep)}
    devices = parse_devices("1xcpu")
    plans = {name: make_plan(one.recipe, devices) for name, one in runs.items()}
    pairs = pairs_of_equal_cost(plans, plans["a"], runs)
    assert pairs["b"] < pairs["a"] < pairs["c"]
    costs = []
    for name, one in runs.items():
        again = make_plan(with_epochs(one.recipe, pairs[name] / plans[name].pairs), devices)
        costs.append(sum(stage.device_s for stage in again.stages if stage.stage != "eval"))
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-6)
    dear = {
        **runs,
        "d": replace(runs["b"], variant="d", recipe=load_recipe("demo", ["captions.per_concept=99"])),
    }
    plans["d"] = make_plan(dear["d"].recipe, parse_devices("1xcpu"))
    with pytest.raises(SynthClipError, match="variant 'd': what comes before its training alone costs"):
        pairs_of_equal_cost(plans, plans["c"], dear)


def test_pixels_are_the_means_of_blocks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (features,) = pixel_encoder().images([Image.fromarray(pixels)]).features.numpy()
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel() / 255
    assert np.allclose(features, means, atol=1 / 255)
