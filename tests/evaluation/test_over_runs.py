"""Figures over seeds and items: the distribution, the test statistic and the coverage have oracles."""

import numpy as np
import pytest
from scipy import stats

from synthclip.evaluation.metrics import over_runs, student_quantile, student_tail


@pytest.mark.parametrize("degrees", [1, 1.4, 2, 3.7, 12, 400, 9000])
def test_students_distribution_is_scipys(degrees: float) -> None:
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-5)
    for t in (0.0, 0.3, 2.0, 8.0):
        assert student_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-5)


def test_the_test_is_clarks_min_f() -> None:
    """F1 over seeds, F2 over items, min F' = F1 F2 / (F1 + F2) and its degrees of freedom (Clark, 1973)."""
    values = np.random.default_rng(0).normal(0.3, 1, (4, 25))
    f1 = stats.ttest_1samp(values.mean(axis=1), 0).statistic ** 2
    f2 = stats.ttest_1samp(values.mean(axis=0), 0).statistic ** 2
    least = f1 * f2 / (f1 + f2)
    degrees = (f1 + f2) ** 2 / (f1**2 / 24 + f2**2 / 3)
    found = over_runs(values)
    assert found.degrees == pytest.approx(degrees)
    assert found.p_value == pytest.approx(stats.f.sf(least, 1, degrees), rel=1e-5)
    half = np.sqrt(found.variance) * stats.t.ppf(0.975, degrees)
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half))


def test_items_of_one_group_are_one_observation() -> None:
    values = np.random.default_rng(1).random((3, 20))
    alone, together = over_runs(values), over_runs(np.repeat(values, 4, axis=1), np.repeat(np.arange(20), 4))
    assert together.variance == pytest.approx(alone.variance)
    assert together.degrees == pytest.approx(alone.degrees)


@pytest.mark.parametrize(("seed_sd", "item_sd"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.3)])
def test_intervals_hold_what_they_promise_over_new_seeds_and_new_items(
    seed_sd: float, item_sd: float
) -> None:
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(250):
        seeds, items = random.normal(0, seed_sd, (3, 1)), random.normal(0, item_sd, (1, 60))
        low, high = over_runs(seeds + items + random.normal(0, 0.5, (3, 60))).interval
        inside += low <= 0 <= high
    assert 0.91 <= inside / 250 <= 1.0


def test_shares_stay_between_0_and_1() -> None:
    for values in (np.zeros((3, 50)), np.ones((3, 50)), np.eye(3, 50)):
        low, high = over_runs(values).share_interval
        assert 0 <= low <= values.mean() <= high <= 1
        assert low < high
    assert over_runs(np.zeros((2, 9))).p_value == 1.0
    assert over_runs(np.ones((2, 9))).p_value == 0.0
