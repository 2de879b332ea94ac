"""What is made of the figures of many runs, against arithmetic by hand."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from synthclip import schema
from synthclip.evaluation.results import RESAMPLES
from synthclip.run.store import Outcome, RunDirectory
from synthclip.sweeps.page import render
from synthclip.sweeps.results import Finding, find, write
from synthclip.sweeps.runs import Swept
from synthclip.sweeps.variants import Sweep, runs_of

ITEMS = 30


def judged(folder: Path, hits: dict[str, np.ndarray], sweep: Sweep, baselines: dict[str, list[str]]) -> Swept:
    """A sweep whose models were judged with these hits, float64 [ITEMS], by the names of the runs."""
    directory = RunDirectory(folder)
    for name, values in hits.items():
        of = {"dataset": "heldout", "task": "zero_shot", "metric": "top1"}
        ends = {"ci95_low": 0.25, "ci95_high": 0.75, "chance": 0.1, "n": ITEMS}
        items = [{**of, "item": f"i{at}", "value": value} for at, value in enumerate(values.tolist())]
        with directory.begin("judged", name, "x") as writer:
            writer.rows(
                f"{name}/results.parquet", schema.EVAL_RESULT, [{**of, **ends, "value": values.mean()}]
            )
            writer.rows(f"{name}/items.parquet", schema.EVAL_ITEM, items[:: -1 if ".s1" in name else 1])
            writer.commit(Outcome(1))
    runs = tuple(runs_of(sweep))
    return Swept(sweep, directory, runs, {}, tuple(directory.manifests("judged")), baselines)


def hits(names: list[str], share: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(names))
    return {name: (random.random(ITEMS) < share).astype(float) for name in names}


def found(swept: Swept) -> dict[str, Finding]:
    return {one.variant: one for one in find(swept).findings}


def clark(values: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p) of the mean of values [replicates, items], from the two tests that min F' is made of."""
    f1, f2 = (stats.ttest_1samp(values.mean(axis=axis), 0).statistic ** 2 for axis in (1, 0))
    least, runs, items = f1 * f2 / (f1 + f2), *values.shape
    degrees = (f1 + f2) ** 2 / (f1**2 / (items - 1) + f2**2 / (runs - 1))
    half = abs(values.mean()) / np.sqrt(least) * stats.t.ppf(0.975, degrees)
    return values.mean() - half, values.mean() + half, float(stats.f.sf(least, 1, degrees))


def test_differences_are_paired_by_seed_and_item(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)}, seeds=3, baselines=("untrained",))
    a, b = (hits([f"{name}.s{seed}" for seed in range(3)], share) for name, share in (("a", 0.4), ("b", 0.7)))
    one = found(judged(tmp_path, {**a, **b}, sweep, {}))["b"]
    # Rows of s1 are stored in the opposite order: items are found by their names.
    differences = np.stack([b[f"b.s{seed}"] - a[f"a.s{seed}"] for seed in range(3)])
    low, high, p = clark(differences)
    assert one.value == pytest.approx(np.mean(list(b.values())))
    assert one.seeds == 3
    assert one.difference == pytest.approx(differences.mean())
    assert (one.difference_low, one.difference_high) == pytest.approx((low, high), rel=1e-5)
    assert one.p_value == pytest.approx(p, rel=1e-4)


def test_data_seeds_are_the_replicates_each_the_mean_of_its_trainings(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)}, seeds=2, data_seeds=2)
    a, b = (
        hits([f"{name}{data}.s{seed}" for data in ("", ".d1") for seed in range(2)], share)
        for name, share in (("a", 0.2), ("b", 0.6))
    )
    one = found(judged(tmp_path, {**a, **b}, sweep, {}))["b"]
    means = np.stack(
        [np.mean([b[f"b{d}.s{s}"] - a[f"a{d}.s{s}"] for s in range(2)], axis=0) for d in ("", ".d1")]
    )
    assert one.seeds == 2
    assert (one.difference_low, one.difference_high) == pytest.approx(clark(means)[:2], rel=1e-5)


def test_one_seed_has_the_interval_of_its_items(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)})
    rows = {**hits(["a.s0"], 0.2), **hits(["b.s0", "x"], 0.9)}
    one = found(judged(tmp_path, rows, sweep, {}))["b"]
    assert (one.ci95_low, one.ci95_high) == (0.25, 0.75)
    difference = rows["b.s0"] - rows["a.s0"]
    random = np.random.default_rng(1)
    means = random.choice(difference, (RESAMPLES // 4, ITEMS)).mean(axis=1)
    assert (one.difference_low, one.difference_high) == pytest.approx(
        np.percentile(means, [2.5, 97.5]), abs=0.04
    )


def test_what_has_no_seeds_is_compared_with_each_training_of_the_base(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": ()}, seeds=3)
    rows = {**hits(["a.s0", "a.s1", "a.s2"], 0.7), **hits(["pixels"], 0.3)}
    one = found(judged(tmp_path, rows, sweep, {"pixels": ["pixels"]}))["pixels"]
    differences = np.stack([rows["pixels"] - rows[f"a.s{seed}"] for seed in range(3)])
    assert one.difference == pytest.approx(differences.mean())
    assert (one.difference_low, one.difference_high) == pytest.approx(clark(differences)[:2], rel=1e-5)


def test_a_missing_run_takes_its_pair_out(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)}, seeds=3)
    rows = {**hits(["a.s0", "a.s1", "a.s2"], 0.4), **hits(["b.s0", "b.s2"], 0.7)}
    one = found(judged(tmp_path, rows, sweep, {}))["b"]
    pairs = [rows[f"b.s{seed}"] - rows[f"a.s{seed}"] for seed in (0, 2)]
    assert one.difference == pytest.approx(np.mean(pairs))
    assert one.value == pytest.approx(np.mean([rows["b.s0"], rows["b.s2"]]))


def test_a_sweep_whose_base_failed_has_a_page_that_says_so(tmp_path: Path) -> None:
    sweep = Sweep(recipe="demo", variants={"a": (), "b": ("balance.t=3",)})
    failed = {"a.s0": "no space left on <the> disk", "b.s0": "not judged"}
    swept = Swept(sweep, RunDirectory(tmp_path), tuple(runs_of(sweep)), failed, ())
    results = find(swept)
    write(swept.directory, results)
    rows = pq.read_table(tmp_path / "results/runs.parquet").to_pylist()
    assert [(row["run"], row["error"], row["value"]) for row in rows] == [
        ("a.s0", failed["a.s0"], None),
        ("b.s0", "not judged", None),
    ]
    assert "no space left on &lt;the&gt; disk" in render(swept, results)
