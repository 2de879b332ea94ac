"""Resume, staleness and refusals, over real stages; in real processes where these are the topic."""

import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import small_stages

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run import pipeline
from synthclip.run.engine import Progress, Shard
from synthclip.run.progress import Console
from synthclip.run.stage import Stage
from synthclip.run.store import RunDirectory
from synthclip.schema import SCHEMA_VERSION

pytestmark = pytest.mark.slow

THREE_SHARDS = ("captions.per_concept=3",)
HERE = "engine.workers=0"
IN_PROCESSES = "engine.workers=auto"


@pytest.fixture(autouse=True)
def _small_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STAGES", small_stages.STAGES)


def run(out: Path, overrides: Sequence[str] = THREE_SHARDS, stages: Sequence[str] = ()) -> str:
    """Run and return what was told."""
    told = io.StringIO()
    recipe = load_recipe("demo", [HERE, *overrides])
    pipeline.run(recipe, out, stages=tuple(stages) or tuple(small_stages.STAGES), console=Console(told))
    return told.getvalue()


def made(out: Path) -> list[tuple[str, str]]:
    """The shards that were made, in order of finishing."""
    lines = RunDirectory(out).metrics()
    return [(line["stage"], line["shard"]) for line in lines if line["event"] == "shard"]


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("metrics.jsonl", ".lock", "recipe.yaml", "checksums.json")
    }


def test_result_is_right_and_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = run(out)
    total = pq.read_table(out / "total/all.parquet")["value"].to_pylist()
    assert total == [sum(n * n for n in range(0, 30, 2))]
    assert "15 rejected" in told
    state = {state.stage: state for state in pipeline.status(out).stages}
    assert [state[name].state for name in small_stages.STAGES] == ["current"] * 3
    assert state["squares"].rows == 15
    assert state["squares"].rejected == {"odd": 15}


def test_the_last_figures_taken_in_training_are_shown(tmp_path: Path) -> None:
    run(tmp_path)
    for step, value in ((0, 0.1), (50, 0.25)):
        RunDirectory(tmp_path).log(event="eval", step=step, **{"cifar10/zero_shot/top1": value})
    told = io.StringIO()
    Console(told).status(pipeline.status(tmp_path))
    assert "evaluated in training, after step 50: cifar10/zero_shot/top1 0.25" in told.getvalue()


def test_second_run_makes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = made(tmp_path / "run")
    told = run(tmp_path / "run")
    assert "nothing to do" in told
    assert made(tmp_path / "run") == before


def test_files_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    run(tmp_path / "here")
    for workers in (1, 2, "auto"):
        run(tmp_path / str(workers), [*THREE_SHARDS, f"engine.workers={workers}"])
        assert files(tmp_path / str(workers)) == files(tmp_path / "here")


def test_a_deleted_shard_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    whole, before = files(out), made(out)
    (out / "squares/00001.parquet").unlink()
    told = run(out)
    assert "1 of 3 shards missing: 00001" in told
    assert made(out)[len(before) :] == [("squares", "00001")]  # it came out the same: the sum still holds
    assert files(out) == whole


