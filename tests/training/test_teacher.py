"""A teacher's features: computed once, those of the text that is drawn, and what a student learns of them."""

import io
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shape_runs import (
    TINY,
    caption,
    train,
    twin_runs,
    weights,
    with_training,
    write_exchanged,
    write_heldout,
    write_images,
)
from torch import Tensor

from synthclip.errors import SynthClipError
from synthclip.evaluation.encoder import Encoder
from synthclip.keys import sha256_of
from synthclip.models import open_clip
from synthclip.models.build import build_model, save_open_clip
from synthclip.models.load import load_encoder
from synthclip.recipe import Recipe, load_recipe
from synthclip.run import pipeline
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory
from synthclip.samples import images
from synthclip.training import Train
from synthclip.training import teacher as teacher_module
from synthclip.training.job import build_trainer
from synthclip.training.loader import Batch
from synthclip.training.teacher import Teacher

Stages = tuple[type[Teacher], type[Train]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with another embedding and picture size than the student's, trained on the same shapes."""
    run = RunDirectory(tmp_path_factory.mktemp("taught") / "run")
    write_images(run, 96)
    recipe = load_recipe("demo", [*TINY, "model.embed_dim=24", "model.vision.image_size_px=48"])
    train(with_training(recipe, epochs=8, lr=0.003), run)
    return str(run.file("train", "model"))


def taught(recipe: Recipe, model: str, weight: float = 0.5, **values: object) -> Recipe:
    return with_training(recipe, teacher={"model": model, "weight": weight}, **values)


def teach(recipe: Recipe, run: RunDirectory) -> list[str]:
    """The teacher's pass; what was made, in order."""
    before = len(run.metrics())
    with run.lock():
        pipeline.update(Teacher(recipe, run), Console(io.StringIO()))
    return [line["shard"] for line in run.metrics()[before:] if line["event"] == "shard"]


def digests(run: RunDirectory) -> dict[str, str]:
    files = [path for path in sorted(run.stage("teacher").rglob("*")) if path.is_file()]
    return {str(path.relative_to(run.path)): sha256_of(path) for path in files}


def batches(recipe: Recipe, run: RunDirectory, end: int) -> list[Batch]:
    stage = Train(recipe, run)
    trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False)
    return list(trainer.loader.batches(0, end))


def features_of(batch: Batch) -> tuple[list[str], Tensor]:
    """The texts of a batch, as far as tokens tell, and what it holds of the teacher."""
    assert batch.taught is not None
    texts = [open_clip.decode(row[1 : int(row.argmax())]) for row in batch.tokens]
    return [" ".join(text.split()) for text in texts], batch.taught


def squeezed(text: str) -> str:
    """Without the spaces that tokens put between digits."""
    return "".join(text.lower().split())


