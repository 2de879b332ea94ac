"""A model's figures while it is trained: on the run's held-out set, and on data sets of the suites."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from synthclip.errors import SynthClipError
from synthclip.evaluation import open_heldout
from synthclip.evaluation.data import DataSet, open_dataset
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import Features
from synthclip.evaluation.results import Tables, figure_name
from synthclip.evaluation.suites import plan_of_names
from synthclip.models.build import LeanCLIP
from synthclip.models.load import as_loaded
from synthclip.recipe import Recipe
from synthclip.recipe.section import nearest
from synthclip.recipe.training import HELDOUT, METRICS
from synthclip.run.store import RunDirectory
from synthclip.training.parallel import Group
from synthclip.training.shared import SharedEncoder


class Validation:
    """Evaluates as `synthclip eval` does, on a model of its own, in all processes of the group together.

    All that the recipe names has to be there: SynthClipError says what is not, before the first step.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory, architecture: dict[str, Any], group: Group) -> None:
        self._recipe, self._config, self._group = recipe, recipe.training.eval, group
        self._sets: list[tuple[DataSet, tuple[str, ...]]] = []
        if HELDOUT in self._config.suite:
            self._sets += [(dataset, self._evaluators(dataset)) for dataset in _heldout(recipe, run)]
        for name, planned in plan_of_names(self._config.data_sets, self._config.evaluators).items():
            dataset = open_dataset(name, Path(self._config.data or "").expanduser())
            evaluators = self._evaluators(dataset, planned)
            if not evaluators:
                raise SynthClipError(
                    f"training.eval.evaluators={list(self._config.evaluators)}: {name} takes none of them, "
                    f"but {', '.join(planned or able_evaluators(dataset))}"
                )
            self._sets.append((dataset, evaluators))
        self._check_metric(
            figure_name({"dataset": dataset.name, "task": task, "metric": metric})
            for dataset, evaluators in self._sets
            for evaluator in evaluators
            for task, metrics in METRICS[evaluator].items()
            for metric in metrics
        )
        self._model = LeanCLIP(architecture)

    def __call__(self, weights: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The figures of the model with these weights: rows of `schema.EVAL_RESULT`.

        Raises SynthClipError where the recipe's metric is not among them.
        """
        self._model.load_state_dict(weights)
        batch_size = self._recipe.evaluation.batch_size
        features = Features(SharedEncoder(self._group, *as_loaded(self._model), batch_size=batch_size))
        tables = Tables()
        for dataset, evaluators in self._sets:
            for evaluator in evaluators:
                try:
                    tables.add(dataset.name, EVALUATORS[evaluator](features, dataset, Settings()), None)
                except SynthClipError as error:
                    raise SynthClipError(f"training.eval, {dataset.name}, {evaluator}: {error}") from None
        self._model.cpu()  # training needs the GPU's memory
        self._check_metric(map(figure_name, tables.results))
        return tables.results

    def _evaluators(self, dataset: DataSet, planned: Sequence[str] = ()) -> tuple[str, ...]:
        able = planned or able_evaluators(dataset)
        return tuple(evaluator for evaluator in able if evaluator in self._config.evaluators)

    def _check_metric(self, figures: Iterable[str]) -> None:
        metric, known = self._config.metric, list(figures)
        if metric not in known:
            raise SynthClipError(
                f"training.eval.metric={metric}: not produced by training.eval.suite{nearest(metric, known)}"
            )


def _heldout(recipe: Recipe, run: RunDirectory) -> Sequence[DataSet]:
    datasets = open_heldout(run, recipe.evaluation, recipe.seed)
    if not datasets:
        raise SynthClipError(
            f"training.eval: {run.path} holds no held-out images: set balance.heldout, or leave out "
            "training.eval.every_epochs"
        )
    return datasets
