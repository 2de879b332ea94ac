"""Every script of `examples/` runs and prints what it promises, on one small run."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from small_inputs import smooth
from synthclip.run.store import RunDirectory

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def _photos(folder: Path) -> None:
    lines = ["file,caption"]
    for number in range(16):
        cv2.imwrite(str(folder / f"{number}.jpg"), smooth(40 + number, 48))
        lines.append(f"{number}.jpg,waves number {number}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")


def _classes(folder: Path) -> None:
    for name, value in (("dark", 20), ("light", 220)):
        place = folder / "datasets/mine/test" / name
        place.mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(place / f"{number}.png"), np.full((32, 32, 3), value + number, np.uint8))


def _nothing(folder: Path) -> None:
    pass


SCRIPTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "own_backend": (_nothing, "images by discs"),
    "read_with_pyarrow": (_nothing, "runs/first/first.jpg"),
    "search_by_text": (_nothing, "A "),
    "to_hugging_face": (_nothing, "the first: (64, 64)"),
    "seeds": (_nothing, "the model trained on them is the same"),
    "train_on_tars": (_nothing, "{train} pairs"),
    "mix_real_data": (_photos, "[{train}, 16] pairs"),
    "evaluate_a_folder": (_classes, "chance 50.0%"),
    "ablation": (_nothing, "2 trainings, 0 failed"),
}
"""What a script finds in the folder besides the run of `own_concepts`, and what it prints of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the scripts run, with the run of the first one."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", ["own_concepts.py"])
        runpy.run_path(str(EXAMPLES / "own_concepts.py"), run_name="__main__")
        yield folder


def test_own_concepts_come_to_a_report(folder: Path) -> None:
    assert (folder / "runs/first/report.html").is_file()
    assert (folder / "runs/first/train/model/open_clip_config.json").is_file()


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, said = SCRIPTS[name]
    prepare(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    train = sum(
        one.rows for one in RunDirectory(folder / "runs/first").manifests("images") if one.split == "train"
    )
    assert said.replace("{train}", str(train)) in capsys.readouterr().out


def test_every_script_is_tested_and_listed() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*SCRIPTS, "own_concepts"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.py`" in listed for name in scripts)


@pytest.mark.parametrize(
    ("name", "said"),
    [("looking_at_a_run", "captions name it"), ("what_teaches", "to the base (chance")],
)
def test_a_notebook_runs(name: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "kept without outputs, which would grow old"
            exec("".join(cell["source"]), scope)
    assert said in capsys.readouterr().out
