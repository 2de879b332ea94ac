"""Laws of data: found where there is one, refused in words where there is none, and what a target takes."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.store import Manifest, Outcome, RunDirectory
from synthclip.sweeps.law import Points, fit, fit_all, points_of
from synthclip.sweeps.results import RUN, own_pairs
from synthclip.sweeps.target import needed, read_points, scaling_sweep

MILLIONS = np.array([3, 8.8, 10, 20, 30])
ZERO_SHOT = np.array([9.5, 18.5, 20.9, 28.0, 30.5])
"""The paper's rows (arXiv 2402.01832, table 1): ImageNet zero-shot, percent."""


def test_the_papers_first_four_rows_foretell_the_fifth() -> None:
    law = fit(Points(MILLIONS, 1 - ZERO_SHOT / 100).up_to(30))
    assert law.a == 0, "four points carry no floor"
    assert 100 * law.b * 20**law.c == pytest.approx(103.5, abs=0.1)
    assert law.c == pytest.approx(0.117, abs=0.0005)
    assert 100 * (1 - law.error(30.0)) == pytest.approx(30.5, abs=0.05)
    low, high = law.interval(30.0, of_one_run=True)
    assert low < 1 - 0.305 < high


def test_the_fit_is_scipys() -> None:
    random = np.random.default_rng(0)
    sizes = np.repeat(np.array([1.0, 2, 4, 8, 16]) * 1000, 3)
    errors = 0.2 + 0.5 * (sizes / 1000) ** -0.6 + random.normal(0, 0.004, len(sizes))

    def curve(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a + b * (x / 16_000) ** -c

    theirs, _ = curve_fit(curve, sizes, errors, p0=(0.1, 0.5, 0.5))
    law = fit(Points(sizes, errors))
    assert (law.a, law.b, law.c) == pytest.approx(tuple(theirs), rel=0.01)
    assert "with a floor" in str(law)
    plain, _ = curve_fit(lambda x, b, c: curve(x, 0, b, c), sizes[::3], errors[::3], p0=(0.5, 0.5))
    few = fit(Points(sizes[::3], errors[::3]))
    assert (few.b, few.c) == pytest.approx(tuple(plain), rel=0.01)


def test_the_interval_of_a_further_run_holds_it() -> None:
    random = np.random.default_rng(1)
    sizes, inside = np.array([1.0, 2, 4, 8, 8, 4, 2]), 0
    for _ in range(25):
        truth = 0.8 * np.append(sizes, 16) ** -0.15 + random.normal(0, 0.01, 8)
        low, high = fit(Points(sizes, truth[:7])).interval(16.0, of_one_run=True)
        inside += low <= truth[7] <= high
    assert inside >= 20


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([0.9, 0.8], "2 sizes of data, at least 3"),
        ([0.9, 0.8, 0.85, 0.7], "the error rises from 80.0% at 2,000 pairs to 85.0% at 4,000"),
        ([0.5, 0.5, 0.5, 0.5], "does not surely fall"),
        ([0.5, 0.2, 0.0], "the error is 0"),
    ],
)
def test_points_without_a_law_get_a_reason_and_no_number(errors: list[float], reason: str) -> None:
    points = Points(np.array([1000.0, 2000, 4000, 8000][: len(errors)]), np.array(errors))
    with pytest.raises(SynthClipError, match="no law: ") as error:
        fit(points)
    assert reason in str(error.value)
    (line,) = fit_all({"f": points})["f"].lines()
    assert reason in line


def test_a_rise_within_what_seeds_differ_is_no_reason() -> None:
    sizes = np.repeat([1000.0, 2000, 4000, 8000], 2)
    errors = np.array([0.90, 0.86, 0.83, 0.79, 0.84, 0.79, 0.72, 0.70])
    assert fit(Points(sizes, errors)).c > 0


@pytest.mark.parametrize(
    ("sources", "sizes", "pairs"),
    [
        ("[{kind: run, weight: 3}, {kind: exchanged, weight: 1}]", [80, 20], 80),
        ("[{kind: webdataset, path: a.tar}, {kind: webdataset, path: b.tar}]", [70, 10], 80),
    ],
)
def test_a_law_counts_what_a_share_of_the_data_has_fewer_of(
    sources: str, sizes: list[int], pairs: int
) -> None:
    recipe = load_recipe("demo", [f"training.sources={sources}"])
    assert own_pairs(recipe, Manifest("all", "", (), 0, {}, {"pairs": sizes})) == pairs


