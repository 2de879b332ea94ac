"""Evaluation while a model is trained: it chooses the weights that are kept, and changes nothing else."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shape_runs import losses, train, twin_runs, weights, with_training, write_heldout

from synthclip.errors import SynthClipError
from synthclip.evaluation import Eval
from synthclip.evaluation.evaluators import EVALUATORS
from synthclip.evaluation.results import figure_name
from synthclip.evaluation.suites import evaluate
from synthclip.recipe import Recipe
from synthclip.recipe.training import EvaluatorName
from synthclip.run.stage import StageLoad
from synthclip.run.store import RunDirectory
from synthclip.training import Train

pytestmark = pytest.mark.slow

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[3] / "shared"))
METRIC = "text_retrieval/R@5"


@pytest.fixture
def judged_run(run: RunDirectory) -> RunDirectory:
    write_heldout(run, 36)
    return run


def evaluated(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The figures of each evaluation in training, by step."""
    return {line["step"]: line for line in run.metrics() if line["event"] == "eval"}


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_evaluation_changes_nothing_but_what_is_kept(
    judged_run: RunDirectory, tiny_recipe: Recipe, ema_decay: float | None
) -> None:
    recipe = with_training(tiny_recipe, ema_decay=ema_decay)
    train(recipe, judged_run)
    before, curve = weights(judged_run), losses(judged_run)
    train(with_training(recipe, eval={"every_epochs": 0.5, "keep": "last"}), judged_run)
    assert list(evaluated(judged_run)) == [0, 3, 6, 9, 12]
    assert weights(judged_run) == before
    assert losses(judged_run) == curve


@pytest.mark.parametrize("ema_decay", [None, 0.7])
def test_the_model_is_the_best_one_and_its_figures_are_those_of_the_eval_stage(
    judged_run: RunDirectory, tiny_recipe: Recipe, ema_decay: float | None
) -> None:
    """The rate grows until it spoils what was learned, so that the last weights are not the best."""
    recipe = with_training(
        tiny_recipe,
        epochs=4,
        lr=0.003,
        lr_end=0.2,
        ema_decay=ema_decay,
        eval={"every_epochs": 0.5, "metric": METRIC},
    )
    outcome = train(recipe, judged_run)
    figures = {step: line[METRIC] for step, line in evaluated(judged_run).items()}
    assert outcome.notes["best_step"] == max(figures, key=lambda step: figures[step])
    assert figures[24] < max(figures.values())
    [shard] = Eval(recipe, judged_run).shards()
    StageLoad(Eval, recipe, judged_run.path)()(shard, lambda rows, **figures: None)
    rows = pq.read_table(judged_run.file("eval", "results.parquet")).to_pylist()
    seen = {f"{row['task']}/{row['metric']}": row["value"] for row in rows}
    best = evaluated(judged_run)[int(str(outcome.notes["best_step"]))]
    assert seen == pytest.approx({name: best[name] for name in seen})


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    """The figures taken in training, as the stage keeps them."""
    return list(pq.read_table(run.file("train", "figures.parquet")).to_pylist())


