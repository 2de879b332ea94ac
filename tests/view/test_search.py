"""Search answers with the images that are most similar, whatever was stopped, changed or sent before."""

import io
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

import drawn_run
from small_inputs import MODEL_CONFIG, save_model
from synthclip.evaluation.encoder import Encoder
from synthclip.models.load import load_model
from synthclip.recipe import load_recipe
from synthclip.run.store import RunDirectory
from synthclip.view import vectors
from synthclip.view.app import application
from synthclip.view.explorer import Explorer
from synthclip.view.filters import Filter
from synthclip.view.pictures import read_jpeg

BASE = "http://localhost"
ORIGIN = {"origin": BASE}


class Opened:
    """An explorer of one run, and a browser at it."""

    def __init__(self, run: RunDirectory, model: Path | str | None = None) -> None:
        explorer = Explorer([run.path], None if model is None else str(model))
        self.run = explorer.runs["run"]
        self.run.index.refresh()
        self.client = TestClient(application(explorer), base_url=BASE)

    def encode(self) -> "Opened":
        self.run.search.encode()
        self.run.search.join()
        return self

    def page(self, address: str) -> str:
        answer = self.client.get(f"/run/search{address}")
        assert answer.status_code == 200
        return answer.text

    def jpegs(self) -> dict[int, bytes]:
        """Every kept image by id."""
        where, gallery = Filter(variants="all"), self.run.gallery
        page = gallery.page(where, size=200)
        assert not page.after
        found = {tile.id: read_jpeg(self.run.directory, gallery, tile.id) for tile in page.tiles}
        return {image: one[0] for image, one in found.items() if one}

    def stored(self) -> dict[str, bytes]:
        found = self.run.index.folder.rglob("*.npy")
        return {f"{one.parent.name}/{one.name}": one.read_bytes() for one in found}


@pytest.fixture(scope="module")
def opened(drawn: RunDirectory, model: Path) -> Opened:
    return Opened(drawn, model).encode()


def tiles(page: str) -> list[str]:
    return re.findall(r'<img src="/run/jpeg/[^"]+/([0-9a-f]{64})" alt="[^"]*" loading', page)


