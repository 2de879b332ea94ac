from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.evaluation.results import never_tested, ranked_classes, weakest_classes
from synthclip.recipe.textgen import ConceptSource
from synthclip.run.store import Outcome, RunDirectory
from synthclip.textgen.concepts import entries


def judged(path: Path) -> Path:
    rows = [
        {"dataset": "d", "class_id": number, "name": name, "n": n, "top1": top1, "top5": 1.0, "confused_n": 0}
        for number, (name, n, top1) in enumerate(
            [("apple", 1, 0.0), ("bus", 100, 0.05), ("cat", 50, 1.0), ("dog", 40, 0.5)]
        )
    ]
    with RunDirectory(path).begin("eval", "all", "x") as writer:
        writer.rows("per_class.parquet", schema.EVAL_CLASS, rows)
        writer.commit(Outcome(len(rows)))
    return path


def test_the_surest_failures_come_first(tmp_path: Path) -> None:
    found = weakest_classes(judged(tmp_path), 3)
    assert [weak.name for weak in found] == ["bus", "dog", "apple"]


def test_a_class_that_is_always_right_is_not_weak(tmp_path: Path) -> None:
    assert "cat" not in {weak.name for weak in weakest_classes(judged(tmp_path), 10)}


def test_the_command_writes_what_a_concept_source_reads(tmp_path: Path) -> None:
    run, out = judged(tmp_path / "run"), tmp_path / "lists" / "weak.txt"
    result = CliRunner().invoke(app, ["weakest", str(run), "--out", str(out), "--classes", "2"])
    assert result.exit_code == 0, result.output
    assert "bus (d): 5% of 100 right" in result.output
    assert list(entries(ConceptSource(kind="text", path=str(out)))) == ["bus", "dog"]


def test_a_run_that_was_not_evaluated_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="run `synthclip eval"):
        weakest_classes(tmp_path, 5)


def test_equals_are_not_listed_by_the_alphabet_and_untested_classes_are_counted() -> None:
    rows = [
        {"dataset": "d", "name": name, "n": 6, "top1": top1, "classes": 40}
        for top1 in (0.0, 1.0)
        for name in (f"{letter}{top1}" for letter in "abcdefghij")
    ]
    for best in (True, False):
        names = [row["name"] for row in ranked_classes(rows, best=best)]
        assert {name[1:] for name in names[:10]} == {"1.0" if best else "0.0"}
        assert names[:10] != sorted(names[:10])
    assert never_tested(rows) == {"d": 20}
