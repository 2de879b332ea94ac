"""A vision model looks at the pictures: a real server on loopback that knows red from blue."""

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_runs import make_images, recipe_of, selected
from typer.testing import CliRunner
from vision_server import BLUE, VisionServer

from synthclip import schema
from synthclip.backends import Refused, Unfinished
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.imagegen import Images
from synthclip.imagegen.provenance import trace
from synthclip.imagegen.seeds import materialize
from synthclip.imagegen.vision import JUDGE, KINDS, RECAPTION, judge_scores
from synthclip.interop.images import export_images
from synthclip.interop.seeds import export_seeds
from synthclip.keys import seeds
from synthclip.plan import make_plan
from synthclip.recipe import Recipe, load_recipe
from synthclip.recipe.training import SourceConfig
from synthclip.report.contents import read_contents
from synthclip.run.engine import Shard
from synthclip.run.pipeline import status
from synthclip.run.preflight import refuse_missing_packages
from synthclip.run.store import Outcome, RunDirectory
from synthclip.samples import any_shards, own_shards, read_metadata
from synthclip.samples.pictures import encode
from synthclip.training.flops import parse_devices
from synthclip.training.tables import open_source

pytest.importorskip("httpx", reason="needs the package httpx")

PAINTER = """
import numpy as np
from synthclip.backends import BackendConfig, Painted

class Config(BackendConfig):
    pass

class Model:
    name, licence, batch_size = "red-or-blue", "CC0-1.0", 3

    def generate(self, prompts, seeds):
        def one(seed):
            image = np.random.default_rng(seed).integers(0, 99, (32, 32, 3)).astype(np.uint8)
            image[..., 2 * (seed % 2)] += 150
            return image
        return Painted(np.stack([one(seed) for seed in seeds]))

def build(config):
    return Model()
"""
"""Odd seeds paint blue, even ones red."""
CAPTIONS = [f"Picture number {number} is blue." for number in range(8)]


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("painters")
    (folder / "red_or_blue").mkdir()
    (folder / "red_or_blue/__init__.py").write_text("")
    (folder / "red_or_blue/model.py").write_text(PAINTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def server() -> Iterator[VisionServer]:
    with VisionServer() as server:
        yield server


def looking(url: str, *overrides: str, does: str = "judge: true, recaption: true") -> Recipe:
    llm = f"{{backend: openai, model: sees, base_url: {url}, concurrency: 8, max_retries: 1}}"
    return recipe_of(
        "text_to_image={backend: red_or_blue.model}",
        "images={size_px: 32, per_caption: 1, retries: 9, max_lost: 1}",
        f"images.vision={{llm: {llm}, {does}}}",
        *overrides,
    )


def rows(run: RunDirectory, file: str = "train/00000.parquet") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run.stage("images") / file).to_pylist()
    return found


