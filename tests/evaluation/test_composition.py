"""Which words belong together: the scores against a slow oracle, the published layouts, and a run's own
pairs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from heldout_run import picture
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from small_inputs import MODEL_CONFIG, save_model
from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.evaluation import UNTRAINED, Eval, metrics
from synthclip.evaluation.data import Composition, open_dataset
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import Features
from synthclip.imagegen import Images
from synthclip.imagegen.jobs import composition_pairs, training_pairs
from synthclip.keys import text_id
from synthclip.models.load import load_model
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory
from synthclip.samples import own_twins
from synthclip.textgen.composition import exchanged_pairs
from synthclip.training import Train

SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2), st.just(2)), elements=SCORES))
def test_scores_are_winogrounds(scores: np.ndarray) -> None:
    found = metrics.composition(scores)
    for n, ((c0_i0, c1_i0), (c0_i1, c1_i1)) in enumerate(scores.tolist()):
        text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        said = [bool(found[name][0][n]) for name in ("text_score", "image_score", "group_score")]
        assert said == [text, image, text and image]


@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (1, 3)])
def test_the_level_of_chance_is_what_guessing_reaches(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random((40_000, *shape))
    for hits, chance in metrics.composition(scores).values():
        assert hits.mean() == pytest.approx(chance, abs=0.01)


def winoground(folder: Path) -> None:
    rows = [
        {"id": n, "caption_0": f"a dog chases cat {n}", "caption_1": f"cat {n} chases a dog", "tag": tag}
        | {"image_0": f"ex_{n}_img_0", "image_1": f"ex_{n}_img_1"}
        for n, tag in enumerate(["Object", "Object", "Relation"])
    ]
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "data" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in range(6):
        (folder / "data" / "images" / f"ex_{n // 2}_img_{n % 2}.png").write_bytes(picture(n))


def sugarcrepe(folder: Path, second: bool) -> None:
    (folder / "val2017").mkdir(parents=True)
    for kind, numbers in {"swap_att": (0, 2), "replace_rel": (0, 1, 5)}.items():
        rows = {}
        for n in numbers:
            (folder / "val2017" / f"{n:012}.jpg").write_bytes(picture(n))
            rows[str(n)] = {
                "filename": f"{n:012}.jpg",
                "caption": f"a red cup {n}",
                "negative_caption": f"a blue cup {n}",
            }
            if second:
                rows[str(n)]["caption2"] = f"the cup {n} is red"
        (folder / f"{kind}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return Features(Encoder(*load_model(save_model(tmp_path_factory.mktemp("m") / "model", **MODEL_CONFIG))))


def test_published_layouts_are_read_and_judged(tmp_path: Path, features: Features) -> None:
    winoground(tmp_path / "winoground")
    sugarcrepe(tmp_path / "sugarcrepe", second=False)
    sugarcrepe(tmp_path / "sugarcrepe_pp", second=True)
    expected = {
        "winoground": {
            "text_score": (0.25, 3),
            "group_score": (1 / 6, 3),
            "image_score of Object": (0.25, 2),
        },
        "sugarcrepe": {"text_score": (0.5, 5), "text_score of swap_att": (0.5, 2)},
        "sugarcrepe_pp": {"text_score": (1 / 3, 5), "text_only_score of replace_rel": (1 / 3, 3)},
    }
    for name, figures in expected.items():
        dataset = open_dataset(name, tmp_path)
        assert isinstance(dataset, Composition)
        assert able_evaluators(dataset) == ("composition",)
        found = EVALUATORS["composition"](features, dataset, Settings())
        by_metric = {figure.metric: (figure.chance, figure.n) for figure, _ in found.figures}
        assert {metric: by_metric[metric] for metric in figures} == figures
        assert all(len(items) == figure.n for figure, items in found.figures)
    first = open_dataset("winoground", tmp_path)
    assert isinstance(first, Composition)
    assert first.texts[first.caption_NT[1, 1]] == "cat 1 chases a dog"
    assert first.pictures.names[first.image_NI[1, 1]].endswith("ex_1_img_1.png")


def test_what_is_not_as_published_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "winoground"
    winoground(folder)
    (folder / "data" / "images" / "ex_1_img_0.png").unlink()
    with pytest.raises(
        SynthClipError, match=r"winoground: 1 of its 6 images are not there \(ex_1_img_0, …\)"
    ):
        open_dataset("winoground", tmp_path)
    listed = folder / "data" / "examples.jsonl"
    listed.write_text(listed.read_text().replace('"caption_1": "cat 1', '"other": "cat 1'))
    with pytest.raises(SynthClipError, match=r"examples.jsonl, line 2: no 'caption_1'"):
        open_dataset("winoground", tmp_path)
    listed.write_text("{}\n[1]\n")
    with pytest.raises(SynthClipError, match=r"examples.jsonl, line 2: not a line of JSON"):
        open_dataset("winoground", tmp_path)


NAMES = ("dog", "mouse", "umbrella", "scissors", "owl", "butterfly", "church")


@pytest.mark.parametrize("names", [[], ["dog"], ["glasses", "trousers"], ["dog", "glasses"]])
def test_pairs_need_two_things(names: list[str]) -> None:
    pairs = exchanged_pairs(names, 6, 0)
    assert len(pairs) == (6 if len(names) > 1 else 0)
    assert all(set(pair.things) == set(names) for pair in pairs)


def test_pairs_hold_the_same_words_and_say_another_thing() -> None:
    pairs = exchanged_pairs(NAMES, 120, 0)
    assert exchanged_pairs(NAMES, 60, 0) == pairs[:60]
    for pair in pairs:
        assert pair.caption != pair.exchanged
        assert pair.things[0] != pair.things[1]
        if pair.kind == "colour":
            words = [sorted(text.lower().strip(".").split()) for text in pair[1:3]]
            assert words[0] == words[1]
    said = " ".join(text for pair in pairs for text in pair[1:3])
    assert "mice" in said
    assert "churches" in said
    assert "butterflies" in said
    assert "scissorses" not in said
    assert "a owl" not in said.lower()


CONCEPTS = ("dog", "cat", "apple", "guitar")


def small_recipe(*overrides: str) -> Recipe:
    return load_recipe(
        "demo",
        [
            "text_to_image={backend: compositor, size_px: 32}",
            "model.embed_dim=16",
            "model.vision={image_size_px: 32, layers: 1, width: 32, head_width: 16, patch_size_px: 16}",
            "model.text={context_length: 16, width: 32, heads: 2, layers: 1}",
            "evaluation.untrained=true",
            *overrides,
        ],
    )


def painted_run(path: Path, recipe: Recipe) -> RunDirectory:
    """A run of a few captions up to its images."""
    run = RunDirectory(path)
    with run.begin("concepts", "all", "x") as writer:
        rows = [{"concept_id": n, "text": text, "source": "test"} for n, text in enumerate(CONCEPTS)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(rows=len(rows)))
    with run.begin("balance", "all", "x") as writer:
        for split, words in (("train", ("runs", "shines")), ("heldout", ("waits",))):
            texts = {f"A {name} {word}.": n for n, name in enumerate(CONCEPTS) for word in words}
            texts["A harp and a dog."] = 0
            rows = [
                {"caption_id": text_id(text), "text": text, "concept_ids": [n], "keep_probability": 1.0}
                for text, n in texts.items()
            ]
            writer.rows(
                f"{split}/00000.parquet", schema.SELECTED, sorted(rows, key=lambda row: row["caption_id"])
            )
        writer.commit(Outcome(rows=10))
    for shard in Images(recipe, run).shards():
        StageLoad(Images, recipe, run.path)()(shard, lambda rows, **figures: None)
    return run


def test_pairs_to_train_on_are_others_and_come_together(tmp_path: Path) -> None:
    recipe = small_recipe(
        "images={size_px: 32, per_caption: 2, composition: 12, exchanged: 10, jpeg_quality: 90, "
        "captions_per_shard: 8}",
        "training.sources=[{weight: 3}, {kind: exchanged, weight: 1}]",
        "training.batch_size=8",
        "training.epochs=3",
        "training.mask_false_negatives=null",
    )
    run = painted_run(tmp_path / "run", recipe)
    sidecars = schema.split_tables(run.stage("images"), schema.EXCHANGED)
    assert len(sidecars) == 3
    pairs = training_pairs(recipe, CONCEPTS)
    evaluated = {text for pair in composition_pairs(recipe, CONCEPTS) for text in pair[1:3]}
    assert 0 < len(pairs) <= 10
    assert evaluated.isdisjoint(text for pair in pairs for text in pair[1:3])
    source = own_twins(sidecars)
    found = [(source.read(at).text, source.read(at + 1).text) for at in range(0, len(source), 2)]
    said = {frozenset(pair[1:3]) for pair in pairs}
    assert {frozenset(texts) for texts in found} == said
    assert len(found) == 2 * len(said)
    shard = Train(recipe, run).shards()[0]
    outcome = StageLoad(Train, recipe, run.path)()(shard, lambda rows, **figures: None)
    assert outcome.rows == shard.size
    own = schema.split_tables(run.stage("images"), "train")
    assert outcome.notes["pairs"] == [sum(len(schema.read_table(path)) for path in own), len(source)]
    first = schema.read_table(sidecars[0])
    pq.write_table(first.slice(1), sidecars[0])
    fewer = own_twins(sidecars)
    assert len(fewer) == len(source) - 2, "an image without its twin is left out"
    keys = {fewer.name_of(at).split()[-1] for at in range(len(fewer))}
    assert first["key"][0].as_py() not in keys


def test_a_source_of_exchanged_pairs_needs_some() -> None:
    recipe = small_recipe("images.exchanged=0", "training.sources=[{}, {kind: exchanged}]")
    with pytest.raises(SynthClipError, match=r"kind exchanged needs images\.exchanged"):
        Train(recipe, RunDirectory(Path("nowhere"))).check()


def test_a_run_is_judged_on_an_unseen_painter_and_on_exchanged_words_beside_random_weights(
    tmp_path: Path,
) -> None:
    recipe = small_recipe(
        "images={size_px: 32, per_caption: 1, composition: 30, jpeg_quality: 90, "
        "heldout_painter: {backend: compositor, artist: noto, size_px: 32}}"
    )
    run = painted_run(tmp_path / "run", recipe)
    painted = schema.read_table(run.file("images", "composition/00000.parquet")).to_pylist()
    seeds = {row["text"]: row["seed"] for row in painted}
    for pair in composition_pairs(recipe, CONCEPTS):
        assert seeds[pair.caption] == seeds[pair.exchanged], "both from one seed"
    (unseen,) = [one for one in run.manifests("images") if one.shard.startswith("heldout_painter/")]
    assert (unseen.rows, unseen.rejected) == (4, {"painter cannot draw it": 1}), "Noto has no harp"
    with run.begin("train", "all", "x") as writer:
        target = writer.path("model/open_clip_config.json").parent
        shutil.copytree(save_model(tmp_path / "model", **MODEL_CONFIG), target, dirs_exist_ok=True)
        for file in target.iterdir():
            writer.path(f"model/{file.name}")
        writer.commit(Outcome(rows=1))
    (shard,) = Eval(recipe, run).shards()
    StageLoad(Eval, recipe, run.path)()(shard, lambda rows, **figures: None)
    results = schema.read_table(run.file("eval", "results.parquet")).to_pylist()
    baseline = schema.read_table(run.file("eval", UNTRAINED)).to_pylist()
    names = {(row["dataset"], row["task"]) for row in results}
    assert {
        ("heldout", "zero_shot"),
        ("heldout_painter", "zero_shot"),
        ("composition", "composition"),
    } <= names
    figures = [[(row["dataset"], row["task"], row["metric"]) for row in rows] for rows in (results, baseline)]
    assert figures[0] == figures[1]
    assert {row["checkpoint"] for row in baseline} == {"untrained"}
    assert [row["value"] for row in results] != [row["value"] for row in baseline]
