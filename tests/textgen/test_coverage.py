"""The coverage loop: more captions, only where too few match."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from text_runs import RECIPE, TEXT_STAGES, contents, table

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.pipeline import run, status
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory
from synthclip.textgen.captions import Coverage, fill

pytestmark = pytest.mark.slow

STAGES = ("captions", "match")
VARIED = RECIPE.replace("{{ concept }}:", "{{ look }} {{ concept }}:").replace(
    "  per_concept", "  axes: {look: [red, old, big, odd]}\n  per_concept"
)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "words.yaml"
    path.write_text(VARIED)
    return path


def filled(
    recipe: Path,
    out: Path,
    *overrides: str,
    concepts: Path | None = None,
    rounds: int = 20,
    at_least: int = 4,
) -> Coverage:
    loaded = load_recipe(recipe, ["concepts.limit=20", *overrides], trust=True)
    with (recipe.parent / "log").open("a") as log:
        return fill(loaded, out, at_least=at_least, concepts=concepts, rounds=rounds, console=Console(log))


def stages_of(recipe: Path, out: Path, *overrides: str) -> RunDirectory:
    """The text stages without the loop."""
    with (recipe.parent / "log").open("a") as log:
        loaded = load_recipe(recipe, ["concepts.limit=20", *overrides], trust=True)
        return run(loaded, out, stages=TEXT_STAGES, console=Console(log))


def matched(directory: RunDirectory) -> Counter[str]:
    """How many different captions match each concept."""
    bank = table(directory, "concepts")["text"].to_pylist()
    rows = {row["caption_id"]: row["concept_ids"] for row in table(directory, "match").to_pylist()}
    return Counter(bank[concept] for ids in rows.values() for concept in ids)


def test_every_concept_gets_its_captions_and_the_first_ones_stay(tmp_path: Path, recipe_file: Path) -> None:
    plain = stages_of(recipe_file, tmp_path / "plain")
    lacked = {
        concept for concept in table(plain, "concepts")["text"].to_pylist() if matched(plain)[concept] < 4
    }
    assert 3 < len(lacked) < 20
    found = filled(recipe_file, tmp_path / "run", at_least=4)
    directory = RunDirectory(tmp_path / "run")
    assert (found.concepts, found.lacking, found.unknown) == (20, {}, ())
    assert min(matched(directory)[text] for text in table(directory, "concepts")["text"].to_pylist()) >= 4
    first, more = contents(plain, *STAGES), contents(directory, *STAGES)
    assert {path: more[path] for path in first} == first
    captions, refused = (table(directory, "captions", folder) for folder in ("", "rejected"))
    bank = table(directory, "concepts")["text"].to_pylist()
    asked = Counter(bank[k] for part in (captions, refused) for k in part["concept_id"].to_pylist())
    assert {concept for concept, count in asked.items() if count > 6} == lacked
    assert sum(asked.values()) == 20 * 6 + found.asked
    seeds = [*captions["seed"].to_pylist(), *refused["seed"].to_pylist()]
    assert len(set(seeds)) == len(seeds)


def test_the_rest_of_the_run_goes_on_from_it(tmp_path: Path, recipe_file: Path) -> None:
    filled(recipe_file, tmp_path / "run")
    directory = stages_of(recipe_file, tmp_path / "run")
    states = {state.stage: state.state for state in status(directory.path, trust=True).stages}
    assert [states[stage] for stage in TEXT_STAGES] == ["current"] * 4
    [balance] = directory.manifests("balance")
    assert balance.notes["unmatched"] + sum(
        bool(ids) for ids in dict(zip(*table(directory, "match").to_pydict().values(), strict=True)).values()
    ) == len(set(table(directory, "captions")["caption_id"].to_pylist()))


def test_workers_and_a_second_call_change_nothing(tmp_path: Path, recipe_file: Path) -> None:
    first = filled(recipe_file, tmp_path / "one", rounds=1)
    one = contents(RunDirectory(tmp_path / "one"), *STAGES)
    assert filled(recipe_file, tmp_path / "one", rounds=1) == first
    filled(recipe_file, tmp_path / "two", "engine.workers=2", rounds=1)
    assert contents(RunDirectory(tmp_path / "one"), *STAGES) == one
    assert contents(RunDirectory(tmp_path / "two"), *STAGES) == one


def test_a_list_bounds_it_and_names_what_is_not_in_the_bank(tmp_path: Path, recipe_file: Path) -> None:
    few = tmp_path / "weak.txt"
    few.write_text("zebrafishes\n\ndog\n")
    bank = tmp_path / "bank.txt"
    bank.write_text("dog\ncat\nbee\ncar\n")
    source = f"concepts.sources=[{{kind: text, path: {bank}}}]"
    found = filled(recipe_file, tmp_path / "run", source, concepts=few, at_least=9)
    assert (found.concepts, found.lacking, found.unknown) == (1, {}, ("zebrafishes",))
    assert matched(RunDirectory(tmp_path / "run"))["dog"] >= 9
    extra = [m for m in RunDirectory(tmp_path / "run").manifests("captions") if m.shard.startswith("fill")]
    assert extra
    few.write_text("zebrafishes\n")
    with pytest.raises(SynthClipError, match="none of its concepts is in the bank"):
        filled(recipe_file, tmp_path / "run", source, concepts=few, at_least=9)
    few.write_text("\n")
    with pytest.raises(SynthClipError, match="holds no concepts"):
        filled(recipe_file, tmp_path / "run", source, concepts=few, at_least=9)


def test_it_ends_where_nothing_helps(tmp_path: Path, recipe_file: Path) -> None:
    bank = tmp_path / "bank.txt"
    bank.write_text("dog\nsalt, pepper\n")  # a comma stands by itself once a text is spaced for matching
    found = filled(
        recipe_file, tmp_path / "run", f"concepts.sources=[{{kind: text, path: {bank}}}]", at_least=2
    )
    assert found.lacking == {"salt, pepper": 2}
    assert found.asked <= 2 * 16, "what nothing helps is given up"


def test_rounds_are_bounded_and_more_go_on(tmp_path: Path, recipe_file: Path) -> None:
    assert filled(recipe_file, tmp_path / "run", rounds=1).lacking
    one = contents(RunDirectory(tmp_path / "run"), *STAGES)
    assert not filled(recipe_file, tmp_path / "run").lacking
    more = contents(RunDirectory(tmp_path / "run"), *STAGES)
    assert len(more) > len(one)
    assert {path: more[path] for path in one} == one


def test_other_values_leave_the_rounds_out(tmp_path: Path, recipe_file: Path) -> None:
    filled(recipe_file, tmp_path / "run")
    before = contents(RunDirectory(tmp_path / "run"), *STAGES)
    fresh = stages_of(recipe_file, tmp_path / "fresh", "seed=1")
    changed = stages_of(recipe_file, tmp_path / "run", "seed=1")
    assert contents(changed, *STAGES) == contents(fresh, *STAGES)
    again = stages_of(recipe_file, tmp_path / "run")
    assert contents(again, *STAGES) == before


def test_imported_captions_cannot_be_filled(tmp_path: Path, recipe_file: Path) -> None:
    with pytest.raises(SynthClipError, match="no language model is asked"):
        filled(recipe_file, tmp_path / "run", f"captions.imported={tmp_path}")


def test_killed_anywhere_it_ends_in_the_same_files(tmp_path: Path, recipe_file: Path) -> None:
    filled(recipe_file, tmp_path / "whole")
    expected = contents(RunDirectory(tmp_path / "whole"), *STAGES)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "synthclip", "captions", str(recipe_file), "--out", str(out)]
    command += ["--trust", "--fill", "--at-least=4", "--rounds=20", "concepts.limit=20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    draw = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [*command, "llm.pause_seconds=0.02"], env=environment, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(1.0, 4.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("20 of 20 concepts have 4 or more matched captions")
    assert contents(RunDirectory(out), *STAGES) == expected
