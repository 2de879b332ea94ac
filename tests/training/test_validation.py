"""Evaluation while a model is trained: it chooses the weights that are kept, and changes nothing else."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from shape_runs import losses, train, weights, with_training, write_heldout, write_images

from synthclip.errors import SynthClipError
from synthclip.evaluation.stage import Eval
from synthclip.recipe import Recipe
from synthclip.stage import StageLoad
from synthclip.store import RunDirectory
from synthclip.training.job import build_trainer
from synthclip.training.stage import Train

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
    """The rate is far too high, so that the last weights are not the best."""
    recipe = with_training(
        tiny_recipe, epochs=4, lr=0.005, ema_decay=ema_decay, eval={"every_epochs": 0.5, "metric": METRIC}
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


def test_a_training_that_was_stopped_chooses_the_same_weights(tmp_path: Path, tiny_recipe: Recipe) -> None:
    recipe = with_training(tiny_recipe, epochs=4, lr=0.005, eval={"every_epochs": 0.5, "metric": METRIC})
    undisturbed, stopped = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b")
    for run in (undisturbed, stopped):
        write_images(run, 96)
        write_heldout(run, 36)
    train(recipe, undisturbed)
    stage = Train(recipe, stopped)
    for _ in range(3):
        assert not build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: True).fit()
    train(recipe, stopped)
    assert weights(stopped) == weights(undisturbed)
    assert losses(stopped) == losses(undisturbed)


def test_two_processes_evaluate_once(judged_run: RunDirectory, tiny_recipe: Recipe) -> None:
    recipe = with_training(tiny_recipe, processes=2, eval={"every_epochs": 1})
    judged_run.write_text("recipe.yaml", recipe.to_yaml())
    train(recipe, judged_run)
    assert [line["step"] for line in judged_run.metrics() if line["event"] == "eval"] == [0, 6, 12]


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
