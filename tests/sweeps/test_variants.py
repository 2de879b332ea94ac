"""What a sweep asks is read as it was meant, or refused with its name before anything is spent."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from synthclip.errors import SynthClipError
from synthclip.sweeps.variants import (
    Sweep,
    bundled_sweeps,
    grid,
    make_sweep,
    read_sweep,
    runs_of,
    split_values,
)

PLAIN = st.one_of(
    st.integers(-1000, 1000),
    st.booleans(),
    st.none(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
)


@given(st.lists(VALUES, min_size=1, max_size=5))
@example(['":', 0])
@example(["\\", 0])
def test_values_between_commas_come_back(values: list[Any]) -> None:
    """Whatever can stand in a recipe, written as JSON, which is YAML: commas inside it part nothing."""
    text = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert [yaml.safe_load(one) for one in split_values(text)] == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8,32", ["8", "32"]),
        ("[0.4, 1.0],[0.7,1.0]", ["[0.4, 1.0]", "[0.7,1.0]"]),
        ("it's a {}, that's a {}", ["it's a {}", "that's a {}"]),
        ("{backend: a, b: [1, 2]},{backend: c}", ["{backend: a, b: [1, 2]}", "{backend: c}"]),
        ("'a, b'", ["'a, b'"]),
    ],
)
def test_commas_part_values_only_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_grid_is_every_combination_the_first_values_first() -> None:
    shared, variants = grid(["balance.t=8,32", "seed=3", "images.per_caption=1,4"])
    assert shared == ["seed=3"]
    assert list(variants) == [
        "t=8,per_caption=1",
        "t=8,per_caption=4",
        "t=32,per_caption=1",
        "t=32,per_caption=4",
    ]
    assert variants["t=32,per_caption=1"] == ("balance.t=32", "images.per_caption=1")


def test_axes_of_one_last_key_are_named_in_full() -> None:
    _, variants = grid(["images.size_px=64,96", "text_to_image.size_px=64,96"])
    assert next(iter(variants)) == "images.size_px=64,text_to_image.size_px=64"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["balance.t=8,,32"], "an empty value"),
        (["balance.t=8,32", "balance.t=4,5"], "balance.t is an axis already"),
        (["training.init=a/b,a:b"], "two variants would be named 'init=a-b'"),
        ([], "nothing to compare"),
        (["balance.t=8"], "nothing to compare"),
    ],
)
def test_a_grid_that_says_nothing_is_refused(arguments: list[str], problem: str) -> None:
    with pytest.raises(SynthClipError, match=problem):
        read_sweep("demo", arguments)


def test_every_bad_variant_is_named_at_once() -> None:
    variants = {"a": {"balance.tt": 3}, "b": {"training.lr": "fast"}, "c": {}, "d": {"engine.workers": 2}}
    sweep = make_sweep("x", {"recipe": "demo", "variants": variants})
    with pytest.raises(SynthClipError) as error:
        runs_of(sweep)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("variant 'a': recipe demo: balance: unknown key 'tt'")
    assert lines[1].startswith("variant 'b': recipe demo: training.lr")
    assert lines[2] == "variants 'c' and 'd' are equal: leave one out"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"bse": "a"}, "unknown key; did you mean 'base'"),
        ({"base": "c"}, "no variant 'c'"),
        ({"variants": {"../a": {}}}, "variant '../a': a name has"),
        ({"seeds": 0}, "seeds"),
        ({"baselines": ["pixels"]}, "the baseline pixels needs suite and data"),
        ({"suite": "cifar10"}, "suite and data go together"),
    ],
)
def test_a_file_of_wrong_keys_is_refused_in_a_line(
    keys: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    values = {"recipe": "demo", "variants": {"a": {}, "b": {"balance.t": 3}}, **keys}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(SynthClipError, match=problem) as error:
        read_sweep(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_no_variant_trains_on_what_judges_all() -> None:
    sweep = Sweep(recipe="demo", variants={"a": {}, "b": {"balance.heldout": 0.01}})
    with pytest.raises(SynthClipError, match=r"balance\.heldout=0\.01 keeps less"):
        runs_of(sweep)
    with pytest.raises(SynthClipError, match=r"training\.seed is set by seeds"):
        runs_of(sweep.model_copy(update={"variants": {"a": (), "b": ("training.seed=3",)}}))


def test_seeds_of_data_and_of_training_are_apart() -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)}, seeds=2, data_seeds=2, base="b")
    runs = runs_of(sweep)
    assert [run.name for run in runs] == [
        "b.s0",
        "a.s0",
        "b.s1",
        "a.s1",
        "b.d1.s0",
        "a.d1.s0",
        "b.d1.s1",
        "a.d1.s1",
    ]
    seeds = [(run.recipe.seed, run.recipe.training_seed, run.recipe.heldout_seed) for run in runs[::2]]
    assert seeds == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    first = runs[0].recipe
    assert first.training.seed is None, "the first run is the recipe's own"
    assert first.balance.heldout_seed is None


def test_the_bundled_sweeps_can_run_as_they_are() -> None:
    assert bundled_sweeps() == [
        "artists",
        "balanced",
        "captioners",
        "concept-bank",
        "data-size",
        "guidance",
        "levers",
    ]
    for name in bundled_sweeps():
        sweep = read_sweep(name, ["engine.workers=0"])
        assert len(runs_of(sweep)) >= 6
        assert sweep.about
