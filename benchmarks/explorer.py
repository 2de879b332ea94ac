"""How quickly the explorer answers, and how much memory it takes, over runs of growing size.

    python benchmarks/explorer.py make /tmp/runs/1m 1000000
    python benchmarks/explorer.py measure /tmp/runs/1m
    python benchmarks/explorer.py search /tmp/features 1000000

`make` writes the shards of a run of N images with the product's own writers, 4.6 KB an image; the pictures
are few, each written many times. `measure` starts the explorer in a process of its own, by default with an
empty cache, waits until its index is there, and asks as a browser does: pictures by six connections at once.
Times are medians of five, in milliseconds. `search` writes N random features of 512 dimensions as the
explorer stores them, unless they are there, and searches them for a text that ViT-B/16 encodes, in this
process.
"""

import argparse
import hashlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
import simplejpeg

from synthclip import keys, schema
from synthclip.recipe import RECIPE_FILE, load_recipe
from synthclip.run.store import Outcome, RunDirectory
from synthclip.samples.tars import TarWriter
from synthclip.view import vectors

_PER_SHARD = 10_000
_CONCEPTS = 20_000
_WORDS = 5_000
_REFUSED = 50  # one image in so many
_REPEATS = 5
_CONNECTIONS = 6


def make(out: Path, images: int) -> None:
    """Each image has a caption of its own: the most captions that N images can have."""
    run = RunDirectory(out)
    run.write_text(RECIPE_FILE, load_recipe("demo").to_yaml())
    names = [f"thing{number}" for number in range(_CONCEPTS)]
    with run.begin("concepts", "00000", "f") as writer:
        rows = [{"concept_id": at, "text": name, "source": "made"} for at, name in enumerate(names)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(len(rows)))
    random = np.random.default_rng(0)
    jpegs = [
        simplejpeg.encode_jpeg(random.integers(0, 255, (32, 32, 3), np.uint8), quality=75) for _ in range(64)
    ]
    digests = [hashlib.sha256(jpeg).hexdigest() for jpeg in jpegs]
    for start in range(0, images, _PER_SHARD):
        count = min(_PER_SHARD, images - start)
        shard = f"train/{start // _PER_SHARD:05d}"
        texts, concepts = _captions(random, count, names)
        ids = keys.text_ids(texts)
        scores, which = random.normal(0.3, 0.05, count), random.integers(0, len(jpegs), count)
        kept = []
        with run.begin("images", shard, "f", schema.REJECTED_IMAGE) as writer:
            with TarWriter(writer.path(f"{shard}.tar")) as tar:
                for at in np.argsort(ids).tolist():
                    key = keys.image_key(int(ids[at]), 0)
                    row = {
                        "key": key,
                        "caption_id": int(ids[at]),
                        "text": texts[at],
                        "variant": 0,
                        "seed": at,
                        "backend": f"painter {at % 3}",
                        "scores": [("clip", float(scores[at]))],
                    }
                    if at % _REFUSED == 0:
                        writer.reject({**row, "attempt": 0}, ("blank", "not alike", "unsafe")[at % 3])
                        continue
                    jpeg = jpegs[which[at]]
                    place = tar.add(key, jpeg, texts[at], {"key": key})
                    row |= {
                        "concept_ids": concepts[at],
                        "sha256": digests[which[at]],
                        "shard": f"{shard}.tar",
                    }
                    kept.append({**row, "width_px": 32, "height_px": 32, **place._asdict()})
            writer.rows(f"{shard}.parquet", schema.IMAGE, kept)
            writer.commit(Outcome(len(kept)))
    print(f"{out}: {images:,} images in {-(-images // _PER_SHARD)} shards")


