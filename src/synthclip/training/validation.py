"""A model's figures while it is trained: on the run's held-out set, and on data sets of the suites."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Classification, Retrieval, open_dataset
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import PassingFeatures
from synthclip.evaluation.heldout import Heldout, judge, read_heldout
from synthclip.evaluation.results import figure_name, result_row
from synthclip.evaluation.suites import plan_of_names
from synthclip.models.build import build_model
from synthclip.models.load import loaded_as
from synthclip.recipe import Recipe
from synthclip.recipe.section import nearest
from synthclip.recipe.training import HELDOUT
from synthclip.run.store import RunDirectory
from synthclip.textgen.concepts import read_bank


class Validation:
    """Evaluates as `synthclip eval` does, on a model of its own.

    All that the recipe names has to be there: SynthClipError says what is not, before the first step.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        self._recipe, self._config = recipe, recipe.training.eval
        self._heldout = _heldout(recipe, run) if HELDOUT in self._config.suite else None
        self._names = read_bank(run) if self._heldout else ()
        plan = plan_of_names(self._config.data_sets, self._config.evaluators)
        self._sets = {name: self._open(name, tasks) for name, tasks in plan.items()}
        of, _, _ = self._config.metric.rpartition("/")[0].rpartition("/")
        if of not in self._sets and (of or self._heldout is None):
            kind = "/".join(self._config.metric.split("/")[-2:])
            known = [f"{name}/{kind}" for name in self._sets] + ([kind] if self._heldout else [])
            raise SynthClipError(
                f"training.eval.metric={self._config.metric}: of no set in training.eval.suite"
                f"{nearest(self._config.metric, known)}"
            )

    def __call__(self, weights: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The figures of the recipe's model with these weights: rows of `schema.EVAL_RESULT`.

        Raises SynthClipError where the recipe's metric is not among them.
        """
        model = build_model(self._recipe.model)
        model.load_state_dict(weights)
        encoder = Encoder(
            *loaded_as(model, self._recipe.model),
            batch_size=self._recipe.evaluation.batch_size,
        )
        rows: list[dict[str, Any]] = []
        if self._heldout is not None:
            judged = judge(encoder, self._heldout, self._names, self._recipe.evaluation.templates)
            rows += [result_row(HELDOUT, figure, None) for figure, _ in judged.figures]
        features = PassingFeatures(encoder)
        for name, (dataset, evaluators) in self._sets.items():
            for evaluator in evaluators:
                try:
                    found = EVALUATORS[evaluator](features, dataset, Settings())
                except SynthClipError as error:
                    raise SynthClipError(f"training.eval, {name}, {evaluator}: {error}") from None
                rows += [result_row(name, figure, None) for figure, _ in found.figures]
        figures = [figure_name(row) for row in rows]
        if self._config.metric not in figures:
            raise SynthClipError(
                f"training.eval.metric={self._config.metric}: not to be had of this data"
                f"{nearest(self._config.metric, figures)}"
            )
        return rows

    def _open(self, name: str, planned: Sequence[str]) -> tuple[Classification | Retrieval, tuple[str, ...]]:
        assert self._config.data is not None
        dataset = open_dataset(name, Path(self._config.data).expanduser())
        able = planned or able_evaluators(dataset)
        evaluators = tuple(evaluator for evaluator in able if evaluator in self._config.evaluators)
        if not evaluators:
            raise SynthClipError(
                f"training.eval.evaluators={list(self._config.evaluators)}: {name} takes none of them, but "
                f"{', '.join(able)}"
            )
        return dataset, evaluators


def _heldout(recipe: Recipe, run: RunDirectory) -> Heldout:
    heldout = read_heldout(run, recipe.evaluation.captions, recipe.seed)
    if not heldout.image_keys:
        raise SynthClipError(
            f"training.eval: {run.path} holds no held-out images: set balance.heldout, or leave out "
            "training.eval.every_epochs"
        )
    return heldout