def png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(1, 80),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_the_nearest_are_those_of_a_full_comparison(
    sizes: list[int], count: int, seed: int, alike: bool
) -> None:
    random = np.random.default_rng(seed)
    query, *all_rows = random.standard_normal((sum(sizes) + 1, 24)).astype(np.float32)
    rows = np.array(all_rows) + (8 * query if alike else 0)
    query /= np.linalg.norm(query)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    rows[random.random(len(rows)) < 0.2] = np.nan
    starts = np.cumsum([0, *sizes[:-1]])
    shards = [
        (1000 * at, rows[start : start + size])
        for at, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    ids = np.concatenate([first + np.arange(len(part)) for first, part in shards])
    exact = rows.astype(np.float32) @ query
    found = vectors.nearest(shards, query, count)
    there = np.flatnonzero(np.isfinite(exact))
    best = there[np.argsort(-exact[there], kind="stable")][:count]
    assert [score for _, score in found] == pytest.approx(exact[best].tolist(), abs=1e-6)
    of = dict(zip(ids.tolist(), exact.tolist(), strict=True))
    assert all(score == pytest.approx(of[image], abs=1e-6) for image, score in found)
    assert len({image for image, _ in found}) == len(best)


def test_a_text_ranks_images_as_the_model_does(opened: Opened, model: Path) -> None:
    jpegs = opened.jpegs()
    encoder = Encoder(*load_model(model))
    exact = (encoder.images(jpegs.values()).features @ encoder.texts(["a boat"])[0]).numpy()
    by_id = dict(zip(jpegs, exact.tolist(), strict=True))
    found = opened.run.search.nearest(opened.run.search.of_text("a boat"), 1000)
    assert {image for image, _ in found} == set(jpegs)
    assert [score for _, score in found] == pytest.approx(sorted(by_id.values(), reverse=True), abs=2e-3)
    assert all(score == pytest.approx(by_id[image], abs=2e-3) for image, score in found)

    page = opened.page("?text=a+boat")
    assert "144 of 144 images are encoded" in page
    first = opened.run.gallery.tiles([image for image, _ in found[:60]])
    assert tiles(page) == [tile.sha256 for tile in first]
    assert f"similarity {found[0][1]:.4g}</span>" in page
    address, seen = re.search(r'rel="next" href="([^"]+)"', page), tiles(page)
    while address:
        page = opened.client.get(address[1].replace("&amp;", "&")).text
        seen += tiles(page)
        address = re.search(r'rel="next" href="([^"]+)"', page)
    assert len(set(seen)) == len(seen) == 144


def test_a_picture_finds_itself_its_likes_and_its_concepts(opened: Opened, model: Path) -> None:
    image, jpeg = next(iter(opened.jpegs().items()))
    (tile,) = opened.run.gallery.tiles([image])
    sent = opened.client.post("/run/search", files={"picture": ("x.txt", jpeg)}, headers=ORIGIN)
    assert tiles(sent.text)[0] == tile.sha256
    assert "data:image/jpeg;base64," in sent.text
    like = opened.page(f"?like=train/{tile.key}")
    assert tiles(like)[:59] == tiles(sent.text)[1:]
    picture_page = opened.client.get(f"/run/image/train/{tile.key}").text
    assert f'href="/run/search?like=train%2F{tile.key}"' in picture_page

    encoder = Encoder(*load_model(model))
    classifier = encoder.classifier(drawn_run.NOUNS, load_recipe("demo").evaluation.templates)
    logits = encoder.logit_scale * classifier @ encoder.images([jpeg]).features[0]
    share, best = logits.softmax(0).max(0)
    found = opened.run.search.concepts(opened.run.search.of_picture(jpeg), 3)
    assert found
    assert found[0][0] == drawn_run.NOUNS[int(best)]
    assert found[0][1] == pytest.approx(float(share), rel=1e-3)
    assert like.count('class="meter"') == 10
    assert "<b>bold" not in like


def test_what_was_stopped_goes_on_to_equal_files(
    run: RunDirectory, model: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Encoder.images
    stopped = Opened(run, model)

    def once(encoder: Encoder, pictures: Iterable[Any], *rest: Any) -> Any:
        def until_stopped() -> Iterator[Any]:
            for number, picture in enumerate(pictures):
                yield picture
                if number == 9 and stopped.stored():
                    stopped.run.search._stop.set()

        return images(encoder, until_stopped(), *rest)

    monkeypatch.setattr(Encoder, "images", once)
    stopped.encode()
    state = stopped.run.search.state
    assert (state.encoded, state.doing, state.error) == (120, "", "")
    monkeypatch.setattr(Encoder, "images", images)
    again = Opened(run, model).encode()
    assert again.run.search.state.encoded == 144
    assert sorted(again.stored().values()) == sorted(opened.stored().values())


def test_files_that_are_cut_off_and_shards_that_change_are_encoded_again(
    run: RunDirectory, model: Path
) -> None:
    before = Opened(run, model).encode()
    whole = before.stored()
    path = next(before.run.index.folder.rglob("*.npy"))
    path.write_bytes(path.read_bytes()[:200])
    again = Opened(run, model)
    again.run.search.open()
    again.run.search.join()
    assert again.run.search.state.encoded < 144
    assert again.encode().stored() == whole
    run.remove("images", "heldout/00000")
    again.run.index.refresh()
    assert again.run.search.state.encoded == 120
    assert len(again.run.search.nearest(again.run.search.of_text("x"), 1000)) == 120


def test_another_model_encodes_anew_and_the_first_keeps_its_files(
    run: RunDirectory, model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    first = Opened(run, other).encode()
    before = first.stored()
    save_model(other, **MODEL_CONFIG, seed=1)  # as after another training
    first.page("")
    first.run.search.join()
    assert first.run.search.state.encoded == 0
    after = first.encode().stored()
    assert first.run.search.state.encoded == 144
    assert before.items() < after.items()
    assert len(after) == 2 * len(before)


def test_a_damaged_tar_is_named_and_the_other_shards_are_encoded(run: RunDirectory, model: Path) -> None:
    tar = run.file("images", "train/00000.tar")
    tar.write_bytes(bytes(tar.stat().st_size))
    damaged = Opened(run, model).encode()
    assert "24 of 144 images are encoded" in damaged.page("")
    assert "damaged: run `synthclip verify" in damaged.page("")


def test_a_run_without_a_model_says_what_to_do_and_is_searched_once_it_has_one(
    run: RunDirectory, model: Path
) -> None:
    untrained = Opened(run)
    untrained.page("?text=boat")
    untrained.run.search.join()
    page = untrained.page("?text=boat")
    assert "no trained model yet: train it, or choose one with --model" in page
    assert "Try again" in page
    shutil.copytree(model, run.stage("train") / "model")
    untrained.page("")
    untrained.run.search.join()
    page = untrained.page("")
    assert "0 of 144 images are encoded by the run&#39;s own model" in page
    assert "no trained model" not in page


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "choose a file first"),
        (b"<script>alert(1)</script>", 415, "the file is no picture"),
        (b"\xff\xd8\xff" + bytes(100), 415, "choose a JPEG"),
        (b"\xff\xd8\xff" + bytes(11 << 20), 413, "more than 10 MiB"),
        (png(Image.new("1", (10_000, 6_000))), 415, "10,000 x 6,000 pixels"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_page(
    opened: Opened, content: bytes, status: int, said: str
) -> None:
    answer = opened.client.post("/run/search", files={"picture": ("<b>.jpg", content)}, headers=ORIGIN)
    assert (answer.status_code, said in answer.text) == (status, True)
    assert "<h1>Refused</h1>" in answer.text


def test_only_the_explorers_own_pages_may_send_something(opened: Opened) -> None:
    for headers in (
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
    ):
        for address in ("/run/search", "/run/search/encode"):
            assert opened.client.post(address, headers=headers).status_code == 403
    assert opened.client.post("/run/search", content=b"x", headers=ORIGIN).status_code == 400
    assert opened.client.post("/other/search/encode", headers=ORIGIN).status_code == 404


def test_queries_are_cut_and_escaped(opened: Opened) -> None:
    page = opened.page("?text=<script>alert(1)</script>%1b[31m" + "a" * 10_000)
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "Only the first 500 characters were searched" in page
    for address, status in (
        ("?like=train/none", 404),
        ("?picture=none", 404),
        ("?text=a&start=99999999999", 200),
        ("?text=a&start=99999", 200),
    ):
        assert opened.client.get(f"/run/search{address}").status_code == status


def test_pages_are_there_before_the_model_is(
    run: RunDirectory, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    loaded = load_model

    def slowly(source: str) -> Any:
        gate.wait(60)
        return loaded(source)

    monkeypatch.setattr("synthclip.models.load.load_model", slowly)
    waiting = Opened(run, model)
    page = waiting.page("?text=boat")
    assert "Loading the model" in page
    assert 'http-equiv="refresh"' in page
    gate.set()
    waiting.run.search.join()
    page = waiting.page("?text=boat")
    assert 'http-equiv="refresh"' not in page
    assert "No image is encoded yet" in page
    assert "Encode 144 images" in page
    sent = waiting.client.post("/run/search/encode?text=boat", headers=ORIGIN, follow_redirects=False)
    assert sent.headers["location"] == "/run/search?text=boat"
    waiting.run.search.join()
    assert len(tiles(waiting.page("?text=boat"))) == 60
