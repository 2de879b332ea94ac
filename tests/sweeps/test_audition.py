"""Painters are ranked by what they teach about pictures that are not theirs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.keys import image_key
from synthclip.recipe import load_recipe
from synthclip.sweeps.audition import TOGETHER, audition_sweep, variety
from synthclip.sweeps.painters import OTHERS, by_others, trained_on
from synthclip.sweeps.variants import runs_of

COLOUR, LINES = "colour={artist: openmoji-color}", "lines={artist: openmoji-black}"


def items(values: dict[tuple[int, int], float]) -> dict[str, tuple[float, int | None]]:
    """By caption and variant whether a picture was known."""
    return {image_key(*picture): (value, 0) for picture, value in values.items()}


def test_what_a_model_knows_of_other_painters_is_a_mean_over_the_captions_that_all_painted() -> None:
    key = "zero_shot", "top1"
    judged = {
        ("heldout", *key): items({(1, 0): 1, (2, 0): 1, (3, 0): 1}),
        ("heldout of b", *key): items({(1, 0): 1, (1, 1): 0, (2, 0): 0}),
        ("heldout of c", *key): items({(1, 0): 1, (2, 0): 1, (4, 0): 1}),
    }
    sets = {"heldout": frozenset("a"), "heldout of b": frozenset("b"), "heldout of c": frozenset("c")}
    found = by_others(judged, sets, frozenset("a"))
    assert [value for value, _ in found[OTHERS, *key].values()] == [0.75, 0.5], "captions 1 and 2"
    (mine,) = by_others(judged, sets, frozenset("bc")).values()
    assert [value for value, _ in mine.values()] == [1, 1]
    assert by_others(judged, sets, frozenset("abc")) == {}, "no painter is another"


def test_a_painter_with_another_guidance_is_the_same_painter() -> None:
    def painters(*values: str) -> frozenset[str]:
        return trained_on(load_recipe("one-gpu", [f"text_to_image.{value}" for value in values]))

    assert painters("guidance=3") == painters("guidance=7.5", "steps=9")
    assert painters("model=other/model") != painters("guidance=3")


def test_variants_judges_and_the_unseen_painter() -> None:
    sweep = audition_sweep("demo", [COLOUR, LINES, "images.composition=0"], unseen="{artist: material}")
    assert list(sweep.variants) == ["colour", "lines", TOGETHER]
    assert sweep.judges == ("colour", "lines")
    recipes = {run.variant: run.recipe for run in runs_of(sweep)}
    assert len(recipes) * sweep.seeds == 9
    assert recipes["lines"].text_to_image.model_dump()["size_px"] == 96, (
        "keys that are not named are the recipe's"
    )
    assert len(recipes[TOGETHER].text_to_image.members) == 2
    unseen = [recipe.images.heldout_painter for recipe in recipes.values()]
    assert [one.model_dump()["artist"] for one in unseen if one] == ["material"] * 3
    assert {recipe.images.composition for recipe in recipes.values()} == {0}


def test_presets_with_several_guidances() -> None:
    sweep = audition_sweep("one-gpu", ["sdxl-turbo", "old=sd15-paper"], guidance="2,7.5", seeds=1)
    assert list(sweep.variants) == [
        "sdxl-turbo guidance=2",
        "sdxl-turbo guidance=7.5",
        "old guidance=2",
        "old guidance=7.5",
    ]
    assert sweep.judges == ("sdxl-turbo guidance=2", "old guidance=2"), "each painter judges once"
    models = [run.recipe.text_to_image.model_dump()["model"] for run in runs_of(sweep)]
    assert models[0] == models[1] == "stabilityai/sdxl-turbo"


@pytest.mark.parametrize(
    ("painters", "says"),
    [
        (["sdxl-turbo"], "two painters or more"),
        ([COLOUR, "colour=sdxl"], "another painter has the name 'colour'"),
        ([COLOUR, "lines="], "lines=: a painter is a preset"),
        ([COLOUR, "lines={artist"], "not YAML"),
        ([COLOUR, "lines={artist: picasso}"], "lines: .*artist"),
        ([COLOUR, "lines={backend: nobody}"], "unknown backend 'nobody'"),
    ],
)
def test_what_is_no_painter_is_named(painters: list[str], says: str) -> None:
    with pytest.raises(SynthClipError, match=says):
        runs_of(audition_sweep("demo", painters))


def test_an_audition_ranks_painters(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "x"
    asked = ["audition", recipe, COLOUR, LINES, "--unseen", "{artist: noto}", "--seeds", "1", "--trust"]
    shown = CliRunner().invoke(app, [*asked, "images.per_caption=2", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    rows = pq.read_table(out / "results/results.parquet").to_pylist()
    of = {(row["variant"], row["dataset"]): row for row in rows if row["metric"] == "top1"}
    assert {name for name, dataset in of if dataset == OTHERS} == {"colour", "lines", "untrained"}
    assert {name for name, dataset in of if dataset == "heldout_painter"} == {
        "colour",
        "lines",
        TOGETHER,
        "untrained",
    }
    lines = [line for line in shown.output.splitlines() if line.startswith(("colour", "lines", TOGETHER))]
    values = [of[line[: line.index("  ")].strip(), "heldout_painter"]["value"] for line in lines[-3:]]
    assert values == sorted(values, reverse=True), "the best first"
    assert "Painters" in (out / "sweep.html").read_text()
    drawn = variety(out / "runs/lines.s0")
    assert drawn is not None
    assert 0 < drawn < 1
