"""How the error falls with data: a power law, with a floor where the points carry one, or plainly none.

error(N) = a + b (N / N0)^-c, with 0 <= a < the smallest error (Hestness et al., arXiv 1712.00409; for CLIP:
Cherti et al., arXiv 2212.07143). Fitted by least squares of the error. A floor is taken only where it lowers
AICc (Hurvich and Tsai, 1989), which few points never do.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Interval
from synthclip.evaluation.results import figure_name

F64 = NDArray[np.float64]

_DRAWS = 2000
_EXPONENTS = np.linspace(-0.5, 3, 141)
"""Exponents that are tried first; a negative one is an error that rises."""
_FINER = np.linspace(-0.025, 0.025, 21)
_HIGHEST_FLOOR = 0.999
"""As a share of the smallest error."""
_EXACT = 1e-5
"""Residuals below this are those of an exact fit."""
MIN_SIZES = 3


@dataclass(frozen=True)
class Points:
    """Errors of n trainings, shares in (0, 1]; `sizes` are the pairs that each was trained on."""

    sizes: F64
    errors: F64

    def up_to(self, size: float) -> "Points":
        """Those of smaller trainings than this."""
        smaller = self.sizes < size
        return Points(self.sizes[smaller], self.errors[smaller])

    def means(self) -> tuple[F64, F64, NDArray[np.int64]]:
        """The different sizes, ascending, the mean error of each, and of how many trainings."""
        sizes, which = np.unique(self.sizes, return_inverse=True)
        counts = np.bincount(which)
        return sizes, np.bincount(which, weights=self.errors) / counts, counts


@dataclass(frozen=True)
class Law:
    """A fitted law. `draws` are those of a parametric bootstrap (Efron and Tibshirani, 1993, chapter 6), the
    spread of the residuals itself uncertain: a, b, c and that spread, float64 [draws, 4]. They cover other
    trainings, not other test items, which all points share."""

    a: float
    b: float
    c: float
    largest: float
    """N0: the largest size measured."""
    spread: float
    draws: F64

    def error(self, size: float | F64) -> Any:
        """The error at a size, of its shape."""
        return self.a + self.b * (size / self.largest) ** -self.c

    def interval(self, size: float, *, of_one_run: bool = False) -> Interval:
        """95 % of the error at a size: of its mean, or of one further training."""
        a, b, c, spread = self.draws.T
        errors = a + b * (size / self.largest) ** -c
        if of_one_run:
            errors = errors + spread * _random(1).standard_normal(len(errors))
        low, high = np.percentile(errors, [2.5, 97.5])
        return float(low), float(high)

    def size_for(self, error: float) -> tuple[float, Interval]:
        """The size at which the error falls to this, and 95 % of it; infinite where it never does."""
        sizes = _sizes(error, *self.draws.T[:3]) * self.largest
        low, high = np.percentile(sizes, [2.5, 97.5], method="nearest")
        own = _sizes(error, *np.array([[self.a], [self.b], [self.c]]))[0] * self.largest
        return float(own), (float(low), float(high))

    @property
    def exponent(self) -> Interval:
        low, high = np.percentile(self.draws[:, 2], [2.5, 97.5])
        return float(low), float(high)

    def __str__(self) -> str:
        floor = f"{100 * self.a:.1f} % + " if self.a else ""
        kind = "power law with a floor" if self.a else "plain power law, the points carry no floor"
        low, high = self.exponent
        return (
            f"error = {floor}{100 * self.b:.1f} % (N / {self.largest:,.0f})^-{self.c:.3f} for N pairs: "
            f"{kind}; exponent 95 % {low:.3f} to {high:.3f}"
        )


def fit(points: Points) -> Law:
    """The law of these points. Raises SynthClipError, with the reason, where they carry none."""
    _refuse(points)
    largest = float(points.sizes.max())
    x, y = np.log(points.sizes / largest), points.errors[None]
    plain, floored = (_fit(x, y, floor=floor) for floor in (False, True))
    floor = len(points.means()[0]) > MIN_SIZES and _aicc(x, y, floored, 3) < _aicc(x, y, plain, 2)
    chosen, degrees = (floored, y.size - 3) if floor else (plain, y.size - 2)
    fitted = _errors(x, chosen)
    spread = float(np.sqrt(((y - fitted) ** 2).sum() / degrees))
    random = _random(0)
    spreads = spread * np.sqrt(degrees / random.chisquare(degrees, _DRAWS))
    drawn = _fit(x, fitted + spreads[:, None] * random.standard_normal((_DRAWS, y.size)), floor=floor)
    a, b, c = chosen[0]
    law = Law(float(a), float(b), float(c), largest, spread, np.column_stack([drawn, spreads]))
    if law.exponent[0] <= 0:
        low, high = law.exponent
        raise SynthClipError(
            f"no law: the error does not surely fall with data (exponent 95 % {low:.3f} to {high:.3f}): "
            "more sizes, more seeds or a larger range may show one"
        )
    return law


@dataclass(frozen=True)
class Prediction:
    """What the law of the smaller sizes says of the largest, and what was measured there."""

    fitted_to: float
    """The largest size that it was fitted to."""
    size: float
    error: float
    interval: Interval
    """95 % of one training."""
    measured: float
    """The mean of the trainings of that size."""

    @property
    def missed(self) -> bool:
        return not self.interval[0] <= self.measured <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"fitted up to {self.fitted_to:,.0f} pairs it foretells {self.error:.1%} at {self.size:,.0f} "
            f"(95 % of one training: {low:.1%} to {high:.1%}); measured {self.measured:.1%}"
        )


def predict_largest(points: Points) -> Prediction:
    """Raises SynthClipError where the smaller sizes carry no law."""
    sizes, means, _ = points.means()
    law = fit(points.up_to(sizes[-1]))
    interval = law.interval(sizes[-1], of_one_run=True)
    return Prediction(sizes[-2], sizes[-1], law.error(sizes[-1]), interval, means[-1])


@dataclass(frozen=True)
class Fitted:
    """What a figure's points carry: a law, or the reason why they carry none."""

    points: Points
    law: Law | None
    reason: str = ""

    def lines(self) -> Iterator[str]:
        """For people: the law, and how it would have foretold the largest size from the smaller ones."""
        if self.law is None:
            yield self.reason
            return
        yield str(self.law)
        try:
            found = predict_largest(self.points)
        except SynthClipError as error:
            yield f"without the largest size: {error}"
            return
        yield f"{found}{', outside it: do not extrapolate' if found.missed else ''}"


