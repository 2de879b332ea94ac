"""Tokens and money, as they accrue: in the log, in `status`, in the report, beside the plan."""

from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, ScriptedServer
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.plan import make_plan
from synthclip.recipe import Recipe, load_recipe
from synthclip.report.page import with_log
from synthclip.run.pipeline import run, status
from synthclip.run.progress import Console
from synthclip.training.flops import parse_devices

pytest.importorskip("httpx", reason="needs the package httpx")

FINE = {
    "choices": [{"message": {"content": "A dog and a cat and a bell run."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
}
PRICES = "llm.prices={input: 1, output: 20}"


def recipe_of(server: ScriptedServer, *overrides: str) -> Recipe:
    llm = f"llm={{backend: openai, model: m, base_url: {server.url}, concurrency: 1, max_retries: 0}}"
    few = ["concepts.limit=4", "captions.per_concept=2", "captions.concepts_per_shard=2", "engine.workers=0"]
    return load_recipe("demo", [llm, "captions.must_contain_concept=false", *few, *overrides])


def write(recipe: Recipe, out: Path) -> None:
    with (out.parent / "log").open("a") as log:
        run(recipe, out, stages=("concepts", "captions"), console=Console(log))


def test_tokens_and_money_are_counted_and_set_beside_the_plan(tmp_path: Path) -> None:
    with ScriptedServer(Answer(FINE)) as server:
        write(recipe_of(server, PRICES), tmp_path / "run")
        write(recipe_of(server), tmp_path / "free")
    found = status(tmp_path / "run")
    assert found.tokens == pytest.approx({"read": 800, "written": 80, "cost": (800 + 20 * 80) / 1e6})
    assert status(tmp_path / "free").tokens == {"read": 800, "written": 80}
    said = CliRunner().invoke(app, ["status", str(tmp_path / "run")]).output
    assert "language model: 800 tokens read (plan: " in said
    assert "80 tokens written (plan: " in said
    assert "0.00 spent (plan: 0.00)" in said


def test_what_a_failed_attempt_has_spent_is_counted_too(tmp_path: Path) -> None:
    broken = Answer({"error": {"message": "No quota.", "code": "insufficient_quota"}}, 429)
    with ScriptedServer(Answer(FINE), Answer(FINE), Answer(FINE), broken) as server:
        with pytest.raises(SynthClipError, match="No quota"):
            write(recipe_of(server, PRICES), tmp_path / "run")
        assert status(tmp_path / "run").tokens["read"] == 300
        server.answers = [Answer(FINE)]
        write(recipe_of(server, PRICES), tmp_path / "run")
    assert status(tmp_path / "run").tokens["read"] == 300 + 800
    assert len(server.requests) == 4 + 8


def test_a_plan_at_prices_needs_no_size_of_the_model() -> None:
    """Of 80 captions: the prompt's letters over four, and 11.5 words of 4/3 tokens."""
    with ScriptedServer(Answer(FINE)) as server:
        recipe = recipe_of(server, PRICES)
    captions = make_plan(recipe, parse_devices("1xcpu"), concepts=40).stages[0]
    template = recipe.captions.templates[0].text
    words = (recipe.captions.min_words + recipe.captions.max_words) / 2
    expected = 80 * (len(template) / 4 + 20 * words * 4 / 3) / 1e6
    assert captions.money == pytest.approx(expected)
    listed = recipe.model_copy(update={"captions": recipe.captions.model_copy(update={"per_request": 4})})
    cheaper = make_plan(listed, parse_devices("1xcpu"), concepts=40).stages[0].money
    assert captions.money is not None
    assert cheaper is not None
    assert captions.money - cheaper == pytest.approx(80 * len(template) / 4 * 3 / 4 / 1e6)


def test_usage_that_is_no_number_stops_nothing(tmp_path: Path) -> None:
    odd: dict[str, Any] = {**FINE, "usage": {"prompt_tokens": None, "completion_tokens": "7"}}
    with ScriptedServer(Answer(odd), Answer({**FINE, "usage": []})) as server:
        write(recipe_of(server), tmp_path / "run")
    assert status(tmp_path / "run").tokens == {}


def test_the_report_says_it() -> None:
    line = {"event": "shard", "stage": "captions", "shard": "0", "rows": 1, "seconds": 1.0}
    page = with_log("<body><!--timings--></body>", load_recipe("demo"), [line], "800 tokens read <b>")
    assert "The language model: 800 tokens read &lt;b&gt;." in page
