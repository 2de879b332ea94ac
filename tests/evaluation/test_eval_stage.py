from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from heldout_run import CAPTIONS, CONCEPTS, write_run

from synthclip.evaluation import Eval, open_heldout
from synthclip.evaluation.data import Retrieval
from synthclip.keys import text_id
from synthclip.recipe import load_recipe
from synthclip.recipe.training import EvaluationConfig
from synthclip.run.engine import Shard
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory

pytestmark = pytest.mark.slow

TEMPLATE = "a photo of a {}."


def evaluate(run: RunDirectory, *overrides: str) -> tuple[Outcome, dict[tuple[str, str], dict[str, float]]]:
    recipe = load_recipe("demo", [f"evaluation.templates=['{TEMPLATE}']", *overrides])
    (shard,) = Eval(recipe, run).shards()
    outcome = StageLoad(Eval, recipe, run.path)()(shard, _silent)
    rows = pq.read_table(run.file("eval", "results.parquet")).to_pylist()
    return outcome, {(row["task"], row["metric"]): row for row in rows}


def _silent(rows: int, **figures: float | str) -> None:
    return None


def test_figures_are_those_of_a_slow_reading(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    _, rows = evaluate(run)
    images, texts, classifier, of_image = _slow_features(run)
    scores = texts @ images.T

    right = [of_image[int(column)] == text for text, row in enumerate(scores) for column in [np.argmax(row)]]
    assert rows["image_retrieval", "R@1"]["value"] == pytest.approx(np.mean(right))
    right = [int(np.argmax(scores[:, image])) == of_image[image] for image in range(len(images))]
    assert rows["text_retrieval", "R@1"]["value"] == pytest.approx(np.mean(right))
    assert rows["text_retrieval", "R@5"]["chance"] == pytest.approx(5 / 7)

    captions = sorted(CAPTIONS, key=text_id)
    wanted = [
        (image, CAPTIONS[captions[text]][0])
        for image, text in enumerate(of_image)
        if len(CAPTIONS[captions[text]]) == 1
    ]
    hits = [int(np.argmax(classifier @ images[image])) == concept for image, concept in wanted]
    assert rows["zero_shot", "top1"]["value"] == pytest.approx(np.mean(hits))
    assert rows["zero_shot", "top1"]["n"] == 12
    assert rows["zero_shot", "top1"]["chance"] == pytest.approx(1 / len(CONCEPTS))


def _slow_features(run: RunDirectory) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Unit features one by one through open_clip itself: images, captions, classifier."""
    import io

    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{run.file('train', 'model')}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    captions = sorted(CAPTIONS, key=text_id)
    heldout = heldout_captions(run, 5000)
    with torch.no_grad():
        images = [
            model.encode_image(preprocess(Image.open(io.BytesIO(data)).convert("RGB"))[None])[0]
            for data in heldout.pictures.read()
            if isinstance(data, bytes)
        ]
        texts = model.encode_text(tokenizer(captions))
        classes = model.encode_text(tokenizer([TEMPLATE.format(name) for name in CONCEPTS]))
    unit = [
        (rows / rows.norm(dim=-1, keepdim=True)).numpy() for rows in (torch.stack(images), texts, classes)
    ]
    ids = [int(key.split("_")[0], 16) for key in heldout.pictures.names]
    order = sorted(text_id(text) for text in CAPTIONS)
    return unit[0], unit[1], unit[2], [order.index(caption) for caption in ids]


def heldout_captions(run: RunDirectory, limit: int) -> Retrieval:
    captions, _ = open_heldout(run, EvaluationConfig(captions=limit), seed=0)
    assert isinstance(captions, Retrieval)
    return captions


def test_every_class_with_an_image_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    _, rows = evaluate(run)
    classes = pq.read_table(run.file("eval", "per_class.parquet")).to_pylist()
    assert [row["name"] for row in classes] == ["apple", "bus", "egg", "fox", "goat", "house"]
    assert sum(row["n"] * row["top1"] for row in classes) / 12 == pytest.approx(
        rows["zero_shot", "top1"]["value"]
    )
    assert all((row["confused_with"] is None) == (row["top1"] == 1) for row in classes)


def test_an_unreadable_image_is_counted_and_left_out(tmp_path: Path) -> None:
    outcome, rows = evaluate(write_run(tmp_path / "run", broken=1))
    assert outcome.rejected == {"unreadable image": 1}
    assert rows["text_retrieval", "R@1"]["n"] == 13
    assert rows["image_retrieval", "R@1"]["n"] == 7


def test_a_caption_whose_only_image_is_unreadable_is_no_query(tmp_path: Path) -> None:
    _, rows = evaluate(write_run(tmp_path / "run", images_per_caption=1, broken=1))
    assert rows["image_retrieval", "R@1"]["n"] == 6


def test_the_cap_draws_captions_by_content(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    few = heldout_captions(run, 3)
    assert len(few.texts) == 3
    assert len(few.pictures) == 6
    assert set(few.texts) < set(heldout_captions(run, 4).texts)


def test_a_run_without_heldout_images_has_no_results(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for manifest in run.manifests("images"):
        run.remove("images", manifest.shard)
    with run.begin("images", "train/00000", "x") as writer:
        writer.commit(Outcome(0))
    outcome, rows = evaluate(run)
    assert rows == {}
    assert outcome.notes["heldout_images"] == 0


def test_the_same_inputs_give_the_same_files(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        evaluate(run)
    first, second = (run.manifests("eval") for run in runs)
    assert first == second


def test_the_shard_follows_its_inputs(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    shards: list[Shard] = []
    for name, images in (("a", 1), ("b", 2)):
        shards += Eval(recipe, write_run(tmp_path / name, images_per_caption=images)).shards()
    assert shards[0].inputs["train"] == shards[1].inputs["train"]
    assert shards[0].inputs["images"] != shards[1].inputs["images"]