def fit_all(points: Mapping[str, Points]) -> dict[str, Fitted]:
    """By figure what its points carry."""
    found = {}
    for figure, own in points.items():
        try:
            found[figure] = Fitted(own, fit(own))
        except SynthClipError as error:
            found[figure] = Fitted(own, None, str(error))
    return found


def _refuse(points: Points) -> None:
    sizes, means, counts = points.means()
    if len(sizes) < MIN_SIZES:
        raise SynthClipError(f"no law: {len(sizes)} sizes of data, at least {MIN_SIZES} are needed")
    if points.errors.min() <= 0:
        raise SynthClipError("no law: the error is 0 at some size, nothing is left to fall")
    extra = len(points.sizes) - len(sizes)
    own = points.errors - means[np.searchsorted(sizes, points.sizes)]
    noise = float((own**2).sum()) / extra if extra else 0.0
    rises = np.diff(means) - 2 * np.sqrt(noise * (1 / counts[1:] + 1 / counts[:-1]))
    if rises.max() > 0:
        at = int(rises.argmax())
        chance = ", more than the seeds differ" if extra else ": more seeds may say whether by chance"
        raise SynthClipError(
            f"no law: the error rises from {means[at]:.1%} at {sizes[at]:,.0f} pairs to {means[at + 1]:.1%} "
            f"at {sizes[at + 1]:,.0f}{chance}"
        )


def _fit(x_n: F64, y_Dn: F64, *, floor: bool) -> F64:
    """(a, b, c) of each row of errors at logarithms of sizes, float64 [D, 3]; without `floor` a = 0.

    Of each exponent tried, coarse steps first, the best a and b follow in closed form: a is bounded, so it is
    that of the straight line, or the bound that it passes.
    """
    best, lowest = np.zeros((len(y_Dn), 3)), np.full(len(y_Dn), np.inf)
    most_D = _HIGHEST_FLOOR * y_Dn.min(axis=1).clip(0)
    for around, steps in ((False, _EXPONENTS), *((True, _FINER / 10**power) for power in range(3))):
        centre = best[:, 2].copy() if around else np.zeros(len(y_Dn))
        for step in steps:
            z_Dn = np.exp(-(centre + step)[:, None] * x_n)
            a_D = np.zeros(len(y_Dn))
            if floor:
                mean_z, mean_y = z_Dn.mean(axis=1, keepdims=True), y_Dn.mean(axis=1, keepdims=True)
                square = ((z_Dn - mean_z) ** 2).sum(axis=1)
                slope = ((z_Dn - mean_z) * (y_Dn - mean_y)).sum(axis=1) / np.where(square > 0, square, np.inf)
                a_D = (mean_y[:, 0] - slope * mean_z[:, 0]).clip(0, most_D)
            b_D = (z_Dn * (y_Dn - a_D[:, None])).sum(axis=1) / (z_Dn**2).sum(axis=1)
            squares = ((y_Dn - a_D[:, None] - b_D[:, None] * z_Dn) ** 2).sum(axis=1)
            better = squares < lowest
            found = np.column_stack([a_D, b_D, centre + step])
            best[better], lowest[better] = found[better], squares[better]
    return best


def _errors(x_n: F64, law_D3: F64) -> F64:
    a, b, c = (column[:, None] for column in law_D3.T)
    return np.asarray(a + b * np.exp(-c * x_n))


def _aicc(x_n: F64, y_1n: F64, law_13: F64, parameters: int) -> float:
    """Akaike's criterion for small samples; infinite where there are too few points."""
    n, k = y_1n.size, parameters + 1
    if n - k - 1 <= 0:
        return float("inf")
    mean_square = max(float(((y_1n - _errors(x_n, law_13)) ** 2).mean()), _EXACT**2)
    return n * float(np.log(mean_square)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _sizes(error: float, a: F64, b: F64, c: F64) -> F64:
    """N / N0 at which each law gives the error; infinite where none does."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        sizes = (b / (error - a)) ** (1 / c)
    return np.where((error > a) & (c > 0), sizes, np.inf)


def _random(stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(stream))


def points_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    """By figure the points of the runs of a sweep: rows of `results.RUN`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["value"] is not None and row["pairs"]:
            found.setdefault(figure_name(row), []).append((float(row["pairs"]), 1 - row["value"]))
    return {figure: Points(*np.array(sorted(pairs)).T) for figure, pairs in found.items()}
