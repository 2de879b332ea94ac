"""Evaluation feeds generation: `synthclip weakest`, then `synthclip captions --fill` on its list."""

from collections import Counter
from pathlib import Path

import pytest
from text_runs import TEXT_STAGES, RunText, table
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.run.store import Outcome, RunDirectory

pytestmark = pytest.mark.slow

BANK = ("dog", "cat", "bee", "car")


def test_the_classes_a_model_knows_least_get_more_captions(tmp_path: Path, run_text: RunText) -> None:
    bank = tmp_path / "bank.txt"
    bank.write_text("\n".join(BANK))
    directory = run_text(f"concepts.sources=[{{kind: text, path: {bank}}}]", stages=TEXT_STAGES)
    judged = {"dog": 0.9, "cat": 0.05, "bee": 0.8, "car": 1.0}
    rows = [
        {"dataset": "heldout", "class_id": k, "name": name, "n": 200, "top1": top1, "top5": 1.0}
        for k, (name, top1) in enumerate(judged.items())
    ]
    with directory.begin("eval", "all", "x") as writer:
        writer.rows("per_class.parquet", schema.EVAL_CLASS, [{**row, "confused_n": 0} for row in rows])
        writer.commit(Outcome(len(rows)))
    before = written(directory)

    weak, run = tmp_path / "weak.txt", str(directory.path)
    result = CliRunner().invoke(app, ["weakest", run, "--classes", "1", "--out", str(weak)])
    assert result.exit_code == 0, result.output
    assert weak.read_text() == "cat\n"
    command = result.output.splitlines()[-1].partition("synthclip ")[2].split()
    assert command == ["captions", run, "--fill", "--concepts", str(weak), "--at-least", "N"]
    result = CliRunner().invoke(app, [*command[:-1], "12", "--trust"])
    assert result.exit_code == 0, result.output
    after = written(directory)
    assert {name for name in BANK if after[name] > before[name]} == {"cat"}


def written(directory: RunDirectory) -> Counter[str]:
    """Captions asked for by concept, refused ones too."""
    bank = table(directory, "concepts")["text"].to_pylist()
    parts = (table(directory, "captions", folder) for folder in ("", "rejected"))
    return Counter(bank[k] for part in parts for k in part["concept_id"].to_pylist())
