"""Every byte of a run is covered: what is flipped is noticed, and repaired where a run can make it again."""

import io
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_stages

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run import pipeline
from synthclip.run.progress import Console
from synthclip.run.store import Outcome, RunDirectory
from synthclip.run.verify import repair, verify

pytestmark = pytest.mark.slow

FLIPS = int(os.environ.get("SYNTHCLIP_FLIPS", "100"))


@pytest.fixture(autouse=True)
def _small_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STAGES", small_stages.STAGES)
    monkeypatch.setattr("synthclip.run.verify.STAGES", small_stages.STAGES)


def run(out: Path, *overrides: str, stages: Sequence[str] = ()) -> str:
    shown = io.StringIO()
    recipe = load_recipe("demo", ["captions.per_concept=3", "engine.workers=0", *overrides])
    pipeline.run(recipe, out, stages=tuple(stages) or tuple(small_stages.STAGES), console=Console(shown))
    return shown.getvalue()


def files(out: Path) -> dict[str, bytes]:
    found = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def made(out: Path) -> list[tuple[str, str]]:
    lines = RunDirectory(out).metrics()
    return [(line["stage"], line["shard"]) for line in lines if line["event"] == "shard"]


def test_a_run_as_it_was_written_is_without_damage(tmp_path: Path) -> None:
    run(tmp_path)
    assert verify(tmp_path) == []
    run(tmp_path)
    assert verify(tmp_path) == []


def test_every_flipped_byte_is_noticed_and_named(tmp_path: Path) -> None:
    run(tmp_path)
    contents = files(tmp_path)
    draw = random.Random(0)
    for number in range(FLIPS):
        name = draw.choice(sorted(contents)) if number >= len(contents) else sorted(contents)[number]
        damaged = bytearray(contents[name])
        damaged[draw.randrange(len(damaged))] ^= draw.randrange(1, 256)
        (tmp_path / name).write_bytes(damaged)
        assert [one.path for one in verify(tmp_path)] == [name]
        (tmp_path / name).write_bytes(contents[name])
    assert verify(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "remade"),
    [
        ("squares/00001.parquet", [("squares", "00001")]),
        ("squares/manifests/00001.json", [("squares", "00001")]),
        ("numbers/00000.parquet", [("numbers", "00000")]),
        ("total.txt", []),
        ("total/stage.json", []),
        ("checksums.json", []),
        ("metrics.jsonl", []),
    ],
)
def test_repair_makes_just_what_is_damaged_again(
    tmp_path: Path, path: str, remade: list[tuple[str, str]]
) -> None:
    run(tmp_path)
    before, shards = files(tmp_path), made(tmp_path)
    lines = len(RunDirectory(tmp_path).metrics())
    raw = bytearray(before[path])
    raw[len(raw) // 3] ^= 4
    (tmp_path / path).write_bytes(raw)
    damaged = verify(tmp_path)
    assert [one.path for one in damaged] == [path]
    repair(tmp_path, damaged, Console(io.StringIO()))
    after = files(tmp_path)
    if path == "metrics.jsonl":
        assert len(RunDirectory(tmp_path).metrics()) == lines - 1
    else:
        assert made(tmp_path)[len(shards) :] == remade
        assert {**after, "metrics.jsonl": b""} == {**before, "metrics.jsonl": b""}
    assert verify(tmp_path) == []


def test_repair_of_several_stages_goes_through_those_between(tmp_path: Path) -> None:
    run(tmp_path)
    before, shards = files(tmp_path), made(tmp_path)
    for path in ("numbers/00002.parquet", "total/all.parquet"):
        raw = bytearray(before[path])
        raw[9] ^= 1
        (tmp_path / path).write_bytes(raw)
    repair(tmp_path, verify(tmp_path), Console(io.StringIO()))
    assert made(tmp_path)[len(shards) :] == [("numbers", "00002"), ("total", "all")]
    assert {**files(tmp_path), "metrics.jsonl": b""} == {**before, "metrics.jsonl": b""}


def test_a_damaged_recipe_is_named_and_not_guessed(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    damaged = verify(tmp_path)
    assert [one.path for one in damaged] == ["recipe.yaml"]
    with pytest.raises(SynthClipError, match="damaged or edited, and there is no copy: run `synthclip run"):
        repair(tmp_path, damaged, Console(io.StringIO()))
    run(tmp_path)
    assert verify(tmp_path) == []


def test_nothing_is_made_from_a_damaged_file(tmp_path: Path) -> None:
    run(tmp_path, stages=["numbers"])
    path = tmp_path / "numbers/00001.parquet"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SynthClipError, match=r"numbers/00001.parquet: its SHA-256 .* verify .* --repair`"):
        run(tmp_path)
    assert not (tmp_path / "squares/00001.parquet").exists()


@pytest.mark.parametrize("path", ["../../victim", "/etc/victim", "a/../../../victim", "", 5])
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path: Path, path: object) -> None:
    out = tmp_path / "run"
    run(out)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    text = (
        (out / "numbers/manifests/00000.json")
        .read_text()
        .replace('"00000.parquet"', repr(path).replace("'", '"'))
    )
    (out / "numbers/manifests/zzz.json").write_text(text)
    for attempt in (lambda: run(out), lambda: pipeline.status(out), lambda: verify(out)):
        with pytest.raises(
            SynthClipError, match=r"zzz.json: names .* outside its stage's folder: remove this"
        ):
            attempt()
    assert victim.read_text() == "precious"


def test_nothing_is_removed_through_a_link_that_leads_outside(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.begin("stage", "0", "f") as writer:
        writer.path("folder/a").write_text("a")
        writer.commit(Outcome(1))
    (tmp_path / "run/stage/folder").rename(tmp_path / "elsewhere")
    (tmp_path / "run/stage/folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SynthClipError, match="a link leads out of its stage's folder"):
        directory.remove("stage", "0")
    assert (tmp_path / "elsewhere/a").exists()


def test_files_that_others_write_are_covered_too(tmp_path: Path) -> None:
    log = tmp_path / "logs/tensorboard/events"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"figures")
    RunDirectory(tmp_path).write_text("recipe.yaml", load_recipe("demo", ["engine.workers=0"]).to_yaml())
    run(tmp_path)
    assert verify(tmp_path) == []
    log.write_bytes(b"figurez")
    damaged = verify(tmp_path)
    assert [one.path for one in damaged] == ["logs/tensorboard/events"]
    repair(tmp_path, damaged, Console(io.StringIO()))
    assert verify(tmp_path) == []
