import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from synthclip import schema
from synthclip.evaluation.paper import METRICS, paper_rows
from synthclip.recipe import Recipe
from synthclip.report import Report
from synthclip.report.contents import GALLERY_CAPTIONS, read_contents
from synthclip.report.page import headlines, render, visible
from synthclip.report.suites import read_suites
from synthclip.report.terms import explained, plain
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory

pytestmark = pytest.mark.slow

SCREENSHOT = Path(__file__).parents[2] / "docs" / "screenshot.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a reader of the page meets: its text, its tags, and every address that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)


def write_report(recipe: Recipe, run: RunDirectory) -> str:
    stage = Report(recipe, run)
    (shard,) = stage.shards()
    StageLoad(Report, recipe, run.path)()(shard, lambda rows, **figures: None)
    stage.finish(run.manifests("report"))
    return (run.path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_no_other_file(recipe: Recipe, whole_run: RunDirectory) -> None:
    html = write_report(recipe, whole_run)
    page = Page(html)
    assert page.loads
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "url(" not in html
    assert "@import" not in html


def test_text_from_data_is_shown_and_never_run(recipe: Recipe, whole_run: RunDirectory) -> None:
    html = write_report(recipe, whole_run)
    assert "<script" not in html
    assert "<b>bold" not in html
    assert "\x00" not in html
    assert "\x1b" not in html
    text = Page(html).text
    assert "<script>alert('x')</script> a ␀ cat & a␛[31m dog" in text  # the reason of a refusal
    assert "tiny <llm>" in text
    assert "class <29>" in text


def test_it_says_what_made_the_pictures(recipe: Recipe, whole_run: RunDirectory) -> None:
    text = Page(write_report(recipe, whole_run)).text
    assert "not from a diffusion model" in text
    assert "OpenMoji" in text
    assert "CC-BY-SA-4.0" in text


def test_it_tells_the_funnel_the_figures_and_the_recipe(recipe: Recipe, whole_run: RunDirectory) -> None:
    text = Page(write_report(recipe, whole_run)).text
    for expected in (
        "Captions written 89",
        "Passed cleaning 60 67.4 %",
        "Distinct 56",
        "Name a concept of the bank 50",
        "Selected for training 40",
        "Held out for evaluation 8",
        "Images to train on 120",
        "Images to evaluate on 24",
        "class <4> taken for class <5> 13.3 %",
        "Of the 26 classes with at least 5 images. Of the others, 4 had fewer",
        "no concept 21",
        "top1 46.3 % 43.3 to 49.3 % 0.5 % 812",
        "uniformity -2.5",
        "per_caption: 4",
    ):
        assert expected in text, expected


def test_timings_count_each_shard_once(recipe: Recipe, whole_run: RunDirectory) -> None:
    text = Page(write_report(recipe, whole_run)).text
    assert "captions 1 60 captions 30.0 s 2.0" in text
    assert "train 1 300 pairs seen 2 min 00 s 2.5" in text


def test_equal_runs_give_equal_files_whatever_time_they_took(recipe: Recipe, whole_run: RunDirectory) -> None:
    write_report(recipe, whole_run)
    before = (whole_run.path / "report/report.html").read_bytes()
    whole_run.log(event="shard", stage="images", shard="train/00000", rows=120, rejected={}, seconds=4.0)
    top = write_report(recipe, whole_run)
    assert (whole_run.path / "report/report.html").read_bytes() == before
    assert "images 1 120 images 4.0 s 30.0" in Page(top).text


def test_it_says_when_where_and_in_what_time_it_was_made(recipe: Recipe, whole_run: RunDirectory) -> None:
    whole_run.log(event="begin", stage="images", shards=1, total=1, version="0.9", machine="2 x <b>GPU</b>")
    whole_run.log(event="begin", stage="train", shards=1, total=1, version="0.9", machine="2 x <b>GPU</b>")
    whole_run.log(event="stage", stage="captions", shards=1, seconds=29.0)
    whole_run.log(event="tokens", stage="captions", shard="0", read=9, written=9, cost=1.5)
    training = recipe.training.model_copy(update={"processes": 4})
    text = Page(write_report(recipe.model_copy(update={"training": training}), whole_run)).text
    today = time.strftime("%Y-%m-%d", time.gmtime(whole_run.metrics()[-1]["time"]))
    hours = (30 + 4 * 120) / 3600
    assert f"Made {today} SynthCLIP 0.9 On 2 x <b>GPU</b> Time 2 min 30 s Device-hours {hours:.3g}" in text
    assert "Paid for tokens 1.50" in text


def test_it_shows_what_was_refused(recipe: Recipe, whole_run: RunDirectory) -> None:
    with whole_run.begin("captions", "00001", "f", schema.REJECTED_CAPTION) as writer:
        for text in ("A <i>first</i> one", "A <i>first</i> one", "another", "a third"):
            row = {"caption_id": 1, "concept_id": 0, "text": text, "template": "t", "model": "m", "seed": 1}
            writer.reject(row, "echoed")
        writer.commit(Outcome(0))
    text = Page(write_report(recipe, whole_run)).text
    assert "echoed A <i>first</i> one another 4" in text
    assert "a third" not in text


def test_every_word_of_the_figures_is_explained() -> None:
    of_sets = {figure for row in paper_rows().values() for figure in row.scores}
    rows = [
        {"task": task, "metric": METRICS[task], "dataset": name, "untrained": 0.1} for task, name in of_sets
    ]
    words = dict(explained(rows))
    assert {plain(task) for task in METRICS} <= words.keys()
    assert {"top1", "R@K", "chance", "95 % interval", "untrained", "n"} <= words.keys()
    assert "the ways" in words["few shot"]
    assert "untrained" not in dict(explained([{**rows[0], "untrained": None}]))


def test_the_size_of_the_model_is_read_off_its_weights(recipe: Recipe, whole_run: RunDirectory) -> None:
    with whole_run.begin("train", "all", "f") as writer:
        weights = {"a": np.zeros((1000, 2000), np.float32), "b": np.zeros(3, np.float32)}
        save_file(weights, writer.path("model/open_clip_model.safetensors"))
        writer.commit(Outcome(300, notes={"pairs": [120]}))
    assert read_contents(whole_run).parameters == 2_000_003
    assert "2 M Parameters of the model" in Page(write_report(recipe, whole_run)).text


def test_another_result_makes_the_report_stale(recipe: Recipe, whole_run: RunDirectory) -> None:
    stage = Report(recipe, whole_run)
    before = stage.fingerprint(stage.shards()[0])
    workers = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"workers": 7})})
    assert Report(workers, whole_run).fingerprint(stage.shards()[0]) == before
    with whole_run.begin("concepts", "all", "f") as writer:
        writer.rows("00000.parquet", schema.CONCEPT, [])
        writer.commit(Outcome(0))
    assert stage.fingerprint(stage.shards()[0]) != before


