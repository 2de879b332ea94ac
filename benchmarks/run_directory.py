"""What `status` and a run with nothing to do cost, over run directories of growing size.

    python benchmarks/run_directory.py make /tmp/runs/5000 5000
    python benchmarks/run_directory.py measure /tmp/runs/5000

`make` writes a run of N shards, a third each of captions, matches and images, as the product would have: its
own shards, fingerprints, manifests and log; the data files are hard links to one small file of each kind.
With `--imported` the captions and matches come from that many JSON files. `measure` prints a row for each
command: each runs in a process of its own, once for the time and once to count what is opened and looked up.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.recipe import RECIPE_FILE, Recipe, load_recipe
from synthclip.run import durable, pipeline
from synthclip.run.durable import FileEntry, Manifest, seal
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory
from synthclip.schema import CAPTION, IMAGE, MATCH, REJECTED, SELECTED

_THIRD = 3
_PER_FILE = 2  # captions of a file of the balance stage: two shards of images
_REPORT = "<html><body>"
_CONTENTS: dict[str, bytes] = {}
_LINKS = itertools.count()


def make(out: Path, shards: int, imported: bool) -> None:
    """Write the run; what is synced to disk shard by shard in a real one is not here."""
    count = max(_THIRD, shards) // _THIRD
    sources = out.with_name(f"{out.name}-sources")
    sources.mkdir(parents=True)
    (sources / "concepts.txt").write_text("\n".join(f"concept {k:06d}" for k in range(count)))
    overrides = [
        "concepts.sources=[{kind: text, path: %s}]" % (sources / "concepts.txt"),
        "captions.concepts_per_shard=1",
        f"balance.captions_per_shard={_PER_FILE}",
        "images.captions_per_shard=1",
    ]
    if imported:
        (sources / "json").mkdir()
        (sources / "json/0.json").write_text(json.dumps([["a dog", [0]]] * 200))
        for k in range(1, count):  # copies: a file that is linked twice is known by one identity
            (sources / f"json/{k}.json").write_bytes((sources / "json/0.json").read_bytes())
        overrides += [f"captions.imported={sources / 'json'}", "match.imported=true"]
    recipe = load_recipe("demo", overrides)
    run = RunDirectory(out)
    run.write_text(RECIPE_FILE, recipe.to_yaml())
    durable.sync = lambda path: None
    for name in pipeline.STAGES:
        _fill(run, recipe, name, sources)
    run.log(event="stage", stage="report", shards=1, seconds=1.0)


def _fill(run: RunDirectory, recipe: Recipe, name: str, sources: Path) -> None:
    """Every shard of one stage, as if it had been made."""
    stage = pipeline.build_stage(name, recipe, run)
    run.write_stage_values(name, stage.values)
    if name == "concepts":
        pipeline.run(recipe, run.path, stages=["concepts"], console=Console(io.StringIO()))
        return
    counted = len(run.manifests("captions")) if name == "balance" else 0
    lines = []
    for shard in stage.shards():
        files = _files(name, shard.name, counted)
        notes: dict[str, Any] = {"train": counted, "heldout": 0} if name == "balance" else {}
        paths = sorted(files)
        entries = tuple(
            FileEntry(path, *_link(run.stage(name) / path, files[path], sources)) for path in paths
        )
        manifest = Manifest(shard.name, stage.fingerprint(shard), entries, max(1, counted), {"odd": 1}, notes)
        target = run.stage(name) / "manifests" / f"{shard.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(seal(manifest.to_values()), encoding="utf-8")
        lines.append({"event": "shard", "stage": name, "shard": shard.name, "rows": 1, "rejected": {}})
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.writelines(durable.to_line({"time": time.time(), **line, "seconds": 1.0}) for line in lines)
    stage.finish(run.manifests(name))


def _files(stage: str, shard: str, captions: int) -> dict[str, str]:
    """The kind of each file of a shard, by path."""
    rejected = {f"rejected/{shard}.parquet": "rejected"}
    if stage == "balance":
        parts = {f"train/{k:05d}.parquet": "balance" for k in range(captions // _PER_FILE)}
        return {"counts.parquet": "rejected"} | parts
    if stage == "images":
        return {f"{shard}.tar": "tar", f"{shard}.parquet": "images"} | rejected
    if stage in ("captions", "match"):
        return {f"{shard}.parquet": stage} | (rejected if stage == "captions" else {})
    return {"report.html": "report"} if stage == "report" else {f"model/{stage}.json": "tar"}


def _content(kind: str) -> bytes:
    schemas = {
        "captions": CAPTION,
        "match": MATCH,
        "images": IMAGE,
        "rejected": REJECTED,
        "balance": SELECTED,
    }
    if kind not in schemas:
        return _REPORT.encode() if kind == "report" else bytes(10_240)
    sink, rows = pa.BufferOutputStream(), _PER_FILE if kind == "balance" else 1
    columns = [pa.nulls(rows, field.type) for field in schemas[kind]]
    pq.write_table(pa.table(columns, names=schemas[kind].names), sink)
    return bytes(sink.getvalue())


def _link(target: Path, kind: str, sources: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of the target, a link to the one file of its kind."""
    content = _CONTENTS.setdefault(kind, _content(kind))
    links = next(_LINKS) // 50_000  # a file takes 65,000
    origin = sources / f"{kind}-{links}"
    if not origin.exists():
        origin.write_bytes(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(origin, target)
    return len(content), hashlib.sha256(content).hexdigest()


def _command(name: str, out: Path) -> Callable[[], object]:
    """What is measured; its imports are done."""
    for stage in pipeline.STAGES:
        pipeline._class(stage)
    recipe = load_recipe(out)
    if name == "status":
        return lambda: Console(io.StringIO()).status(pipeline.status(out))
    told = io.StringIO()

    def run() -> None:
        pipeline.run(recipe, out, console=Console(told))
        assert "nothing to do" in told.getvalue(), told.getvalue()

    return run


def _timed(name: str, out: Path) -> dict[str, float]:
    command = _command(name, out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    command()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def _counted(name: str, out: Path) -> Mapping[str, int]:
    """Files opened, folders listed, and files looked up by `os.stat` and its kin."""
    command, counts = _command(name, out), Counter[str]()
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in ("open", "os.scandir", "os.listdir"):
            counts["opens" if event == "open" else "listed"] += 1

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts["stats"] += 1
            return function(*arguments, **options)

        return call

    sys.addaudithook(hook)
    os.stat, os.lstat = counting(os.stat), counting(os.lstat)
    command()
    active = False
    return counts


def measure(out: Path) -> None:
    print("| command | CPU s | wall s | opens | stats | folders | MiB |\n|---|--:|--:|--:|--:|--:|--:|")
    for name in ("status", "status", "run"):  # the first may find no index
        timed, counted = (_child(kind, name, out) for kind in ("timed", "counted"))
        print(
            f"| {name} | {timed['cpu']:.2f} | {timed['wall']:.2f} | {counted.get('opens', 0):,} | "
            f"{counted.get('stats', 0):,} | {counted.get('listed', 0):,} | {timed['mib']:.0f} |",
            flush=True,
        )


def _child(kind: str, name: str, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, kind, str(out), name]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("do", choices=["make", "measure", "timed", "counted"])
    parser.add_argument("out", type=Path)
    parser.add_argument("what", nargs="?")
    parser.add_argument("--imported", action="store_true")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if given.do == "make":
            make(given.out.resolve(), int(given.what), given.imported)
        elif given.do == "measure":
            measure(given.out)
        else:
            print(json.dumps({"timed": _timed, "counted": _counted}[given.do](given.what, given.out)))


if __name__ == "__main__":
    main()