def test_a_changed_value_makes_its_stage_and_what_follows_stale(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    before = made(out)
    told = run(out, [*THREE_SHARDS, "seed=2"])
    plan = told.split("done:")[0]
    assert "numbers   stale: seed: 0 -> 2" in plan
    assert "after numbers" in plan
    assert plan.count("seed: 0 -> 2") == 1, "what waits for a stage repeats none of its changes"
    assert {stage for stage, _ in made(out)[len(before) :]} == {"numbers", "squares", "total"}
    run(tmp_path / "fresh", [*THREE_SHARDS, "seed=2"])
    assert files(out) == files(tmp_path / "fresh")


def test_a_value_of_a_late_stage_leaves_the_early_ones(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    before = made(out)
    told = run(out, [*THREE_SHARDS, "balance.t=5"])
    assert "numbers   current" in told
    assert "balance.t: 8.0 -> 5.0" in told
    assert sorted(made(out)[len(before) :]) == [("squares", f"0000{n}") for n in range(3)]


def test_of_a_changed_list_the_entry_is_named(tmp_path: Path) -> None:
    run(tmp_path / "run")
    told = run(tmp_path / "run", [*THREE_SHARDS, "captions.templates.0.name=plain"])
    assert "numbers   stale: captions.templates.0.name: few-shot -> plain" in told


def test_a_shard_of_unknown_size_is_told_without_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthclip.run.progress._PLAIN_SECONDS", 0)
    told = io.StringIO()
    for size in (0, 40):
        shard = Shard("all", {}, size=size)
        with Console(told).stage("train", [shard], 1) as bar:
            bar.progress(Progress(shard, 10, {"loss": 0.5}))
            bar.progress(Progress(shard, 0))  # a heartbeat, of which nothing is shown
    unknown, known = (line for line in told.getvalue().splitlines() if "loss" in line)
    assert "%" not in unknown
    assert "left" not in unknown
    assert "10/40 (25%)" in known


def test_fewer_shards_leave_no_trace_of_the_others(tmp_path: Path) -> None:
    run(tmp_path / "run")
    run(tmp_path / "run", ["captions.per_concept=2"])
    run(tmp_path / "fresh", ["captions.per_concept=2"])
    assert files(tmp_path / "run") == files(tmp_path / "fresh")


def test_a_runtime_field_makes_nothing_stale(tmp_path: Path) -> None:
    run(tmp_path / "run")
    told = run(tmp_path / "run", [*THREE_SHARDS, "engine.workers=1"])
    assert "nothing to do" in told


@pytest.mark.parametrize("damage", ["truncated", "not json", "no files"])
def test_a_damaged_manifest_counts_as_missing(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    run(out)
    whole = files(out)
    path = out / "numbers/manifests/00002.json"
    broken = {
        "truncated": path.read_text()[:40],
        "not json": "\0",
        "no files": json.dumps({"shard": "00002"}),
    }
    path.write_text(broken[damage])
    run(out)
    assert files(out) == whole


def test_a_run_with_nothing_to_do_opens_each_manifest_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    run(out)
    found = Counter(Path(path).relative_to(out) for path in opened if "/manifests/" in path)
    expected = (path.relative_to(out) for path in out.glob("*/manifests/*.json"))
    assert found == dict.fromkeys(expected, 1)


def test_shards_are_listed_once_unless_what_they_are_made_of_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run(out)
    listed: list[str] = []
    for stage in (small_stages.Numbers, small_stages.Squares, small_stages.Total):

        def shards(self: Stage, original: Callable[..., Sequence[Shard]] = stage.shards) -> Sequence[Shard]:
            listed.append(self.name)
            return original(self)

        monkeypatch.setattr(stage, "shards", shards)
    run(out)
    assert listed == ["numbers", "squares", "total"]
    listed.clear()
    (out / "squares/00001.parquet").unlink()
    run(out)
    assert listed == ["numbers", "squares", "total"]


def test_a_failed_attempt_is_shown_logged_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(small_stages.STAGES, "squares", "small_stages:FlakySquares")
    shown = run(tmp_path / "run", [*THREE_SHARDS, IN_PROCESSES])
    assert "squares   shard 00001: attempt 1 failed: ZeroDivisionError: the first attempt" in shown
    assert "3 of 3 shards made, 15 rows, 15 rejected, 1 failed attempts" in shown
    status = pipeline.status(tmp_path / "run")
    (failed,) = status.failed["squares"]
    assert (failed["shard"], failed["attempt"], failed["final"]) == ("00001", 1, False)
    table = io.StringIO()
    Console(table).status(status)
    assert "failed attempts in squares: 1, last shard 00001: ZeroDivisionError" in table.getvalue()


def test_a_run_of_another_version_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    (out / "checksums.json").unlink()
    for path in out.glob("*/stage.json"):
        values = json.loads(path.read_text())
        assert values.pop("schema") == SCHEMA_VERSION
        path.write_text(json.dumps(values))

    def contents() -> dict[Path, tuple[int, bytes]]:
        found = out.rglob("*")
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in found
        }

    before = contents()
    for attempt in (lambda: run(out), lambda: pipeline.status(out)):
        with pytest.raises(SynthClipError, match=r"data format 1, this one writes 2\): choose another --out"):
            attempt()
    assert contents() == before


def test_stage_alone_needs_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="'squares' reads 'numbers', which is new: run `synthclip numb"):
        run(tmp_path / "run", stages=["squares"])
    run(tmp_path / "run", stages=["numbers"])
    run(tmp_path / "run", stages=["squares"])
    with pytest.raises(SynthClipError, match=r"which is stale \(seed: 0 -> 9\)"):
        run(tmp_path / "run", [*THREE_SHARDS, "seed=9"], stages=["squares"])


def test_an_error_of_the_user_is_one_line_and_what_was_made_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SynthClipError, match=r"^numbers\.txt, row 3: not a number: mend it$"):
        run(out, [*THREE_SHARDS, "match.lowercase=true", "balance.t=4"])
    before = made(out)
    run(out, [*THREE_SHARDS, "balance.t=4"])
    # the small stages do not read `match`, so only what was not made is made
    assert made(out)[len(before) :] == [("total", "all")]