def test_the_gallery_is_drawn_by_content(whole_run: RunDirectory) -> None:
    first, again = read_contents(whole_run).gallery, read_contents(whole_run).gallery
    assert first == again
    assert len(first) == GALLERY_CAPTIONS
    assert len({picture.caption for picture in first}) == GALLERY_CAPTIONS
    assert all(len(picture.images) == 2 and picture.concepts for picture in first)


def test_findings_show_held_out_images_nearest_first(whole_run: RunDirectory) -> None:
    findings = read_contents(whole_run).findings
    assert findings[1].caption == "A red boat on the sea"
    assert [right for _, _, right in findings[1].images] == [False, True, False, False, False]


def test_public_data_sets_stand_beside_the_papers_models(recipe: Recipe, judged_run: RunDirectory) -> None:
    html = write_report(recipe, judged_run)
    text = Page(html).text
    for expected in (
        "dtd: zero shot top1 21.3 % 19.3 to 23.3 % 1.0 % 1,880",
        "linear probe, mean over dtd, pets",
        "this model 58.1 %",
        "image retrieval, mean over flickr8k",
        "% against SynthCI-30M",
        "over the data sets at hand only",
        "texture <0> 40 taken for banded 0.0 % n 40",
    ):
        assert expected in text, expected
    bars = read_suites(judged_run)
    assert bars is not None
    probe = next(one for one in bars.bars if one.task == "linear_probe")
    values = [value for _, value in probe.models]
    assert values == sorted(values, reverse=True)
    paper = paper_rows()["CC12M"].scores
    mean = (paper["linear_probe", "dtd"] + paper["linear_probe", "pets"]) / 2
    assert dict(probe.models)["CC12M"] == pytest.approx(mean)
    assert "On public data sets" not in Page(render("x", {}, read_contents(RunDirectory("nowhere")))).text