def _captions(random: np.random.Generator, count: int, names: list[str]) -> tuple[list[str], list[list[int]]]:
    """Concepts and words as text has them: a few of them often, most of them seldom."""
    concepts = np.minimum(random.zipf(1.2, (count, 2)) - 1, len(names) - 1)
    words = np.minimum(random.zipf(1.3, (count, 6)) - 1, _WORDS - 1)
    texts = [
        f"A {names[one]} and a {names[other]} " + " ".join(f"word{word}" for word in row) + f" {at:x}"
        for at, ((one, other), row) in enumerate(zip(concepts.tolist(), words.tolist(), strict=True))
    ]
    return texts, [sorted(set(row)) for row in concepts.tolist()]


class Explorer:
    """The server in a process of its own, and a browser's connections to it."""

    def __init__(self, run: Path, cache: str) -> None:
        command = [sys.executable, "-m", "synthclip", "view", str(run), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": cache}
        )
        assert self.process.stdout
        address = urlsplit(self.process.stdout.readline().split()[0])
        self._host, self._port = address.hostname or "", address.port
        self._pool, self._local = ThreadPoolExecutor(_CONNECTIONS), threading.local()
        self._name = run.name

    def get(self, address: str) -> bytes:
        return next(self.get_all([f"/{self._name}/{address}"]))

    def get_all(self, addresses: list[str]) -> Iterator[bytes]:
        return self._pool.map(self._answer, addresses)

    def _answer(self, address: str) -> bytes:
        for fresh in (False, True):  # a connection that was idle for long is closed by the server
            if fresh or not hasattr(self._local, "connection"):
                self._local.connection = http.client.HTTPConnection(self._host, self._port)
            try:
                self._local.connection.request("GET", address)
                answer = self._local.connection.getresponse()
                content: bytes = answer.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                continue
            assert answer.status == 200, (address, answer.status, content[:200])
            return content
        raise ConnectionError(address)

    def page_with_pictures(self, address: str) -> int:
        """How many pictures came."""
        page = self.get(address).decode()
        return len(list(self.get_all(re.findall(r'<img src="([^"]+)"', page))))

    def memory_mib(self, name: str = "VmRSS") -> float:
        return _memory_mib(self.process.pid, name)

    def cpu_s(self) -> float:
        """What its process has worked so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure(run: Path, kept: Path | None) -> None:
    with tempfile.TemporaryDirectory() as new:
        cache = str(kept or new)
        started = time.monotonic()
        explorer = Explorer(run, cache)
        try:
            _show("start", (time.monotonic() - started) * 1000)
            _show("first page while the index is made", _timed(lambda: explorer.get("gallery"))[0])
            empty = explorer.memory_mib()
            while b"Still indexing" in explorer.get("gallery") or b"No image yet" in explorer.get("gallery"):
                time.sleep(0.2)
            _show("index, s", time.monotonic() - started)
            _show("start and index, CPU s", explorer.cpu_s())
            (index,) = Path(cache).rglob("*.sqlite")
            _show("index, MB", index.stat().st_size / 1e6)
            _show("memory before, MiB", empty)
            _show("memory with the index, MiB", explorer.memory_mib())
            asked = {
                "first page": "gallery",
                "a frequent word": "gallery?q=word0",
                "a rare word": "gallery?q=word4321",
                "no word of it": "gallery?q=nowhere",
                "a frequent and a rare word": "gallery?q=word0+word4321",
                "a frequent concept": "gallery?concept=thing0",
                "a rare concept": "gallery?concept=thing7777",
                "concept and word": "gallery?concept=thing0&q=word7",
                "one painter": "gallery?painter=painter+1",
                "refused": "gallery?show=refused",
                "refused, a frequent word": "gallery?show=refused&q=word0",
                "concepts": "concepts?sort=-pictures",
                "live": "",
                "by score": "gallery?sort=clip",
                "by score, a frequent word": "gallery?sort=clip&q=word0",
                "by score, a rare concept": "gallery?sort=-clip&concept=thing7777",
            }
            for name, address in asked.items():
                _show(name, *_timed(lambda address=address: explorer.get(address)))  # type: ignore[misc]
            _show("200 pictures, with them", *_timed(lambda: explorer.page_with_pictures("gallery?size=200")))
            _show("50 pages further", *_timed(lambda: explorer.get(_far(explorer))))
            _show("memory after, MiB", explorer.memory_mib())
            _show("most memory, MiB", explorer.memory_mib("VmHWM"))
        finally:
            explorer.stop()


def search(folder: Path, images: int) -> None:
    import torch

    from synthclip.evaluation.encoder import Encoder
    from synthclip.models.build import build_model
    from synthclip.models.load import as_loaded
    from synthclip.recipe.training import PAPER_MODEL, ModelConfig

    shards = []
    for start in range(0, images, _PER_SHARD):
        path = folder / f"{start // _PER_SHARD:05d}.npy"
        if (features := vectors.read(path)) is None:
            made = np.random.default_rng(start).standard_normal(
                (min(_PER_SHARD, images - start), 512), np.float32
            )
            vectors.write(path, made / np.linalg.norm(made, axis=1, keepdims=True))
            features = vectors.read(path)
        assert features is not None
        shards.append((start, features))
    torch.set_num_threads(1)  # as the explorer does
    encoder = Encoder(*as_loaded(build_model(ModelConfig(name=PAPER_MODEL))))
    query = encoder.texts(["a boat at sunset"])[0].numpy()
    _show("memory before, MiB", _memory_mib("self"))
    started = time.process_time()
    _show("text", *_timed(lambda: encoder.texts(["a boat at sunset"])))
    _show("text, CPU", (time.process_time() - started) * 1000 / _REPEATS)
    started = time.process_time()
    _show("the first 60", *_timed(lambda: vectors.nearest(shards, query, 60)))
    _show("the first 60, CPU", (time.process_time() - started) * 1000 / _REPEATS)
    _show("the first 1,000", *_timed(lambda: vectors.nearest(shards, query, 1000)))
    _show("memory after, MiB", _memory_mib("self"))
    _show("of it not mapped files, MiB", _memory_mib("self", "RssAnon"))
    exact = np.concatenate([features.astype(np.float32) @ query for _, features in shards])
    best = np.argsort(-exact, kind="stable")[:1000]
    assert [image for image, _ in vectors.nearest(shards, query, 1000)] == best.tolist()


def _memory_mib(process: int | str, name: str = "VmRSS") -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) / 1024


def _far(explorer: Explorer) -> str:
    """The address of a page deep in the gallery."""
    if not hasattr(explorer, "far"):
        address = "gallery?size=200"
        for _ in range(50):
            found = re.search(rb'rel="next" href="/[^/]+/([^"]+)"', explorer.get(address))
            if found is None:
                break
            address = found[1].decode().replace("&amp;", "&")
        explorer.far = address  # type: ignore[attr-defined]
    return str(explorer.far)  # type: ignore[attr-defined]


def _timed(ask: Callable[[], object]) -> tuple[float, float]:
    """The median, and the first one, which finds nothing in the caches."""
    times = []
    for _ in range(_REPEATS):
        started = time.monotonic()
        ask()
        times.append((time.monotonic() - started) * 1000)
    return median(times), times[0]


def _show(name: str, value: float, first: float | None = None) -> None:
    print(f"{name:40}{value:10.1f}" + (f"{first:10.1f} at first" if first is not None else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("run", type=Path)
    making.add_argument("images", type=int, nargs="?", default=1_000_000)
    measuring = commands.add_parser("measure")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("--cache", type=Path, help="a folder for the index, to measure again")
    searching = commands.add_parser("search")
    searching.add_argument("folder", type=Path)
    searching.add_argument("images", type=int, nargs="?", default=1_000_000)
    options = parser.parse_args()
    if options.command == "search":
        search(options.folder, options.images)
    elif options.command == "make":
        make(options.run, options.images)
    else:
        measure(options.run, options.cache)


if __name__ == "__main__":
    main()
