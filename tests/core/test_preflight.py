"""What cannot work is said before it costs."""

from pathlib import Path

import pytest

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.pipeline import check, run
from synthclip.run.store import RunDirectory

HOPELESS = {
    "a batch above all pairs": (
        ["training.batch_size=30000"],
        r"batch_size=30000 takes 22500 pairs of the source 'run', and this recipe can make 22344 \(228 con",
    ),
    "concepts that the painter has no drawing of": (
        ["concepts.sources=[{kind: text, path: LIST}]"],
        r"compositor cannot draw 2 of 3 concepts \(justice, quantum foam\): remove them",
    ),
    "a training source that is not there": (
        ["training.sources=[{kind: csv, path: /nowhere.csv}]"],
        r"/nowhere\.csv: no such file",
    ),
    "a data set that is not there": (
        ["training.eval={every_epochs: 1, suite: cifar10, data: FOLDER}"],
        "an empty folder",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), HOPELESS.values(), ids=HOPELESS)
def test_what_cannot_work_is_refused_before_anything_is_made(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "list").write_text("dog\njustice\nquantum foam\n")
    (tmp_path / "data").mkdir()
    places = {"LIST": str(tmp_path / "list"), "FOLDER": str(tmp_path / "data")}
    for name, place in places.items():
        overrides = [override.replace(name, place) for override in overrides]
    recipe = load_recipe("demo", overrides)
    with pytest.raises(SynthClipError, match=message) as caught:
        run(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "concepts").exists()


@pytest.mark.parametrize("name", ["demo", "one-gpu"])
def test_the_bundled_recipes_pass(name: str, tmp_path: Path) -> None:
    check(load_recipe(name), RunDirectory(tmp_path / "run"))


def test_a_recipe_is_run_by_its_name(tmp_path: Path) -> None:
    made = run("demo", tmp_path / "run", stages=["concepts"])
    assert made.manifests("concepts")
