"""Pages about a run as a whole: live, concepts, evaluation, several side by side."""

import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import typer.main
from starlette.testclient import TestClient

import drawn_run
from synthclip import schema
from synthclip.cli import app as cli
from synthclip.recipe import RECIPE_FILE, load_recipe
from synthclip.run.store import RunDirectory
from synthclip.view.app import application
from synthclip.view.explorer import Explorer

BASE = "http://localhost"


def client_of(*runs: RunDirectory) -> TestClient:
    explorer = Explorer([run.path for run in runs])
    for run in explorer.runs.values():
        run.index.refresh()
    return TestClient(application(explorer), base_url=BASE)


def text_of(page: str) -> str:
    """What a reader sees."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_run_is_a_funnel_from_concepts_to_pairs(client: TestClient, drawn: RunDirectory) -> None:
    page = client.get("/run/").text
    text = text_of(page)
    for step in ("12 concepts", "60 captions", "50 matched", "48 selected", "120 images", "600 pairs seen"):
        assert step in text, step
    assert "and 24 to evaluate on" in text
    assert f"next: `synthclip run {drawn.path}`" in text
    assert "no concept 21" in text
    assert "46.3 % zero shot, top1 chance 0.5 %" in text
    assert "data-running" not in page
    assert page.count("<svg") == 1


def test_a_training_is_followed_while_it_goes_on(run: RunDirectory) -> None:
    shutil.rmtree(run.path / "train")
    shutil.rmtree(run.path / "eval")
    run.log(event="begin", stage="train", shards=1, total=1)
    run.log(event="training", step=0, steps=40)
    for step in range(1, 11):
        run.log(event="train", step=step, loss=4.0 - step / 10, eta_s=600.0)
    run.log(event="eval", step=10, **{"zero_shot/top1": 0.25})
    run.log(event="eval", step=11, **{"zero_shot/top1": 0.5})
    with run.lock():
        page = client_of(run).get("/run/").text
    text = text_of(page)
    assert "data-running" in page
    assert "Running" in text
    assert "10 of 40 steps, 10.0 min left" in text
    assert "train, step 10 of 40, loss 3" in text
    assert "640 pairs seen" in text
    assert "On held-out data" in text
    assert page.count("<svg") == 2


def test_a_run_that_has_only_begun_has_every_page(tmp_path: Path) -> None:
    run = drawn_run.textgen_run(tmp_path / "run")
    run.write_text(RECIPE_FILE, load_recipe("demo").to_yaml())
    client = client_of(run)
    for address in ("", "gallery", "concepts", "concepts/1", "evaluation"):
        assert client.get(f"/run/{address}").status_code == 200, address
    assert "No figures yet" in client.get("/run/evaluation").text
    assert "No image yet" in client.get("/run/gallery").text


def test_a_run_of_another_version_is_named(run: RunDirectory) -> None:
    (run.path / "images" / "stage.json").write_text(json.dumps({"schema": "1"}))
    answer = TestClient(application(Explorer([run.path])), base_url=BASE).get("/run/")
    assert answer.status_code == 503
    assert "made by another version of SynthCLIP (data format 1" in answer.text


def test_a_damaged_table_is_named_by_the_page_that_needs_it(run: RunDirectory) -> None:
    path = run.file("eval", "results.parquet")
    path.write_bytes(bytes(path.stat().st_size))
    client = client_of(run)
    answer = client.get("/run/evaluation")
    assert answer.status_code == 503
    assert "results.parquet: damaged" in answer.text
    assert client.get("/run/gallery").status_code == 200


def test_the_table_of_concepts_sorts_and_finds(client: TestClient) -> None:
    def names(query: str) -> list[str]:
        return re.findall(
            r'<a href="/run/concepts/\d+">([^<]+)</a>', client.get(f"/run/concepts{query}").text
        )

    assert names("")[:3] == ["&lt;b&gt;bold&lt;/b&gt;", "bee", "bell"]
    assert names("?sort=-matched")[:2] == ["cat", "dog"]
    assert names("?q=at") == ["boat", "cat"]
    assert names("?q=%25") == []
    page = client.get("/run/concepts?sort=top1").text
    assert 'aria-sort="ascending"' in page
    assert "50.0 % of 4 dog 2 times" in text_of(page).replace("<", "")


def test_a_weak_concept_leads_to_its_pictures_and_to_more_captions(
    client: TestClient, drawn: RunDirectory
) -> None:
    heldout = schema.read_table(drawn.file("images", "heldout/00000.parquet")).to_pylist()
    (concept,) = heldout[0]["concept_ids"]
    name = drawn_run.NOUNS[concept]
    page = client.get(f"/run/concepts/{concept}").text
    assert f"printf &#39;%s\\n&#39; {name} &gt; more.txt" in page
    command = f"synthclip captions {drawn.path} --fill --concepts more.txt --at-least "
    assert command in page
    for words in re.findall(r"data-copy>synthclip ([^<]+)<", page):
        name_of, *arguments = shlex.split(html.unescape(words))
        commands: Any = typer.main.get_command(cli)
        commands.commands[name_of].make_context(name_of, arguments)
    assert {"right", "wrong"} == set(re.findall(r'<li class="(right|wrong)">', page))
    assert "mostly taken for" in page
    assert re.search(rf'href="/run/gallery\?concept={name}"', page)
    assert client.get("/run/concepts/99").status_code == 404
    assert client.get("/run/concepts/99999999999999999999").status_code == 404


def test_confusions_are_shown_as_pictures_beside_the_figures(client: TestClient) -> None:
    page = client.get("/run/evaluation").text
    text = text_of(page)
    assert "top1 46.3 % 43.3 to 49.3 % 0.5 %" in text
    assert "Beside the models of the paper" in text
    assert "taken for" in text
    assert page.count("/run/jpeg/") > 24


def test_runs_stand_side_by_side_with_the_same_captions(run: RunDirectory, drawn: RunDirectory) -> None:
    copy = RunDirectory(shutil.copytree(run.path, run.path.with_name("other run")))
    client = client_of(drawn, copy)
    assert client.get("/", follow_redirects=False).headers["location"] == "/compare"
    page = client.get("/compare").text
    row = re.search(r"<tr>\s*<th[^>]*>zero shot, top1.*?</tr>", page, re.DOTALL)
    assert row, text_of(page)[:3000]
    assert text_of(row[0]).count("46.3 %") == 2
    assert page.count("/run/jpeg/") == page.count("/other-run/jpeg/") > 0


def test_the_runs_of_a_sweep_are_compared_by_the_figures_of_its_judge(
    drawn: RunDirectory, tmp_path: Path
) -> None:
    for name in ("a.s0", "b.s0"):
        shutil.copytree(drawn.path, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("eval", "suites"))
        shutil.copytree(drawn.path / "eval", tmp_path / "judged" / name)
    page = client_of(*(RunDirectory(tmp_path / "runs" / name) for name in ("a.s0", "b.s0"))).get("/compare")
    assert text_of(page.text).count("46.3 %") == 2
    assert "p 1" in text_of(page.text)
