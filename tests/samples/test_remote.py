"""Addresses: what works, and what is said of the others."""

import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import simplejpeg
from numpy import full, uint8

from synthclip.errors import SynthClipError
from synthclip.samples import SampleError, any_shards, files


def jpeg(level: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(full((16, 16, 3), level, uint8)))


CONTENT = {f"{n}.{kind}": data for n in range(40) for kind, data in (("jpg", jpeg(n)), ("txt", b"%d" % n))}


def tar_of(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one tar; `knows_ranges` says whether it answers with parts."""

    knows_ranges = True
    content = tar_of(CONTENT)

    def do_HEAD(self) -> None:
        self._answer(b"", len(self.content), 200)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        if not asked or not self.knows_ranges:
            self._answer(self.content, len(self.content), 200)
            return
        first, last = (int(value) for value in asked.removeprefix("bytes=").split("-"))
        part = self.content[first : last + 1]
        self._answer(part, len(part), 206, f"bytes {first}-{first + len(part) - 1}/{len(self.content)}")

    def _answer(self, body: bytes, length: int, status: int, part: str = "") -> None:
        if not self.path.endswith("0.tar"):
            self.send_error(404)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/0.tar"
    server.shutdown()


def test_a_tar_is_read_from_a_web_server(address: str) -> None:
    assert files.expand(address) == [address]
    source = any_shards(files.expand(address))
    assert [(source.read(n).text, source.read(n).image) for n in (39, 0)] == [
        ("39", jpeg(39)),
        ("0", jpeg(0)),
    ]
    with pytest.raises(SynthClipError, match=r"1\.tar: no such file"):
        files.expand(address.replace("0.tar", "1.tar"))


def test_a_server_without_ranges_never_gives_another_samples_bytes(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = any_shards([address])
    monkeypatch.setattr(Server, "knows_ranges", False)
    with pytest.raises(SampleError, match=r"unreadable shard.*the server sends no parts of files"):
        source.read(3)


def test_a_server_without_ranges_is_named_before_training(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "knows_ranges", False)
    monkeypatch.setattr(Server, "content", Server.content + bytes(2**24))
    with pytest.raises(SynthClipError, match=r"0\.tar: cannot be read .*the server sends no parts") as caught:
        any_shards([address])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(SynthClipError, match=r"no such file|cannot be read") as caught:
        files.expand("http://127.0.0.1:9/0.tar")
    assert "\n" not in str(caught.value)


def test_a_chain_of_addresses_works(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of(CONTENT))
    chain = f"simplecache::file://{tmp_path}/0.tar"
    assert any_shards(files.expand(chain)).read(7).text == "7"
    with pytest.raises(SynthClipError, match="chained addresses take no wildcards"):
        files.expand(f"simplecache::file://{tmp_path}/*.tar")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:curl -s http://a/0.tar", "commands are not run"),
        ("nosuch://bucket/0.tar", "Protocol not known: nosuch"),
        ("gs://bucket/0.tar", "gcsfs"),
    ],
)
def test_what_cannot_be_read_is_one_line(address: str, message: str) -> None:
    with pytest.raises(SynthClipError, match=message) as caught:
        files.expand(address)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    for path in (str(tmp_path / "0.tar"), "/dev/zero", str(tmp_path)):
        with pytest.raises(SynthClipError, match="not a regular file"):
            files.expand(path)