def test_a_batch_holds_the_teachers_features_of_the_texts_that_were_drawn(
    run: RunDirectory, tiny_recipe: Recipe, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions, second captions, prompts and exchanged pairs; more samples than are held at a time."""
    monkeypatch.setattr(teacher_module, "_TOGETHER", 20)
    write_heldout(run, 6)
    write_exchanged(run, 12)
    rows = list(images([run.file("images", "train/00000.parquet")], ["text"]))[:9]
    many = [{"image": row["jpeg"], "text": [f"one {n}", f"two {n}"]} for n, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "many.parquet")
    sources = [{}, {"kind": "exchanged"}, {"kind": "parquet", "path": str(tmp_path / "many.parquet")}]
    recipe = taught(tiny_recipe, model, sources=sources, concept_prompts=0.3, batch_size=24)
    assert teach(recipe, run) == [
        "train/00000",
        "train/00001",
        "exchanged/00000",
        "source-2/00000",
        "prompts/00000",
    ]
    found = [features_of(batch) for batch in batches(recipe, run, 20)]
    texts = [text for of_batch, _ in found for text in of_batch]
    pairs = torch.cat([features for _, features in found])

    encoder = Encoder(*load_encoder(model))
    scale = encoder.logit_scale
    torch.testing.assert_close(pairs[:, 1], encoder.texts(texts), atol=1e-3, rtol=0)
    assert {text.split()[0] for text in texts} == {"a", "one", "two"}
    assert "a red ." in texts, "prompts"

    picture: dict[str, bytes] = {}
    for table in ("train/00000", "train/00001", "exchanged/00000"):
        picture |= {
            squeezed(row["text"]): row["jpeg"]
            for row in images([run.file("images", f"{table}.parquet")], ["text"])
        }
    picture |= {squeezed(text): row["image"] for row in many for text in row["text"]}
    known = [at for at, text in enumerate(texts) if squeezed(text) in picture]
    assert len(known) > 300
    expected = scale * encoder.images([picture[squeezed(texts[at])] for at in known]).features
    torch.testing.assert_close(pairs[known, 0], expected, atol=2e-3 * scale, rtol=0)


def agreement(student: RunDirectory, model: str, run: RunDirectory) -> float:
    """The correlation of the similarities that student and teacher see between pictures and texts."""
    rows = list(images([run.file("images", "train/00000.parquet")], ["text"]))
    seen = []
    for source in (str(student.file("train", "model")), model):
        encoder = Encoder(*load_encoder(source))
        features = encoder.images([row["jpeg"] for row in rows]).features
        seen.append((features @ encoder.texts([row["text"] for row in rows]).T).flatten())
    return float(torch.corrcoef(torch.stack(seen))[0, 1])


def test_a_taught_student_agrees_more_with_its_teacher_and_weight_0_teaches_nothing(
    tmp_path: Path, tiny_recipe: Recipe, model: str
) -> None:
    recipe = with_training(tiny_recipe, epochs=4)
    plain, silent = twin_runs(tmp_path / "one")
    student, stopped = twin_runs(tmp_path / "two")
    train(recipe, plain)
    teach(taught(recipe, model, 0), silent)
    train(taught(recipe, model, 0), silent)
    assert weights(silent) == weights(plain), "reading features changes nothing else"

    lesson = taught(recipe, model, 0.8, checkpoint_steps=5, mask_false_negatives=None)
    for run in (student, stopped):
        teach(lesson, run)
    train(lesson, student)
    assert agreement(student, model, plain) > agreement(plain, model, plain) + 0.1

    stage, calls = Train(lesson, stopped), 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 1

    assert not build_trainer(stage, stage.shards()[0], lambda rows, figures: None, stop).fit()
    train(lesson, stopped)
    assert weights(stopped) == weights(student), "a training that was stopped goes on to the same weights"


def test_a_kill_during_the_teachers_pass_loses_no_finished_shard(
    tmp_path: Path, tiny_recipe: Recipe, model: str
) -> None:
    torch.set_num_threads(1)
    undisturbed, killed = twin_runs(tmp_path, shards=12)
    recipe = taught(tiny_recipe, model)
    assert len(teach(recipe, undisturbed)) == 12
    for more in (1, 3):
        before = len(killed.shard_names("teacher"))
        process = multiprocessing.get_context("fork").Process(target=teach, args=(recipe, killed))
        process.start()
        while process.is_alive() and len(killed.shard_names("teacher")) < before + more:
            time.sleep(0.002)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    there = killed.shard_names("teacher")
    assert 4 <= len(there) < 12
    assert len(teach(recipe, killed)) == 12 - len(there)
    assert digests(killed) == digests(undisturbed)


def test_features_follow_the_teachers_files_and_not_its_name(
    tmp_path: Path, run: RunDirectory, tiny_recipe: Recipe, model: str
) -> None:
    teach(taught(tiny_recipe, model), run)
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert not teach(taught(tiny_recipe, str(moved)), run)
    torch.manual_seed(0)
    save_open_clip(build_model(tiny_recipe.model), moved)
    assert len(teach(taught(tiny_recipe, str(moved)), run)) == 2
    assert not teach(tiny_recipe, run)
    assert not run.shard_names("teacher"), "without a teacher its features go"
    assert not Teacher(tiny_recipe, run).wanted


def test_a_picture_that_the_teacher_cannot_read_is_counted_and_left_out(
    tmp_path: Path, tiny_recipe: Recipe, model: str
) -> None:
    run = RunDirectory(tmp_path)
    write_images(run, 96, damage=lambda row: row == 5)
    recipe = taught(tiny_recipe, model, max_bad_share=0.02)
    teach(recipe, run)
    assert [dict(one.rejected) for one in run.manifests("teacher")] == [{"undecodable image": 1}, {}]
    assert all(
        batch.taught is not None and not batch.taught.isnan().any() for batch in batches(recipe, run, 12)
    )

    write_images(run, 96)  # it is whole by now, but the teacher has not seen it
    assert dict(train(recipe, run).rejected) == {"no features of the teacher": 1}


def test_a_teacher_that_cannot_teach_is_named_before_anything_is_made(
    tmp_path: Path, run: RunDirectory, tiny_recipe: Recipe, model: str
) -> None:
    def refused(model: str) -> str:
        with pytest.raises(SynthClipError) as error:
            pipeline.run(taught(tiny_recipe, model), tmp_path / "new", console=Console(io.StringIO()))
        assert [path.name for path in (tmp_path / "new").iterdir() if path.is_dir()] == []
        return str(error.value)

    assert refused("gone/model") == "training.teacher.model: gone/model: no such file or folder"
    assert "ViT-B-23:openai: no such file, folder or open_clip model; did you" in refused("ViT-B-23:openai")
    assert "open_clip has no such weights: choose one of ViT-B-32:" in refused("ViT-B-32:laion")
    run.write_text("recipe.yaml", tiny_recipe.to_yaml())
    assert "this run has no trained model yet: run `synthclip train" in refused(str(run.path))
    with pytest.raises(SynthClipError, match=r"needs 'teacher', which is not there: run `synthclip teacher`"):
        train(taught(tiny_recipe, model), run)
    with pytest.raises(SynthClipError, match=r"its recipe has no stage teacher"):
        pipeline.run(tiny_recipe, tmp_path / "none", stages=["teacher"], console=Console(io.StringIO()))
    for bad, line in (
        ("{model: x, weight: 2}", r"training.teacher.weight: must be at most 1, not 2"),
        ("{weight: 0.5}", r"training.teacher.model: is required"),
        ("{model: x, temperature: 2}", r"training.teacher: unknown key 'temperature'"),
    ):
        with pytest.raises(SynthClipError, match=line):
            load_recipe("demo", [f"training.teacher={bad}"])
    with pytest.raises(SynthClipError, match=r"training: teacher: .* whole captions: leave out sub_captions"):
        load_recipe("demo", ["training.teacher={model: x}", "training.sub_captions=1"])


def test_features_of_other_samples_are_refused(run: RunDirectory, tiny_recipe: Recipe, model: str) -> None:
    recipe = taught(tiny_recipe, model)
    teach(recipe, run)
    first, second = (run.file("teacher", f"train/0000{number}.arrow") for number in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(whole[:2000])
    with pytest.raises(
        SynthClipError, match=r"train/00000.arrow: cannot be read .*: run `synthclip teacher`"
    ):
        batches(recipe, run, 1)
    first.write_bytes(whole)
    shutil.copy(first, second)
    with pytest.raises(SynthClipError, match=r"no features of the teacher of the text 'A .* wall, picture"):
        batches(recipe, run, 12)


def test_recipes_without_a_teacher_are_as_they_were(run: RunDirectory, tiny_recipe: Recipe) -> None:
    stage = Train(tiny_recipe, run)
    assert stage.reads == ("images",)
    assert "teacher" not in str(stage.values)
    assert "teacher" not in {state.stage for state in pipeline.survey(tiny_recipe, run)}
    assert caption(0) in {
        row["text"] for row in images([run.file("images", "train/00000.parquet")], ["text"])
    }