def test_a_picture_that_does_not_show_its_caption_is_painted_again(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    make_images(run, looking(server.url, "images.vision.min_judge_score=0.9", does="judge: true"))
    kept, rejected = rows(run), rows(run, "rejected/train/00000.parquet")
    assert {row["text"] for row in kept} == set(CAPTIONS)
    assert rejected
    for row in kept:
        tried = [int(seeds(row["caption_id"], stream="image", seed=0, index=100 * k)) for k in range(10)]
        assert row["seed"] == next(seed for seed in tried if seed % 2)
        scores = dict(row["scores"])
        assert (scores["judge_score"], scores["judge_object"], scores["judge_colour"]) == (1, 1, 1)
        assert scores["contrast"] > 0
    for row in rejected:
        assert row["reason"] == "judge score"
        assert row["seed"] % 2 == 0
        assert (dict(row["scores"])["judge_score"], dict(row["scores"])["judge_colour"]) == (0.5, 0)
    assert len(server.requests) == len(kept) + len(rejected)
    asked = [request["messages"][0]["content"][1]["text"] for request in server.requests]
    assert all(any(caption in text for text in asked) for caption in CAPTIONS)
    (manifest,) = run.manifests("images")
    assert manifest.notes["vision"] == {"model": "sees", "unusable": {}, "judged": 8, "judge_score": 1.0}


def test_a_caption_of_what_is_seen_is_a_second_caption_to_train_on(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    run = selected(tmp_path / "run", CAPTIONS[:5], CAPTIONS[5:])
    make_images(run, looking(server.url, "images.vision.min_judge_score=1"))
    train, sidecar = rows(run), run.stage("images") / "train/00000.parquet"
    assert [row["other_texts"] for row in train] == [[BLUE]] * 5
    assert [request["seed"] for request in server.requests if "response_format" not in request]
    for row in train:
        assert read_metadata(sidecar.with_suffix(".tar"), row["key"])["other_texts"] == [BLUE]
    # What is evaluated on keeps its one caption.
    assert schema.IMAGE.equals(pq.read_schema(run.stage("images") / "heldout/00000.parquet"))
    heldout = run.stage("images") / "heldout/00000.tar"
    assert "other_texts" not in read_metadata(heldout, rows(run, "heldout/00000.parquet")[0]["key"])
    # Training reads both, of the run, of its tars and of its Parquet.
    export_images(run.path, tmp_path / "parquet", "parquet")
    parquet = SourceConfig(
        kind="parquet", path=str(tmp_path / "parquet/data/train-*.parquet"), text_column="captions"
    )
    tar = str(sidecar.with_suffix(".tar"))
    for source in (own_shards([sidecar]), any_shards([tar]), open_source(parquet, ())):
        samples = [source.read(at) for at in range(len(source))]
        assert {sample.text for sample in samples} == set(CAPTIONS[:5])
        assert {sample.other_texts for sample in samples} == {(BLUE,)}


def test_imported_pictures_are_judged_and_captioned_as_well(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    data, lines = tmp_path / "synthci/SynthCI-30/data", ["image_path\tcaption"]
    data.mkdir(parents=True)
    with zipfile.ZipFile(data / "0.zip", "w") as archive:
        for at in range(20):
            colour = np.full((48, 48, 3), (20, 20, 200) if at % 4 else (200, 20, 20), np.uint8)
            archive.writestr(f"0/{at}_0.jpeg", encode(colour, 90))
            lines.append(f"0/{at}_0.jpeg\tPicture {at} is blue.")
    (data.parent / "combined_images_and_captions.csv").write_text("\n".join(lines))
    source = f"images.imported={tmp_path / 'synthci'}"
    run = RunDirectory(tmp_path / "run")
    Images(looking(server.url, source), run).prepare()
    make_images(run, looking(server.url, source, "images.vision.min_judge_score=0.9"))
    kept, refused = rows(run), rows(run, "rejected/train/00000.parquet")
    assert [row["text"] for row in kept] == [f"Picture {at} is blue." for at in range(20) if at % 4]
    assert [(row["key"], row["reason"]) for row in refused] == [
        (f"0/{at}_0.jpeg", "judge score") for at in range(0, 20, 4)
    ]
    assert all(row["other_texts"] == [BLUE] and dict(row["scores"])["judge_colour"] == 1 for row in kept)
    tar = run.stage("images") / "train/00000.tar"
    assert read_metadata(tar, kept[0]["key"])["other_texts"] == [BLUE]
    samples = own_shards([tar.with_suffix(".parquet")])
    assert {samples.read(at).other_texts for at in range(len(samples))} == {(BLUE,)}
    notes = {manifest.shard: manifest.notes for manifest in run.manifests("images")}["train/00000"]["vision"]
    assert (notes["judged"], notes["recaptioned"]) == (15, 15)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("It does, mostly.", "judge: no JSON"),
        ('[{"atom": "dog", "present": true}]', "judge: other JSON than asked for"),
        ("[]", "judge: no claims"),
        ("<think>[{", "judge: no JSON"),
    ],
)
def test_an_answer_that_cannot_be_used_refuses_no_picture_and_is_counted(
    painter: Path, server: VisionServer, tmp_path: Path, says: str, reason: str
) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    server.says = says
    recipe = looking(server.url, "images.vision.min_judge_score=1", does="judge: true, max_unusable: 1")
    make_images(run, recipe)
    assert len(rows(run)) == len(CAPTIONS)
    assert not any("judge_score" in dict(row["scores"]) for row in rows(run))
    (manifest,) = run.manifests("images")
    assert not manifest.rejected
    assert manifest.notes["vision"]["unusable"] == {reason: 8}


def test_captions_are_cleaned_as_those_of_a_language_model(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    for number, (says, ends, kept) in enumerate(
        [
            ("<think>Hm, a dog?</think>Caption: A dog on a blue rug.", "stop", ["A dog on a blue rug."]),
            ("I'm sorry, I cannot see it.", "stop", []),
            ("A dog on a", "length", []),
            ("A dog " + "and a dog " * 30, "stop", []),
        ]
    ):
        run = selected(tmp_path / f"{number}", CAPTIONS[:2])
        server.says, server.ends = says, ends
        make_images(run, looking(server.url, does="recaption: true, max_unusable: 1"))
        assert [row["other_texts"] for row in rows(run)] == [kept] * 2
        (manifest,) = run.manifests("images")
        assert manifest.notes["vision"]["recaptioned"] == 2 * len(kept)
        assert sum(manifest.notes["vision"]["unusable"].values()) == 2 - 2 * len(kept)


def test_a_model_that_seldom_answers_as_asked_stops_the_stage(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    server.says = "Yes."
    with pytest.raises(SynthClipError) as caught:
        make_images(selected(tmp_path / "run", CAPTIONS), looking(server.url, does="judge: true"))
    assert "8 of 8 answers of images.vision cannot be used, most often 'judge: no JSON'" in str(caught.value)


def test_a_server_that_takes_no_pictures_is_one_line_before_anything_is_painted(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    server.blind = True
    with pytest.raises(SynthClipError) as caught:
        Images(looking(server.url), RunDirectory(tmp_path)).prepare()
    assert "\n" not in str(caught.value)
    assert "images.vision: llm: " in str(caught.value)
    assert "image_url is not supported by this model" in str(caught.value)
    # The workers of a cluster may reach a server that this machine does not.
    Images(looking(server.url, "engine.kind=slurm"), RunDirectory(tmp_path)).prepare()
    with VisionServer() as gone:
        url = gone.url
    with pytest.raises(SynthClipError, match=r"images\.vision: llm: .* cannot be reached .* check llm"):
        Images(looking(url), RunDirectory(tmp_path)).prepare()


def test_an_outage_refuses_no_picture(painter: Path, server: VisionServer, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS[:3])
    server.broken = 1
    make_images(run, looking(server.url, does="recaption: true"))
    assert len(rows(run)) == 3
    server.broken = 100
    again = selected(tmp_path / "again", CAPTIONS[:3])
    with pytest.raises(SynthClipError, match=r"images\.vision: llm: .*answered 500 after 1 retries"):
        make_images(again, looking(server.url, does="recaption: true"))
    assert not again.manifests("images")


def test_the_server_has_more_pictures_at_once_than_a_batch_holds(
    painter: Path, server: VisionServer, tmp_path: Path
) -> None:
    server.pause_seconds = 0.1
    make_images(selected(tmp_path / "run", CAPTIONS), looking(server.url, does="recaption: true"))
    assert 3 < server.most_under_way <= 8


def test_a_killed_run_goes_on_to_the_same_bytes(painter: Path, server: VisionServer, tmp_path: Path) -> None:
    overrides = ["images.captions_per_shard=2", "images.vision.min_judge_score=1"]

    def files(run: RunDirectory) -> dict[str, str]:
        found = sorted(path for path in run.stage("images").rglob("*") if path.is_file())
        return {
            path.relative_to(run.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
        }

    undisturbed, killed = (selected(tmp_path / name, CAPTIONS) for name in ("undisturbed", "killed"))
    make_images(undisturbed, looking(server.url, *overrides))
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(painter)]!r}\n"
        "from pathlib import Path\n"
        "from image_runs import RunDirectory, make_images\n"
        "from synthclip.recipe import load_recipe\n"
        f"recipe = load_recipe(Path({str(undisturbed.path)!r}), trust=True)\n"
        f"make_images(RunDirectory(Path({str(killed.path)!r})), recipe)\n"
    )
    server.pause_seconds = 0.05
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not killed.manifests("images"):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len(killed.manifests("images")) < 4
    server.pause_seconds = 0
    with killed.lock():
        make_images(killed, looking(server.url, *overrides))
    assert files(killed) == files(undisturbed)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{llm: {backend: openai, model: m}}", "images.vision: has nothing to do: set judge or recaption"),
        ("{judge: true}", "images.vision.llm: is required"),
        (
            "{llm: {backend: openai, model: m}, recaption: true, min_judge_score: 1}",
            "images.vision: min_judge_score: needs judge: true",
        ),
        (
            "{llm: {backend: openai, model: m}, recaption: true, min_words: 31}",
            "images.vision: min_words: more than max_words",
        ),
        ("{llm: {backend: llamacpp}, judge: true}", "backend 'llamacpp' takes no pictures"),
        ("{llm: {backend: openai, model: m, chat: false}, judge: true}", "llm.chat: must be true"),
        ("{llm: {backend: openai, model: m, batch: true}, judge: true}", "llm.batch: must be false"),
        ("{llm: {backend: openai, modle: m}, judge: true}", "images.vision.llm: unknown key 'modle'"),
        ("{llm: {backend: openai, model: m}, min_judge_score: 2}", "must be at most 1"),
    ],
)
def test_what_cannot_look_is_refused_with_the_recipe(value: str, problem: str) -> None:
    with pytest.raises(SynthClipError, match=problem.replace(".", r"\.")):
        load_recipe("demo", [f"images.vision={value}"])


