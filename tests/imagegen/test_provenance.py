"""One image: where it comes from, and once more."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from image_runs import CAPTIONS, make_images, recipe_of, selected
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.imagegen import provenance
from synthclip.keys import image_key, text_id
from synthclip.run.store import Outcome, RunDirectory
from synthclip.textgen.prompts import Prompts

pytestmark = pytest.mark.slow

KEY = image_key(text_id(CAPTIONS[0]), 1)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """With captions and concepts, as stages before images leave them."""
    run = selected(tmp_path_factory.mktemp("painted") / "run", [*CAPTIONS, " "])
    recipe = recipe_of()
    with run.begin("concepts", "all", "fingerprint") as writer:
        names = ["dog", "cat"]
        rows = [{"concept_id": at, "text": name, "source": "test"} for at, name in enumerate(names)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(2))
    prompt = Prompts(recipe.captions, recipe.seed).draw("dog", 3)
    with run.begin("captions", "00000", "fingerprint") as writer:
        caption = {
            "caption_id": text_id(CAPTIONS[0]),
            "concept_id": 0,
            "text": CAPTIONS[0],
            "template": prompt.template.name,
            "model": "some-llm@1",
            "seed": prompt.seed,
        }
        writer.rows("00000.parquet", schema.CAPTION, [caption])
        writer.commit(Outcome(1))
    make_images(run, recipe)
    return run


def test_trace_leads_from_the_image_to_concept_prompt_and_models(painted: RunDirectory) -> None:
    traced = provenance.trace(painted.path, KEY)
    assert traced.image["caption"] == CAPTIONS[0]
    assert traced.image["licence"] == "CC-BY-SA-4.0 (OpenMoji)"
    assert traced.concept == "dog"
    assert traced.concepts == ["dog"]
    recipe = recipe_of()
    assert traced.prompt == Prompts(recipe.captions, recipe.seed).draw("dog", 3).text
    assert traced.prefill == Prompts(recipe.captions, recipe.seed).draw("dog", 3).prefill
    assert traced.prefill
    assert any(line.split()[0] == "prefill" for line in traced.lines())
    lines = "\n".join(traced.lines())
    for fact in ("some-llm@1", "OpenMoji", "variant 1", CAPTIONS[0], "dog"):
        assert fact in lines


def test_a_run_without_its_captions_is_traced_as_far_as_it_goes(run: RunDirectory) -> None:
    make_images(run, recipe_of())
    traced = provenance.trace(run.path, KEY)
    assert traced.caption is None
    assert traced.concept is None
    assert traced.image["caption"] == CAPTIONS[0]


def test_repaint_gives_the_same_bytes(painted: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "again.jpg"
    done = CliRunner().invoke(app, ["repaint", str(painted.path), KEY, "--out", str(out)])
    assert done.exit_code == 0
    assert "same bytes" in done.output
    row = pq.read_table(
        painted.stage("images") / "train/00000.parquet", filters=[("key", "=", KEY)]
    ).to_pylist()[0]
    with (painted.stage("images") / row["shard"]).open("rb") as tar:
        tar.seek(row["offset"])
        assert tar.read(row["length"]) == out.read_bytes()


def test_trace_on_the_command_line(painted: RunDirectory) -> None:
    done = CliRunner().invoke(app, ["trace", str(painted.path), KEY])
    assert done.exit_code == 0
    assert "written by  some-llm@1" in done.output


def test_an_unknown_and_a_refused_key_say_what_is_so(painted: RunDirectory) -> None:
    with pytest.raises(SynthClipError, match="holds no image of key 'nonsense'"):
        provenance.trace(painted.path, "nonsense")
    with pytest.raises(SynthClipError, match=r"refused \(empty caption\)"):
        provenance.repaint(painted.path, image_key(text_id(" "), 0))