def test_directories_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    other = load_recipe("demo", ["name=other"])
    with pytest.raises(SynthClipError, match="holds a run of recipe 'demo', not of 'other'"):
        pipeline.run(other, out)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"")
    with pytest.raises(SynthClipError, match=r"not empty \('cat.jpg', …\) and no run directory"):
        pipeline.run(other, foreign)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SynthClipError, match="a file stands there"):
        pipeline.run(other, file)
    assert [path.name for path in foreign.iterdir()] == ["cat.jpg"]
    with pytest.raises(SynthClipError, match="the name is too long: choose another --out"):
        pipeline.run(other, tmp_path / ("x" * 300))


def test_a_damaged_recipe_in_the_directory_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    (out / "recipe.yaml").write_text("name: [")
    with pytest.raises(SynthClipError, match=r"recipe.yaml: damaged: restore it"):
        run(out)


def test_what_a_stage_was_made_from_may_be_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run(out, stages=["numbers"])

    def no_model(stage: small_stages.Numbers) -> Sequence[Shard]:
        raise SynthClipError("llm.model: /models/m.gguf: no such file")

    monkeypatch.setattr(small_stages.Numbers, "shards", no_model)
    run(out, stages=["squares"])
    state = {state.stage: state for state in pipeline.status(out, load_recipe("demo", THREE_SHARDS)).stages}
    assert (state["numbers"].state, state["squares"].state) == ("unchecked", "current")
    with pytest.raises(SynthClipError, match="no such file"):
        run(out)
    with pytest.raises(SynthClipError, match=r"which is stale \(seed: 0 -> 9\)"):
        run(out, [*THREE_SHARDS, "seed=9"], stages=["squares"])


def test_shards_made_of_the_same_are_linked_from_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle or not, the files are those that the run would have made itself."""
    changed = (*THREE_SHARDS, "balance.t=5")
    run(tmp_path / "donor")
    run(tmp_path / "alone", changed)
    link, links = Path.hardlink_to, 0

    def stops(path: Path, target: Path) -> None:
        nonlocal links
        links += 1
        if links == 2:
            raise KeyboardInterrupt
        link(path, target)

    recipe, out = load_recipe("demo", [HERE, *changed]), tmp_path / "run"
    stages, quiet, donors = tuple(small_stages.STAGES), Console(io.StringIO()), [tmp_path / "donor"]
    monkeypatch.setattr(Path, "hardlink_to", stops)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, out, stages=stages, console=quiet, reuse=donors)
    monkeypatch.setattr(Path, "hardlink_to", link)
    pipeline.run(recipe, out, stages=stages, console=quiet, reuse=donors)
    assert files(out) == files(tmp_path / "alone")
    assert (out / "numbers/00001.parquet").samefile(tmp_path / "donor/numbers/00001.parquet")
    linked = [line for line in RunDirectory(out).metrics() if line.get("linked_from") == "donor"]
    stages_linked = Counter(line["stage"] for line in linked)
    assert stages_linked == {"numbers": 3, "total": 1}, (
        "the squares are of another recipe, and come out equal"
    )


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, target: Path) -> None:
        raise OSError(1, "no links here")

    run(tmp_path / "donor")
    monkeypatch.setattr(Path, "hardlink_to", refuses)
    recipe = load_recipe("demo", [HERE, *THREE_SHARDS])
    stages, donors = tuple(small_stages.STAGES), [tmp_path / "donor"]
    pipeline.run(recipe, tmp_path / "run", stages=stages, console=Console(io.StringIO()), reuse=donors)
    assert files(tmp_path / "run") == files(tmp_path / "donor")
