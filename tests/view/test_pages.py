"""The pages as a browser gets them, whatever the run holds and whoever asks."""

import re
import shutil
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app as cli
from synthclip.errors import SynthClipError
from synthclip.run.store import RunDirectory
from synthclip.view.app import application, runs_in, serve
from synthclip.view.explorer import Explorer

BASE = "http://localhost"


def opened(run: RunDirectory, token: str | None = None) -> TestClient:
    explorer = Explorer([run.path])
    explorer.runs["run"].index.refresh()
    return TestClient(application(explorer, token), base_url=BASE)


def jpegs(html: str) -> list[str]:
    return re.findall(r'<img src="(/run/jpeg/[^"]+)"', html)


def test_the_gallery_shows_the_images_of_the_tars(client: TestClient, drawn: RunDirectory) -> None:
    page = client.get("/run/gallery?variants=all&size=200").text
    assert "144 images" in page
    addresses = jpegs(page)
    assert len(addresses) == 144
    answer = client.get(addresses[0])
    (row,) = (
        row
        for row in schema.read_table(drawn.file("images", "train/00000.parquet")).to_pylist()
        if row["sha256"] in addresses[0]
    )
    tar = drawn.file("images", "train/00000.tar").read_bytes()
    assert answer.content == tar[row["offset"] : row["offset"] + row["length"]]
    assert "immutable" in answer.headers["cache-control"]
    again = client.get(addresses[0], headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_without_scripts_links_lead_through_the_whole_gallery(client: TestClient) -> None:
    address, seen = "/run/gallery?variants=all&size=50&sort=contrast", list[str]()
    while address:
        page = client.get(address).text
        seen += jpegs(page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        address = following[1].replace("&amp;", "&") if following else ""
    assert len(seen) == len(set(seen)) == 144


def test_a_picture_has_its_caption_its_siblings_and_its_commands(
    client: TestClient, drawn: RunDirectory
) -> None:
    row = schema.read_table(drawn.file("images", "train/00000.parquet")).to_pylist()[5]
    page = client.get(f"/run/image/train/{row['key']}").text
    assert f"synthclip trace {drawn.path} {row['key']}" in page
    assert len(jpegs(page)) == 3
    made = client.get(f"/run/trace/train/{row['key']}").text
    assert "tiny &lt;llm&gt;, seed" in made
    refused = client.get("/run/gallery?reason=blank").text
    assert refused.count("no-picture") == 2
    address = re.search(r'href="(/run/image/train/[^"]+attempt=1)"', refused)
    assert address
    assert "No picture of it was kept" in client.get(address[1]).text


def test_text_from_data_is_shown_and_never_run(client: TestClient) -> None:
    for address in (
        "/run/gallery?variants=all&size=200",
        "/run/gallery?q=script",
        "/run/gallery?q=<script>alert(1)</script>",
    ):
        page = client.get(address).text
        assert "<script>alert" not in page
        assert not set("\0\x1b\u202e") & set(page)
    shown = client.get("/run/gallery?q=alert").text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; a ␀ cat &amp; a␛[31m dog" in shown
    policy = client.get("/run/gallery").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy


@pytest.mark.parametrize(
    "address",
    [
        "/run/gallery?q=" + "a" * 10_000,
        "/run/gallery?q=" + "%22%00*%27-" * 50,
        "/run/gallery?after=x&size=-1",
        "/run/gallery?after=9999999999999999999999/1&sort=nothing&show=rubbish",
        "/run/gallery?sort=contrast&after=nan/3&q=wall&size=99999999",
    ],
)
def test_odd_questions_are_answered(client: TestClient, address: str) -> None:
    assert client.get(address).status_code == 200


@pytest.mark.parametrize(
    "address",
    ["/other/gallery", "/run/image/train/none", "/run/jpeg/99999999999999999999/x", "/run/jpeg/1/x", "/x"],
)
def test_what_is_not_there_is_said_in_a_page(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_a_damaged_tar_is_named_and_the_others_are_shown(run: RunDirectory) -> None:
    client = opened(run)
    address = jpegs(client.get("/run/gallery?split=heldout").text)[0]
    tar = run.file("images", "heldout/00000.tar")
    tar.write_bytes(bytes(tar.stat().st_size))
    answer = client.get(address)
    assert answer.status_code == 503
    assert "synthclip verify" in answer.text
    assert client.get(jpegs(client.get("/run/gallery?split=train").text)[0]).status_code == 200


def test_a_run_that_moves_away_leaves_pages_that_say_so(run: RunDirectory) -> None:
    client = opened(run)
    page = client.get("/run/gallery").text
    shutil.move(run.path, run.path.with_name("elsewhere"))
    assert client.get(jpegs(page)[0]).status_code == 503
    key = re.search(r"/run/image/train/([^\"]+)", page)
    assert key
    answer = client.get(f"/run/trace/train/{key[1]}")
    assert answer.status_code == 503
    assert "no such run directory" in answer.text


def test_other_host_names_are_refused(client: TestClient) -> None:
    for name in ("localhost:8765", "127.0.0.1", "[::1]:99"):
        assert client.get("/run/gallery", headers={"host": name}).status_code == 200
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        assert client.get("/run/gallery", headers={"host": name}).status_code == 421


def test_on_a_network_the_first_address_needs_the_token(drawn: RunDirectory) -> None:
    client = opened(drawn, token="secret")
    assert client.get("/run/gallery").status_code == 401
    assert client.get("/run/gallery?token=wrong").status_code == 401
    first = client.get("/run/gallery?token=secret&q=wall", follow_redirects=False)
    assert first.headers["location"] == "/run/gallery?q=wall"
    assert "HttpOnly" in first.headers["set-cookie"]
    assert client.get("/run/gallery").status_code == 200
    away = client.get("//evil.example/?token=secret", follow_redirects=False)
    assert not away.headers.get("location", "/").startswith("//")


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["view", str(tmp_path)])
    assert isinstance(result.exception, SynthClipError)
    assert "neither a run directory nor a sweep's" in str(result.exception)


def test_a_port_that_is_taken_is_refused_in_one_line(drawn: RunDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SynthClipError, match=rf"--port {port}: cannot listen there"):
            serve([drawn.path], host="127.0.0.1", port=port, say=lambda _: None)


def test_a_sweep_is_its_runs(drawn: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: s\n")
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(drawn.path / "recipe.yaml", tmp_path / "runs" / name)
    assert [path.name for path in runs_in([tmp_path, drawn.path])] == ["a", "b", "run"]
