from pathlib import Path

import numpy as np
import pytest
from heldout_run import write_run
from test_eval_stage import evaluate
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.evaluation.results import RESAMPLES, compare_figures, not_current, paired_bootstrap
from synthclip.recipe import load_recipe
from synthclip.run.store import Outcome, RunDirectory

pytestmark = pytest.mark.slow


def test_the_bootstrap_is_a_resampling_of_pairs() -> None:
    random = np.random.default_rng(0)
    a, b = random.random(200) < 0.5, random.random(200) < 0.6
    interval, _ = paired_bootstrap(a.astype(float), b.astype(float))
    differences = b.astype(float) - a
    means = [random.choice(differences, 200).mean() for _ in range(RESAMPLES // 4)]
    assert interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.012)


def test_p_values_are_small_only_where_there_is_a_difference() -> None:
    random = np.random.default_rng(1)
    false_alarms = 0
    for _ in range(200):
        a, b = (random.random(150) < 0.5 for _ in range(2))
        false_alarms += paired_bootstrap(a.astype(float), b.astype(float))[1] < 0.05
    assert false_alarms <= 20
    _, p_value = paired_bootstrap(np.zeros(50), np.ones(50))
    assert p_value < 0.001
    assert paired_bootstrap(np.ones(50), np.ones(50))[1] == 1.0


def test_items_of_one_group_are_drawn_together() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 4)
    a = np.zeros(240)
    b = np.repeat(random.random(60) < 0.3, 4).astype(float)
    together, _ = paired_bootstrap(a, b, groups)
    alone, _ = paired_bootstrap(a[::4], b[::4])
    assert together == pytest.approx(alone, abs=0.01)
    apart, _ = paired_bootstrap(a, b)
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])


def with_results(run: Path, hits: list[float], items: list[str], dataset: str = "d") -> None:
    row = {
        "dataset": dataset,
        "task": "zero_shot",
        "metric": "top1",
        "value": float(np.mean(hits)),
        "n": len(hits),
    }
    with RunDirectory(run).begin("suites", "s", "x") as writer:
        writer.rows("s/results.parquet", schema.EVAL_RESULT, [row])
        rows = [
            {"dataset": dataset, "task": "zero_shot", "metric": "top1", "item": item, "value": hit}
            for item, hit in zip(items, hits, strict=True)
        ]
        writer.rows("s/items.parquet", schema.EVAL_ITEM, rows)
        writer.commit(Outcome(1))


def test_the_same_items_are_paired_whatever_their_order(tmp_path: Path) -> None:
    names = [f"i{number}" for number in range(40)]
    with_results(tmp_path / "a", [0.0] * 20 + [1.0] * 20, names)
    with_results(tmp_path / "b", [1.0] * 20 + [0.0] * 20, names[::-1])
    (found,) = compare_figures(tmp_path / "a", tmp_path / "b")
    assert found.paired_n == 40
    assert found.interval == (0.0, 0.0)


def test_other_items_are_not_paired(tmp_path: Path) -> None:
    with_results(tmp_path / "a", [0.0, 1.0], ["x", "y"])
    with_results(tmp_path / "b", [1.0, 1.0], ["x", "z"])
    (found,) = compare_figures(tmp_path / "a", tmp_path / "b")
    assert (found.a, found.b, found.p_value) == (0.5, 1.0, None)


def test_the_command(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = write_run(tmp_path / name)
        evaluate(run)
        run.write_json("train/stage.json", {"training": {"lr": name}})
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    assert "training.lr" in result.output
    assert "R@5" in result.output
    with_results(tmp_path / "a", [1.0], ["x"], "[/bold] set")
    with_results(tmp_path / "b", [1.0], ["x"], "[/bold] set")
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "[/bold] set" in result.output, "names are text, no markup"


def test_runs_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="no results of an evaluation"):
        compare_figures(tmp_path, tmp_path)


def test_figures_that_are_not_current_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert not_current(run.path) == []
    evaluate(run)
    with run.begin("suites", "s", "x") as writer:
        rows = [
            {"dataset": "d", "task": "zero_shot", "metric": "top1", "value": 0.5, "checkpoint": "another"}
        ]
        writer.rows("s/results.parquet", schema.EVAL_RESULT, rows)
        writer.commit(Outcome(1))
    (line,) = not_current(run.path)
    assert "the figures in suites/s are of another model" in line
    run.write_text("recipe.yaml", load_recipe("demo").to_yaml())
    first, _ = not_current(run.path)
    assert "the figures on held-out data are not current" in first


def test_more_runs_than_two_are_compared_with_the_first(tmp_path: Path) -> None:
    names = [f"i{number}" for number in range(40)]
    for run, right in (("a", 10), ("b", 20), ("c", 30)):
        with_results(tmp_path / run, [1.0] * right + [0.0] * (40 - right), names)
    runs = [str(tmp_path / run) for run in "abc"]
    result = CliRunner().invoke(app, ["compare", *runs])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith("zero_shot")]
    assert [(row[3], row[6]) for row in rows] == [(runs[1], "+25.0"), (runs[2], "+50.0")]
    assert "p is not corrected for 2 comparisons" in result.output
    alone = CliRunner().invoke(app, ["compare", runs[0]])
    assert isinstance(alone.exception, SynthClipError)
