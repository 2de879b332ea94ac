import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import drawn_run
from synthclip.recipe import RECIPE_FILE, load_recipe
from synthclip.run.store import RunDirectory
from synthclip.view.app import Explorer

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
    run.write_text(RECIPE_FILE, load_recipe("demo").to_yaml())
    return run


@pytest.fixture
def run(drawn: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy that a test may change."""
    return RunDirectory(shutil.copytree(drawn.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def explorer(drawn: RunDirectory) -> Explorer:
    explorer = Explorer([drawn.path])
    explorer.runs["run"].index.refresh()
    return explorer


@pytest.fixture
def client(explorer: Explorer) -> TestClient:
    return TestClient(explorer.app, base_url=BASE)