def test_a_killed_training_has_the_same_figures_and_chooses_the_same_weights(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    torch.set_num_threads(1)
    recipe = with_training(
        tiny_recipe,
        epochs=6,
        lr=0.005,
        ema_decay=0.7,
        checkpoint_steps=4,
        eval={"every_epochs": 0.5, "metric": METRIC},
    )
    undisturbed, killed = twin_runs(tmp_path)
    for run in (undisturbed, killed):
        write_heldout(run, 36)
    train(recipe, undisturbed)
    folder = Train(recipe, killed).partial(Train(recipe, killed).shards()[0])
    for wait in (0.0, 0.1, 0.2):
        process = multiprocessing.get_context("fork").Process(target=train, args=(recipe, killed))
        process.start()
        before = set(folder.glob("step-*.pt"))
        while process.is_alive() and set(folder.glob("step-*.pt")) <= before:
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.join()
    assert killed.manifest("train", "all") is None
    train(recipe, killed)
    assert weights(killed) == weights(undisturbed)
    assert figures(killed) == figures(undisturbed)
    assert [row["step"] for row in figures(killed) if figure_name(row) == METRIC] == list(range(0, 37, 3))


def test_two_processes_evaluate_together_and_say_it_once(
    judged_run: RunDirectory, tiny_recipe: Recipe
) -> None:
    alone = with_training(tiny_recipe, eval={"every_epochs": 1})
    train(alone, judged_run)
    before = figures(judged_run)
    recipe = with_training(alone, processes=2)
    judged_run.write_text("recipe.yaml", recipe.to_yaml())
    train(recipe, judged_run)
    both = [line["step"] for line in judged_run.metrics() if line["event"] == "eval"]
    assert both == [0, 6, 12] * 2
    untrained = [[row for row in rows if row["step"] == 0] for rows in (before, figures(judged_run))]
    assert untrained[0] == untrained[1]


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """A folder of data sets: sixty pictures of CIFAR-10's test split, as `cifar10`."""
    root = tmp_path / "data"
    (root / "cifar10").mkdir(parents=True)
    first = next(pq.ParquetFile(SHARED / "data/cifar10/test.parquet").iter_batches(60))
    pq.write_table(pa.Table.from_batches([first]), root / "cifar10" / "test.parquet")
    return root


@pytest.mark.skipif(not (SHARED / "data/cifar10").is_dir(), reason=f"no CIFAR-10 in {SHARED}")
def test_figures_on_a_data_set_of_the_suite_choose_the_weights_and_are_those_of_the_eval_command(
    judged_run: RunDirectory, tiny_recipe: Recipe, cifar10: Path
) -> None:
    metric = "cifar10/zero_shot/top5"
    chosen = {"every_epochs": 1, "suite": "heldout, cifar10", "data": str(cifar10), "metric": metric}
    recipe = with_training(tiny_recipe, epochs=3, lr=0.005, ema_decay=0.7, eval=chosen)
    outcome = train(recipe, judged_run)
    by_step = {row["step"]: row["value"] for row in figures(judged_run) if figure_name(row) == metric}
    assert list(by_step) == [0, 6, 12, 18]
    assert METRIC in {figure_name(row) for row in figures(judged_run)}
    assert outcome.notes[metric] == pytest.approx(max(by_step.values()), abs=1e-6)
    rows = evaluate(
        judged_run.path, "cifar10", data=cifar10, cache=cifar10.parent / "cache", out=cifar10.parent / "out"
    ).results
    best = {
        figure_name(row): row["value"]
        for row in figures(judged_run)
        if row["step"] == outcome.notes["best_step"]
    }
    judged = {f"cifar10/{row['task']}/{row['metric']}": row["value"] for row in rows}
    assert judged["cifar10/zero_shot/top1"] == pytest.approx(best["cifar10/zero_shot/top1"])
    assert judged[metric] == pytest.approx(best[metric])


@pytest.mark.skipif(not (SHARED / "data/cifar10").is_dir(), reason=f"no CIFAR-10 in {SHARED}")
def test_another_data_set_makes_a_training_stale_and_no_heldout_data_is_asked_for(
    run: RunDirectory, tiny_recipe: Recipe, cifar10: Path
) -> None:
    chosen = {
        "every_epochs": 2,
        "suite": ["cifar10"],
        "data": str(cifar10),
        "metric": "cifar10/zero_shot/top1",
    }
    recipe = with_training(tiny_recipe, epochs=1, eval=chosen)

    def fingerprint() -> str:
        return Train(recipe, run).fingerprint(Train(recipe, run).shards()[0])

    first = fingerprint()
    train(recipe, run)
    assert fingerprint() == first
    os.utime(cifar10 / "cifar10" / "test.parquet", (1, 1))
    assert fingerprint() != first


@pytest.mark.skipif(not (SHARED / "data/cifar10").is_dir(), reason=f"no CIFAR-10 in {SHARED}")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"suite": "cifar1O"}, "no data set 'cifar1O' there; did you mean 'cifar10'"),
        ({"data": None}, "suite names 'cifar10': data=ROOT must say where"),
        ({"metric": "cifar10/zero_shot/top_1"}, "did you mean 'zero_shot/top1'"),
        (
            {"metric": "zero_shot/top1"},
            "not produced by training.eval.suite; did you mean 'cifar10/zero_shot/top1'",
        ),
        (
            {"metric": "cifar10/few_shot/top1"},
            "not produced by training.eval.suite; did you mean 'cifar10/zero_shot/top1'",
        ),
        (
            {"suite": "blank", "metric": "blank/zero_shot/top1"},
            "training.eval, blank, zero_shot: none of 2 images can be read \\(cat/0.jpg",
        ),
        ({"evaluators": ["zeroshot"]}, "zero_shot"),
        ({"evaluators": ["linear_probe"]}, "cifar10 takes none of them, but zero_shot"),
    ],
)
def test_names_that_are_not_known_are_refused_before_the_first_step(
    run: RunDirectory, tiny_recipe: Recipe, cifar10: Path, wrong: dict[str, object], message: str
) -> None:
    for name in ("cat", "dog"):
        (cifar10 / "blank" / name).mkdir(parents=True)
        (cifar10 / "blank" / name / "0.jpg").write_bytes(b"")
    chosen = {"every_epochs": 1, "suite": "cifar10", "data": str(cifar10), "metric": "cifar10/zero_shot/top1"}
    with pytest.raises((SynthClipError, ValueError), match=message):
        train(with_training(tiny_recipe, eval=chosen | wrong), run)
    assert not [line for line in run.metrics() if line["event"] == "train"]


def test_the_evaluators_of_a_recipe_are_those_of_the_suites() -> None:
    assert set(get_args(EvaluatorName)) == EVALUATORS.keys()


def test_other_prompts_make_a_training_stale_only_where_it_evaluates(
    judged_run: RunDirectory, tiny_recipe: Recipe
) -> None:
    prompts = tiny_recipe.evaluation.model_copy(update={"templates": ("a {}",)})

    def fingerprints(recipe: Recipe) -> list[str]:
        recipes = (recipe, recipe.model_copy(update={"evaluation": prompts}))
        return [Train(one, judged_run).fingerprint(Train(one, judged_run).shards()[0]) for one in recipes]

    assert len(set(fingerprints(tiny_recipe))) == 1
    assert len(set(fingerprints(with_training(tiny_recipe, eval={"every_epochs": 1})))) == 2


def test_what_cannot_be_evaluated_is_refused_before_the_first_step(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    recipe = with_training(tiny_recipe, eval={"every_epochs": 1})
    with pytest.raises(SynthClipError, match="needs 'concepts', which is not there"):
        train(recipe, run)
    write_heldout(run, 0)
    with pytest.raises(SynthClipError, match=r"no held-out images: set balance\.heldout"):
        train(recipe, run)
