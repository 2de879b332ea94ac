"""Work in threads: in order, bounded, and cancelled with its consumer."""

import time
from collections.abc import Iterator

import pytest

from synthclip.run.threads import in_order


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    assert list(in_order(late, range(30), threads=threads, ahead=5)) == [item * item for item in range(30)]


def test_no_more_is_taken_than_allowed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = in_order(abs, items(), ahead=3)
    assert next(results) == 0
    assert len(taken) == 4


def test_an_error_comes_in_its_place_and_the_rest_is_cancelled() -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = in_order(work, range(100), threads=1, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(started) < 10
