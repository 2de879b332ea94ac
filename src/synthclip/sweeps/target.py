"""What a figure would take: a law's size of data as captions, images, device-hours and money."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.table import Table

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.plan import Plan
from synthclip.recipe import Recipe, inspect_recipe
from synthclip.recipe.document import parse_yaml
from synthclip.recipe.section import differences, nearest
from synthclip.sweeps.law import MIN_SIZES, Law, Points, Prediction, fit, points_of, predict_largest
from synthclip.sweeps.runs import FILE
from synthclip.sweeps.variants import Sweep, make_sweep

FAR = 4
"""How many times the largest size measured is far."""
SHARE = "training.share="
"""What the variants of a sweep differ in that a law can be fitted to."""


@dataclass(frozen=True)
class Needed:
    """The pairs that a figure takes, by a law; infinite where it never reaches it."""

    figure: str
    value: float
    law: Law
    pairs: float
    low: float
    high: float

    recipe: Recipe
    """That the law was measured on."""
    prediction: Prediction | None
    """Of the largest size measured, by the smaller ones; None where they carry no law."""

    def warnings(self, recipe: Recipe) -> Iterator[str]:
        """What a reader must know who asks for this recipe."""
        beyond = self.pairs / self.law.largest
        if beyond == float("inf"):
            yield f"data alone never reaches {self.figure}={self.value:g} by this law"
        elif beyond > FAR:
            yield (
                f"far extrapolation: {beyond:,.0f} times the largest data set measured "
                f"({self.law.largest:,.0f} pairs): a run nearer to it would tell more"
            )
        if self.prediction is not None and self.prediction.missed:
            yield f"the law misses its own last point: {self.prediction}"
        if self.high == float("inf"):
            yield "the upper end is open: some laws that fit as well never reach it"
        sections = [name for name in Recipe.model_fields if name not in ("engine", "name")]
        own, asked = ({name: one.section_results(name) for name in sections} for one in (self.recipe, recipe))
        if other := [
            key for key, _, _ in differences(own, asked) if key not in ("training.share", "training.seed")
        ]:
            shown = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
            yield f"the law was measured on a recipe with another {shown}"


def read_points(directory: Path) -> dict[str, Points]:
    """By figure the points of a sweep over `training.share`. Raises SynthClipError where it is none."""
    path = directory / "results" / "runs.parquet"
    if not path.is_file() or not (directory / FILE).is_file():
        raise SynthClipError(f"{directory}: no results of a sweep: run `synthclip scaling` first")
    variants = parse_yaml((directory / FILE).read_text(encoding="utf-8"), str(directory / FILE))["variants"]
    other = [one for overrides in variants.values() for one in overrides if not one.startswith(SHARE)]
    if other:
        raise SynthClipError(
            f"{directory}: its variants differ in more than the share of data ({other[0]}): no law can be "
            "fitted to them: run `synthclip scaling`"
        )
    rows = schema.read_table(path).to_pylist()
    return points_of(row for row in rows if row["variant"] in variants)


def needed(directory: Path, target: str) -> Needed:
    """What `FIGURE=VALUE` takes, by the law of a sweep. Raises SynthClipError where it has none."""
    figure, _, text = target.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise SynthClipError(f"--target {target}: expected a figure and a share, such as zero_shot/top1=0.35")
    points = read_points(directory)
    if figure not in points:
        raise SynthClipError(
            f"--target {figure}: no such figure in {directory}{nearest(figure, list(points))}"
        )
    try:
        law = fit(points[figure])
    except SynthClipError as error:
        raise SynthClipError(f"{directory}, {figure}: {error}") from None
    pairs, (low, high) = law.size_for(1 - value)
    measured_on = inspect_recipe(next(iter(sorted((directory / "runs").glob("*.s0")))))
    try:
        prediction = predict_largest(points[figure])
    except SynthClipError:
        prediction = None
    return Needed(figure, value, law, pairs, low, high, measured_on, prediction)


def scaling_sweep(recipe: str, overrides: Sequence[str], shares: str, **options: Any) -> Sweep:
    """A sweep over shares of the data, the whole first: its data serve all, and its held-out set judges all.

    `shares` are numbers or fractions with commas between them; `options` that are not None are keys of it.
    """
    try:
        found = sorted({float(Fraction(text.strip())) for text in shares.split(",")}, reverse=True)
    except (ValueError, ZeroDivisionError):
        found = []
    if len(found) < MIN_SIZES or not 0 < found[-1] < found[0] <= 1:
        raise SynthClipError(
            f"--shares {shares}: expected {MIN_SIZES} or more shares above 0 and up to 1, such as 1/4,1/2,1"
        )
    variants = {f"share={share:.4g}": [] if share == 1 else [f"{SHARE}{share!r}"] for share in found}
    asked = {"recipe": recipe, "overrides": list(overrides), "variants": variants}
    asked["about"] = "How the error falls with the data trained on: nested shares of the captions."
    return make_sweep(recipe, asked | {key: value for key, value in options.items() if value is not None})


def needed_table(found: Needed, plan: Plan) -> Table:
    """The recipe of the plan, scaled to the pairs: what is expected, and 95 % of it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("the recipe", f"{found.figure}={found.value:g}", "95 % from", "to"):
        table.add_column(column, justify="right")
    volumes, own = plan.volumes, plan.own_pairs
    factors = [1.0, *(pairs / own for pairs in (found.pairs, found.low, found.high))]

    def row(name: str, amount: float, fixed: float = 0.0, digits: int = 0) -> None:
        cells = (amount * factor + fixed for factor in factors)
        table.add_row(name, *("never" if cell == float("inf") else f"{cell:,.{digits}f}" for cell in cells))

    row("captions asked for", volumes.asked)
    row("captions selected", volumes.selected)
    row("pairs to train on", own)
    hours = {stage.stage: stage.device_s / 3600 for stage in plan.stages}
    row("device-hours", sum(hours.values()) - hours["eval"], hours["eval"], 2)
    row("disk, GB", plan.disk_bytes / 1e9, 0.0, 1)
    if plan.costs is not None:
        costs = {stage.stage: plan.cost(stage) or 0.0 for stage in plan.stages}
        row("cost", sum(costs.values()) - costs["eval"], costs["eval"], 2)
    return table
