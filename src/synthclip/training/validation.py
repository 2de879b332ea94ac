"""A model's figures on the run's held-out set, while it is trained."""

import copy

from torch import Tensor, nn

from synthclip.config import nearest
from synthclip.errors import SynthClipError
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.heldout import judge, read_heldout
from synthclip.interop.load import loaded_as
from synthclip.recipe import Recipe
from synthclip.store import RunDirectory
from synthclip.textgen.bank import read_bank


class Validation:
    """Evaluates as the `eval` stage does, on a copy: the model that is trained is left as it is."""

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        self._recipe = recipe
        self._heldout = read_heldout(run, recipe.evaluation.captions, recipe.seed)
        self._names = read_bank(run)
        if not self._heldout.image_keys:
            raise SynthClipError(
                f"training.eval: {run.path} holds no held-out images: set balance.heldout, or leave out "
                "training.eval.every_epochs"
            )

    def __call__(self, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, float]:
        """The figures of `model` with these weights, each as `task/metric`.

        Raises SynthClipError where the recipe's metric is not among them.
        """
        judged_model = copy.deepcopy(model)
        judged_model.load_state_dict(weights)
        encoder = Encoder(
            *loaded_as(judged_model.eval(), self._recipe.model),
            batch_size=self._recipe.evaluation.batch_size,
        )
        judged = judge(encoder, self._heldout, self._names, self._recipe.evaluation.templates)
        figures = {f"{figure.task}/{figure.metric}": figure.value for figure, _ in judged.figures}
        wanted = self._recipe.training.eval.metric
        if wanted not in figures:
            raise SynthClipError(
                f"training.eval.metric={wanted}: not to be had of these held-out images"
                f"{nearest(wanted, list(figures))}"
            )
        return figures
