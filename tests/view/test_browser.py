"""The pages in a real browser: drawn at two widths, light and dark, by keyboard, and without a reload."""

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from synthclip import schema
from synthclip.run.store import RunDirectory
from synthclip.view.app import application
from synthclip.view.explorer import Explorer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")]

_ADDRESSES = (
    "",
    "gallery",
    "gallery?show=refused",
    "gallery?q=nowhere",
    "search",
    "search?text=a+boat",
    "concepts",
    "concepts/2",
    "evaluation",
)
_UNNAMED = """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), select, img, svg")]
  .filter(one => !(one.textContent.trim() || one.labels?.length || one.getAttribute("aria-label")
    || one.hasAttribute("alt") || one.querySelector("img[alt]")))
  .map(one => one.outerHTML.slice(0, 200))"""
"""What a screen reader could say nothing of."""


class Served:
    """An explorer at an address of this machine."""

    def __init__(self, run: RunDirectory, model: Path | None = None) -> None:
        explorer = Explorer([run.path], str(model) if model else None)
        explorer.runs["run"].index.refresh()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://localhost:{self.listening.getsockname()[1]}/run/"
        self.key = explorer.runs["run"].gallery.latest(1)[0].key
        self.search = explorer.runs["run"].search
        self._server = uvicorn.Server(uvicorn.Config(application(explorer), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.listening]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.listening.close()


@pytest.fixture(scope="module")
def served(drawn: RunDirectory, model: Path) -> Iterator[Served]:
    served = Served(drawn, model)
    served.search.encode()
    served.search.join()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab whose errors fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
    page.problems = problems
    yield page
    page.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_fits_and_can_be_read_aloud(page: Any, served: Served, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    of_image = f"image/heldout/{served.key}", f"search?like=heldout/{served.key}"
    for address in (*_ADDRESSES, *of_image, "../compare"):
        page.goto(served.address + address, wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.evaluate(_UNNAMED) == [], address
        assert page.locator("h1").count() == 1, address
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(ground.removeprefix("rgb(").partition(",")[0])
        assert red > 200 if scheme == "light" else red < 60
    assert page.problems == []


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Any, served: Served) -> None:
    page.goto(f"{served.address}gallery")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("wall")
    page.keyboard.press("Enter")
    page.wait_for_url("**/gallery?q=wall*")
    page.locator(".tile-item a").first.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/image/**")
    page.wait_for_selector("text=tiny <llm>, seed")


def test_a_gallery_goes_on_while_one_scrolls(page: Any, served: Served) -> None:
    page.goto(f"{served.address}gallery?variants=all&size=30")
    tiles = page.locator(".tile-item")
    assert tiles.count() >= 30
    for _ in range(20):
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(60)
    playwright.expect(tiles).to_have_count(144)
    assert page.locator("a[rel=next]").count() == 0


def test_a_choice_is_in_the_address(page: Any, served: Served) -> None:
    page.goto(f"{served.address}gallery")
    page.get_by_label("Split").select_option("heldout")
    page.wait_for_url("**/gallery?split=heldout&show=kept")
    assert page.locator("h1").inner_text() == "8 images"


def test_the_live_page_renews_itself(page: Any, run: RunDirectory) -> None:
    served = Served(run)
    try:
        with run.lock():
            run.log(event="begin", stage="images", shards=4, total=8)
            page.goto(served.address)
            playwright.expect(page.locator(".step.running")).to_contain_text("4 of 8 shards")
            for number in range(2):
                run.log(
                    event="shard", stage="images", shard=f"train/{number}", rows=1, rejected={}, seconds=1
                )
            playwright.expect(page.locator(".step.running")).to_contain_text("6 of 8 shards", timeout=20_000)
    finally:
        served.stop()


def test_a_picture_that_is_chosen_is_searched_for(page: Any, run: RunDirectory, model: Path) -> None:
    served = Served(run, model)
    try:
        page.goto(f"{served.address}gallery")
        page.get_by_label("Or pictures like this one").set_input_files(
            {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": _a_jpeg(run)}
        )
        page.wait_for_url("**/search?picture=*")
        page.get_by_role("button", name="Encode 144 images").click()
        playwright.expect(page.locator(".search-state")).to_contain_text("144 of 144 images", timeout=20_000)
        playwright.expect(page.locator(".tile-item")).to_have_count(60)
        assert page.locator(".shares li").count() == 10
    finally:
        page.goto("about:blank")
        served.search.join()
        served.stop()


def _a_jpeg(run: RunDirectory) -> bytes:
    row = schema.read_table(run.file("images", "train/00000.parquet")).to_pylist()[0]
    return run.file("images", "train/00000.tar").read_bytes()[row["offset"] :][: row["length"]]
