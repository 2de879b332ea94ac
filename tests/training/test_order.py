"""The order of samples: whole permutations, seeded, each pass anew, sources in proportion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.errors import SynthClipError
from synthclip.training.order import Order, apportion, parts, shuffled


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**32), pass_=st.integers(0, 1000))
def test_shuffled_is_a_permutation(n: int, seed: int, pass_: int) -> None:
    landed = shuffled(np.arange(n), n, stream="x", seed=seed, pass_=pass_)
    assert sorted(landed.tolist()) == list(range(n))


@given(n=st.integers(2, 10**9), seed=st.integers(0, 99), data=st.data())
def test_a_position_lands_where_it_lands_among_others(n: int, seed: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, n - 1))
    among = [position, 0, n - 1]
    assert shuffled(position, n, stream="x", seed=seed) == shuffled(among, n, stream="x", seed=seed)[0]


def test_shuffled_looks_uniform() -> None:
    """Chi-squared over where position 0 of [0, 10) lands, at the 0.001 level with 9 degrees of freedom."""
    landed = [int(shuffled(0, 10, stream="x", seed=seed)) for seed in range(5000)]
    counts = np.bincount(landed, minlength=10)
    assert float(((counts - 500) ** 2 / 500).sum()) < 27.88


@given(size=st.integers(4, 300), batch=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_sees_every_sample_at_most_once(size: int, batch: int, seed: int, epoch: int) -> None:
    if batch > size:
        return
    order = Order([size], [1.0], batch, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = np.concatenate([order.batch(step).index_B for step in steps])
    assert len(set(seen.tolist())) == len(seen) == size // batch * batch
    assert {int(pass_) for step in steps for pass_ in order.batch(step).pass_B} == {epoch}


def test_epochs_differ() -> None:
    order = Order([64], [1.0], 64, 0)
    assert order.batch(0).index_B.tolist() != order.batch(1).index_B.tolist()


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), total=st.integers(1, 5000))
def test_apportion_is_within_one_of_the_exact_share(weights: list[float], total: int) -> None:
    parts = apportion(weights, total)
    assert sum(parts) == total
    assert all(abs(p - w / sum(weights) * total) < 1 for p, w in zip(parts, weights, strict=True))


def test_a_batch_mixes_its_sources_in_proportion() -> None:
    order = Order([1000, 50], [3.0, 1.0], 40, 0)
    for step in (0, 1, 17):
        slots = order.batch(step)
        assert np.bincount(slots.source_B).tolist() == [30, 10]
        assert slots.source_B.tolist() != sorted(slots.source_B.tolist())
    assert order.steps_per_epoch == 33
    assert order.batch(5).pass_B[order.batch(5).source_B == 1].tolist() == [1] * 10


@given(pairs=st.integers(4, 60), of_batch=st.integers(1, 8), seed=st.integers(0, 9))
def test_twins_come_together_and_each_once_a_pass(pairs: int, of_batch: int, seed: int) -> None:
    if of_batch > pairs:
        return
    part, rest = 2 * of_batch, 10
    order = Order([500, 2 * pairs], [rest, part], rest + part, seed, twins=[1])
    seen: dict[int, list[int]] = {}
    for step in range(12):
        slots = order.batch(step)
        index = slots.index_B[slots.source_B == 1]
        assert sorted(index.tolist()) == sorted((index ^ 1).tolist())
        assert len(index) == part
        (pass_,) = set(slots.pass_B[slots.source_B == 1].tolist())
        seen.setdefault(pass_, []).extend(index.tolist())
    assert all(len(set(found)) == len(found) for found in seen.values())


def test_a_source_of_pairs_gets_an_even_number() -> None:
    assert parts([15, 15], 30, twins=[1]) == (14, 16)
    assert parts([3, 1, 8], 4, twins=[1]) == (1, 0, 3)
    with pytest.raises(SynthClipError, match="source 0 gets 5 samples of each batch, and holds pairs"):
        Order([100], [1], 5, 0, twins=[0])


def test_a_source_smaller_than_its_part_is_refused() -> None:
    with pytest.raises(SynthClipError, match="fewer than the 20 of each batch"):
        Order([1000, 10], [1, 1], 40, 0)