def scaling(folder: Path, extra: str = "", last: float = 0.0) -> Path:
    """The folder of a finished sweep over shares of the demo, with errors 0.9 (N / 1,000)^-0.3, that of the
    largest lower by `last`."""
    shares = {"share=1": 16_000, "share=0.5": 8_000, "share=0.25": 4_000, "share=0.125": 2_000}
    wiggle = {2_000: 0.001, 4_000: -0.001, 8_000: 0.001, 16_000: -0.0005 - last}
    rows = [
        {"run": f"{name}.s0", "variant": name, "dataset": "heldout", "task": "zero_shot", "metric": "top1"}
        | {"value": 1 - 0.9 * (pairs / 1000) ** -0.3 - wiggle[pairs], "pairs": pairs}
        for name, pairs in shares.items()
    ]
    asked = scaling_sweep("demo", [extra] if extra else [], "1/8,1/4,1/2,1")
    folder.mkdir()
    (folder / "sweep.yaml").write_text(asked.to_yaml())
    with RunDirectory(folder).begin("results", "all", "") as writer:
        writer.rows("runs.parquet", RUN, rows)
        writer.commit(Outcome(len(rows)))
    overrides = [extra] if extra else []
    (folder / "runs/share=1.s0").mkdir(parents=True)
    (folder / "runs/share=1.s0/recipe.yaml").write_text(load_recipe("demo", overrides).to_yaml())
    return folder


def test_a_target_becomes_pairs_with_their_interval(tmp_path: Path) -> None:
    found = needed(scaling(tmp_path / "x"), "zero_shot/top1=0.7")
    assert found.pairs == pytest.approx(1000 * 3 ** (1 / 0.3), rel=0.05)
    assert found.low < found.pairs < found.high
    assert list(found.warnings(load_recipe("demo"))) == []
    far = needed(tmp_path / "x", "zero_shot/top1=0.9")
    line, other = far.warnings(load_recipe("demo", ["training.lr=0.1"]))
    assert "far extrapolation" in line
    assert other.endswith("another training.lr")


def test_a_law_that_misses_its_own_last_point_says_so(tmp_path: Path) -> None:
    folder = scaling(tmp_path / "x", last=0.06)
    line, *_ = needed(folder, "zero_shot/top1=0.7").warnings(load_recipe("demo"))
    assert line.startswith("the law misses its own last point: fitted up to 8,000 pairs it foretells ")
    [*_, check] = fit_all(read_points(folder))["zero_shot/top1"].lines()
    assert check.endswith(", outside it: do not extrapolate")
    [*_, check] = fit_all(read_points(scaling(tmp_path / "y")))["zero_shot/top1"].lines()
    assert "measured 39." in check
    assert "extrapolate" not in check


def test_plan_answers_in_captions_images_hours_and_money(tmp_path: Path) -> None:
    sweep = str(scaling(tmp_path / "x"))
    command = [
        "plan",
        "demo",
        "--devices",
        "1xcpu",
        "--price",
        "2",
        "--target",
        "zero_shot/top1=0.9",
        "--from",
        sweep,
    ]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    table = told.output.partition("zero_shot/top1=0.9")[2]
    for row in ("captions asked for", "pairs to train on", "device-hours", "cost", "far extrapolation"):
        assert row in table
    hours = next(line.split()[-4:] for line in table.splitlines() if line.startswith("device-hours"))
    cost = next(line.split()[-4:] for line in table.splitlines() if line.startswith("cost"))
    assert float(cost[1].replace(",", "")) == pytest.approx(2 * float(hours[1].replace(",", "")), rel=0.02)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("zero_shot/top1=35", "expected a figure and a share"),
        ("zero_shot/top1", "expected a figure and a share"),
        ("zeroshot/top1=0.5", "no such figure in .*did you mean 'zero_shot/top1'"),
    ],
)
def test_a_wrong_target_is_refused(target: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match=problem):
        needed(scaling(tmp_path / "x"), target)


def test_only_a_sweep_over_shares_carries_a_law(tmp_path: Path) -> None:
    folder = scaling(tmp_path / "x")
    text = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(text.replace("training.share=0.5", "balance.t=3"))
    with pytest.raises(SynthClipError, match="differ in more than the share of data"):
        read_points(folder)
    with pytest.raises(SynthClipError, match="no results of a sweep"):
        read_points(tmp_path)
    with pytest.raises(SynthClipError, match="--shares 1,2"):
        scaling_sweep("demo", [], "1,2")


def test_failed_runs_are_no_points() -> None:
    row = {"dataset": "heldout", "task": "zero_shot", "metric": "top1", "value": 0.25, "pairs": 10}
    failed = {**dict.fromkeys(row), "pairs": None}
    assert points_of([row, failed])["zero_shot/top1"].errors.tolist() == [0.75]