def test_another_evaluation_makes_the_report_stale(recipe: Recipe, whole_run: RunDirectory) -> None:
    stage = Report(recipe, whole_run)
    before = stage.fingerprint(stage.shards()[0])
    with whole_run.begin("suites", "quick", "f") as writer:
        writer.rows("quick/results.parquet", schema.EVAL_RESULT, [])
        writer.commit(Outcome(0))
    assert stage.fingerprint(stage.shards()[0]) != before


def test_figures_taken_in_training_are_drawn_over_its_steps(
    recipe: Recipe, textgen_run: RunDirectory
) -> None:
    rising = {
        ("heldout", "zero_shot", "top1"): 0.2,
        ("heldout", "zero_shot", "top5"): 0.4,
        ("heldout", "text_retrieval", "R@1"): 0.1,
        ("<b>\0</b>", "few_shot", "top1"): 0.3,
    }
    rows = [
        {"dataset": of, "task": task, "metric": metric, "value": start + 0.1 * (step == 10), "step": step}
        for step in (0, 10, 20)
        for (of, task, metric), start in rising.items()
    ]
    with textgen_run.begin("train", "all", "f") as writer:
        writer.rows("figures.parquet", schema.EVAL_RESULT, rows)
        writer.commit(Outcome(20))
    values = {"training": {"eval": {"keep": "best", "metric": "zero_shot/top1"}}}
    contents = read_contents(textgen_run)
    text = Page(render("drawn", values, contents)).text
    assert "During training, on held-out data" in text
    assert "During training, on <b>␀</b>" in text
    assert "The weights kept are those after step 10: zero shot/top1 30.0 %." in text
    assert "zero shot, top1 text retrieval, R@1" in text
    values["training"]["eval"]["keep"] = "last"
    assert "weights kept" not in Page(render("drawn", values, contents)).text


def test_a_run_that_stopped_early_leaves_sections_out(recipe: Recipe, textgen_run: RunDirectory) -> None:
    text = Page(render("half", {}, read_contents(textgen_run))).text
    assert "Passed cleaning 60" in text
    for absent in ("Evaluation", "Training loss", "What the model saw", "diffusion", "painted"):
        assert absent not in text


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    assert "SynthCLIP" in Page(render("none", {}, read_contents(RunDirectory(tmp_path)))).text


def test_visible_shows_control_characters_and_cuts_long_text() -> None:
    assert visible("a\nb\x7f\ud800\u202e") == "a␊b" + 3 * "\N{REPLACEMENT CHARACTER}"
    assert len(visible("word " * 10_000)) == 300


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_it_fits_a_telephone(recipe: Recipe, judged_run: RunDirectory) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    write_report(recipe, judged_run)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.goto((judged_run.path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        figure = page.locator("table.results tr:not(.group) td").first.bounding_box()
        assert figure is not None
        assert figure["x"] + figure["width"] <= 400
        assert figure["height"] < 80, "a figure is broken into letters"
        browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(recipe: Recipe, whole_run: RunDirectory, tmp_path: Path, scheme: str) -> None:
    write_report(recipe, whole_run)
    shot = tmp_path / "report.png"
    command = [sys.executable, str(SCREENSHOT), str(whole_run.path / "report.html"), str(shot)]
    subprocess.run([*command, "--size=1200,2400", *(["--dark"] if scheme == "dark" else [])], check=True)
    pixels = cv2.imread(str(shot))
    assert pixels is not None
    assert pixels.shape[:2] == (2400, 1200)
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 200
    ground = pixels[5, 5].mean()
    assert ground > 200 if scheme == "light" else ground < 60
    drawn = (np.abs(pixels.astype(int) - pixels[5, 5]).max(axis=2) > 20).mean(axis=1)
    assert (drawn[::100] > 0).sum() > 12, "the page is blank over long stretches"


def test_in_short_an_unseen_painters_pictures_stand_beside_the_known_ones() -> None:
    def result(dataset: str, task: str, metric: str) -> dict[str, Any]:
        return {"dataset": dataset, "task": task, "metric": metric, "value": 0.5, "chance": 0.1, "n": 9}

    shown = headlines(
        [
            result("heldout", "image_retrieval", "R@1"),
            result("heldout", "zero_shot", "top1"),
            result("heldout", "zero_shot", "top5"),
            result("heldout_painter", "image_retrieval", "R@1"),
            result("heldout_painter", "zero_shot", "top1"),
        ]
    )
    assert [(one["dataset"], one["task"]) for one in shown] == [
        ("heldout", "zero_shot"),
        ("heldout_painter", "zero_shot"),
        ("heldout", "image_retrieval"),
    ]