def test_a_strangers_recipe_sends_no_key_to_a_vision_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    path = tmp_path / "strange.yaml"
    recipe = load_recipe("demo", ["images.vision={llm: {backend: openai, model: m}, judge: true}"])
    path.write_text(recipe.to_yaml().replace("https://api.openai.com/v1", "http://evil.example/v1"))
    with pytest.raises(SynthClipError, match=r"images\.vision\.llm\.base_url: evil\.example would receive"):
        load_recipe(path)


def test_a_recipe_without_it_keeps_its_fingerprints_and_recaptions_touch_no_heldout_image() -> None:
    values = load_recipe("demo").images.results()
    assert "vision" not in values
    llm = "llm: {backend: openai, model: m}"

    def values_of(split: str, *overrides: str) -> object:
        stage = Images(load_recipe("demo", overrides), RunDirectory("unused"))
        return stage.values_of(Shard(f"{split}/00000", {}))

    plain, judged = values_of("heldout"), f"images.vision={{{llm}, judge: true}}"
    assert values_of("heldout", f"images.vision={{{llm}, recaption: true}}") == plain
    assert values_of("train", f"images.vision={{{llm}, recaption: true}}") != values_of("train")
    assert (
        values_of("heldout", judged) == values_of("heldout", judged, "images.vision.recaption=true") != plain
    )


