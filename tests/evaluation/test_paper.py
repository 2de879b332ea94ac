import pytest

from synthclip.errors import SynthClipError
from synthclip.evaluation.paper import Row, cells, delta_mtl, find_row, paper_rows, published_delta_mtl


@pytest.mark.parametrize(
    ("baseline", "model"),
    [(baseline, model) for baseline, models in published_delta_mtl().items() for model in models],
)
def test_every_published_delta_follows_from_its_rows(baseline: str, model: str) -> None:
    found = delta_mtl(paper_rows()[model], paper_rows()[baseline])
    assert found is not None
    assert found.complete
    assert found.value == pytest.approx(published_delta_mtl()[baseline][model], abs=0.15)


def test_delta_of_some_tasks_says_that_it_is_not_complete() -> None:
    part = Row("part", {("zero_shot", "imagenet"): 16.8, ("linear_probe", "dtd"): 69.6})
    found = delta_mtl(part, paper_rows()["CC12M"])
    assert found is not None
    assert (found.tasks, found.complete) == (2, False)
    assert found.value == pytest.approx(-25.0)


def test_no_delta_without_a_cell_in_common() -> None:
    assert delta_mtl(Row("none", {}), paper_rows()["CC3M"]) is None


def test_the_table_has_every_cell() -> None:
    assert len(cells()) == 9 + 9 + 3 + 3 + 1


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(SynthClipError, match="did you mean 'CC12M'"):
        find_row("CC21M")
