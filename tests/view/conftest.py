import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import drawn_run
from small_inputs import MODEL_CONFIG, save_model
from synthclip import schema
from synthclip.recipe import RECIPE_FILE, load_recipe
from synthclip.run.store import Outcome, RunDirectory
from synthclip.view.app import application
from synthclip.view.explorer import Explorer

BASE = "http://localhost"


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of a drawn run answer no prompt, so that a search for it goes on to its end."""
    monkeypatch.setattr("synthclip.imagegen.provenance._MAX_ATTEMPTS", 3)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of every stage; tests that change it take `run`."""
    run = drawn_run.finish(drawn_run.textgen_run(tmp_path_factory.mktemp("drawn") / "run"))
    drawn_run.judge(run)
    _judge_concepts(run)
    run.write_text(RECIPE_FILE, load_recipe("demo").to_yaml())
    return run


@pytest.fixture
def run(drawn: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy that a test may change."""
    return RunDirectory(shutil.copytree(drawn.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model", **MODEL_CONFIG, noise=0.1)


@pytest.fixture(scope="session")
def explorer(drawn: RunDirectory) -> Explorer:
    explorer = Explorer([drawn.path])
    explorer.runs["run"].index.refresh()
    return explorer


@pytest.fixture
def client(explorer: Explorer) -> TestClient:
    return TestClient(application(explorer), base_url=BASE)


def _judge_concepts(run: RunDirectory) -> None:
    """Every second held-out picture of a noun is classified right, the others as the next noun."""
    names = drawn_run.NOUNS
    classes = [
        {"dataset": "heldout", "class_id": at, "name": name, "n": 4, "top1": 0.5, "top5": 1.0}
        | {"confused_with": names[(at + 1) % len(names)], "confused_n": 2, "classes": len(names)}
        for at, name in enumerate(names)
    ]
    tables = {
        name: schema.read_table(run.file("eval", name)) for name in ("results.parquet", "nearest.parquet")
    }
    keys = schema.read_table(run.file("images", "heldout/00000.parquet"))["key"].to_pylist()
    items = [
        {"dataset": "heldout", "task": "zero_shot", "metric": "top1", "item": key, "value": float(at % 2)}
        for at, key in enumerate(keys)
    ]
    with run.begin("eval", "all", "f") as writer:
        for name, rows in tables.items():
            writer.rows(name, rows.schema, rows.to_pylist())
        writer.rows("per_class.parquet", schema.EVAL_CLASS, classes)
        writer.rows("items.parquet", schema.EVAL_ITEM, items)
        writer.commit(Outcome(len(items)))
