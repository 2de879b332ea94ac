"""The arithmetic of balancing against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip import keys
from synthclip.textgen import match
from synthclip.textgen.balance import Curve, draws, dropped, keep_probability
from synthclip.textgen.match import Matches, first_of_equal

CONCEPTS = 6
LISTS = st.lists(st.lists(st.integers(0, CONCEPTS - 1), unique=True, max_size=4).map(sorted), max_size=20)


def csr(lists: list[list[int]]) -> Matches:
    ids = keys.text_ids(f"caption {number}" for number in range(len(lists)))
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Matches(ids, offsets, np.array([concept for each in lists for concept in each], np.int32))


@given(LISTS, st.floats(0.1, 50))
def test_keep_probability_is_the_official_one(lists: list[list[int]], t: float) -> None:
    matches = csr(lists)
    counts = np.bincount(matches.concepts, minlength=CONCEPTS).astype(np.int64)
    chance = keep_probability(matches.offsets, matches.concepts, dropped(counts, t))
    for row, concepts in enumerate(lists):
        none_drawn = 1.0
        for concept in concepts:
            none_drawn *= 1 - t / max(counts[concept], t)
        assert np.isclose(chance[row], 1 - none_drawn if concepts else 0.0)


def test_without_t_all_that_match_are_kept() -> None:
    matches = csr([[0], [], [1, 2]])
    counts = np.array([9, 9, 9, 0, 0, 0])
    assert keep_probability(matches.offsets, matches.concepts, dropped(counts, None)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("at_once", [3, 2**25])
@given(st.lists(st.lists(st.integers(0, 8).map((2**60).__mul__), max_size=8), max_size=6))
def test_the_first_of_equal_ids_is_told_from_its_repeats(at_once: int, files: list[list[int]]) -> None:
    arrays = [np.array(file, np.uint64) for file in files]
    seen: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match, "_IDS_AT_ONCE", at_once)
        masks = first_of_equal(arrays)
    for file, mask in zip(files, masks, strict=True):
        assert mask.tolist() == [
            number not in seen and number not in file[:place] for place, number in enumerate(file)
        ]
        seen.update(file)


def test_t_is_solved_for_a_target() -> None:
    rng = np.random.default_rng(0)
    matches = csr([sorted({int(rng.zipf(1.3)) % CONCEPTS for _ in range(2)}) for _ in range(5_000)])
    counts = np.bincount(matches.concepts, minlength=CONCEPTS).astype(np.int64)
    curve = Curve(matches, counts, len(matches.ids), seed=3)
    for target in (50, 500, 4_000):
        t = curve.solve(target)
        chance = keep_probability(matches.offsets, matches.concepts, dropped(counts, t))
        assert abs((draws(matches.ids, 3) < chance).sum() - target) <= 1
    assert curve.solve(5_000) is None
    sizes = [size for _, size in curve.points()]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 5_000