def test_its_package_is_asked_for(painter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthclip.run.preflight._installed", lambda package: package != "httpx")
    with pytest.raises(SynthClipError, match=r"needs httpx.*\[openai\]"):
        refuse_missing_packages(looking("http://localhost:1/v1"), ["images"])


def test_the_plan_names_requests_tokens_and_money(painter: Path) -> None:
    """Every image is judged, and those to train on described: a picture of 280 px is 100 tokens."""
    prices = "images.vision.llm.prices={input: 1000000, output: 0}"
    asked = [f"{len(text) / 4:.2f}" for text in (JUDGE, RECAPTION)]
    recipe = looking("http://localhost:1/v1", "images.size_px=280", prices)
    made = make_plan(recipe, parse_devices("1xcpu"), concepts=20, llm_params=1e6, image_flops=1e9)
    images = next(stage for stage in made.stages if stage.stage == "images")
    total, train = made.volumes.images, made.volumes.train_images
    assert 0 < train < total
    assert images.makes.endswith(f", {total + train} vision requests")
    expected = total * (100 + float(asked[0]) + 15) + train * (100 + float(asked[1]))
    assert images.money == pytest.approx(expected, rel=0.001)
    assert any(line.startswith("vision: ") for line in made.assumptions)


def test_what_was_found_and_spent_is_shown(painter: Path, server: VisionServer, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    make_images(run, looking(server.url, "images.vision.llm.prices={input: 1, output: 10}"))
    tokens = {"read": 1600, "written": 160}
    found = status(run.path, trust=True)
    assert found.vision_tokens == pytest.approx(tokens | {"cost": 0.0032})
    assert not found.tokens
    said = CliRunner().invoke(app, ["status", str(run.path), "--trust"]).output
    assert "vision model: 1,600 tokens read, 160 tokens written, 0.00 spent" in said
    with run.begin("captions", "all", "fingerprint") as writer:
        writer.commit(Outcome(8))
    blue = sum(dict(row["scores"])["judge_score"] == 1 for row in rows(run))
    (step,) = [one for one in read_contents(run).funnel if one.label == "Images to train on"]
    shown = f"{(8 + blue) / 16:.0%} of what the captions of 8 say is shown"
    assert step.note == f"1 shard; {shown}; 8 have a second caption"
    assert "sees" in read_contents(run).origins.of_captions()
    assert any(BLUE in line for row in rows(run) for line in trace(run.path, row["key"]).lines())


def test_seeds_of_such_images_need_no_server(painter: Path, server: VisionServer, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS)
    stage = make_images(run, looking(server.url, "images.vision.min_judge_score=1"))
    run.write_stage_values("images", stage.values)
    export_seeds(run.path, tmp_path / "seeds")
    server.requests.clear()
    done = materialize(tmp_path / "seeds", tmp_path / "again", ["engine.workers=0"], trust=True)
    assert [(one.images, one.equal) for one in done.splits] == [(8, 8)]
    assert not server.requests


CLAIMS = st.lists(st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=1, max_size=9)


@given(CLAIMS, st.booleans())
def test_the_score_is_the_share_of_claims_that_are_shown(claims: list[tuple[str, bool]], plain: bool) -> None:
    items = [
        {"claim": "x", "kind": kind, "shown": shown if plain else ["no", "yes"][shown]}
        for kind, shown in claims
    ]
    said = json.dumps(items if plain else {"claims": items})
    scores = judge_scores(said if plain else f"<think>[]</think>```json\n{said}\n```")
    assert scores.pop("judge_score") == pytest.approx(sum(shown for _, shown in claims) / len(claims))
    for kind in {kind for kind, _ in claims}:
        own = [shown for other, shown in claims if other == kind]
        assert scores.pop(f"judge_{kind}") == pytest.approx(sum(own) / len(own))
    assert not scores


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["shown", "kind", "a"]), inner)
    ),
    max_leaves=6,
)


@given(st.text() | JSON.map(json.dumps) | st.text().map(Unfinished) | st.text().map(Refused))
def test_no_answer_is_more_than_a_score_or_a_reason(said: str | Refused) -> None:
    try:
        scores = judge_scores(said)
    except ValueError:
        return
    assert not isinstance(said, Unfinished | Refused)
    assert all(0 <= score <= 1 for score in scores.values())
