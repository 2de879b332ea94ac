import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from heldout_run import picture
from PIL import Image
from safetensors.torch import save_file
from test_datasets import class_folders, hash_of, tar_of
from typer.testing import CliRunner

from small_inputs import MODEL_CONFIG, save_model
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Classification, open_dataset
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.evaluators import Settings, parse_templates
from synthclip.evaluation.features import Features
from synthclip.evaluation.probes import fit_probe
from synthclip.evaluation.suites import SuiteResult, evaluate, open_suite, plan_of, plan_of_names
from synthclip.models.load import load_model, split_preprocess
from synthclip.run.progress import Tasks

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders with six classes and a retrieval set."""
    folder = tmp_path / "data" / "shapes"
    for split, each in (("train", 6), ("test", 6)):
        for label in range(6):
            place = folder / split / f"class {label}"
            place.mkdir(parents=True)
            for number in range(each):
                (place / f"{number}.jpg").write_bytes(picture(hash_of(split, label, number)))
    members: dict[str, bytes] = {}
    for number in range(12):
        members[f"{number:02d}.jpg"] = picture(number)
        members[f"{number:02d}.txt"] = f"picture {number}\nno {number}".encode()
    tar_of(tmp_path / "data" / "caps" / "test" / "0.tar", members)
    (tmp_path / "data" / "caps" / "dataset_type.txt").write_text("retrieval")
    return tmp_path / "data"


def judge(model: Path, suite: str, root: Path, tmp_path: Path, tasks: Tasks | None = None) -> SuiteResult:
    """The settings of every test here: small batches, a cache and an output folder of its own."""
    return evaluate(
        model,
        suite,
        data=root,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        batch_size=16,
        tasks=tasks,
    )


def test_all_tasks_of_a_list_of_sets(model_folder: Path, root: Path, tmp_path: Path) -> None:
    found = judge(model_folder, "shapes,caps", root, tmp_path)
    figures = {(row["dataset"], row["task"], row["metric"]): row for row in found.results}
    assert figures["shapes", "zero_shot", "top1"]["n"] == 36
    assert figures["shapes", "linear_probe", "top1"]["chance"] == pytest.approx(1 / 6)
    assert figures["shapes", "few_shot", "top1"]["n"] == 5000
    assert figures["caps", "image_retrieval", "R@10"]["n"] == 24
    assert figures["caps", "text_retrieval", "R@1"]["n"] == 12
    assert figures["caps", "text_retrieval", "R@1"]["chance"] == pytest.approx(2 / 24)
    for row in found.results:
        assert 0 <= row["ci95_low"] <= row["value"] <= row["ci95_high"] <= 1
    assert found.files is not None
    assert pq.read_table(found.files / "results.parquet").to_pylist() == found.results


class Counting(Tasks):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def update(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def test_cached_features_need_no_model(model_folder: Path, root: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    dataset = open_dataset("shapes", root)
    assert isinstance(dataset, Classification)
    pictures = dataset.splits["test"].pictures
    first = Features(str(model), tmp_path / "cache").images(pictures)
    second = Features(str(model), tmp_path / "cache")
    shutil.rmtree(model)
    again = second.images(pictures)
    assert torch.equal(again.features, first.features)
    assert again.kept.tolist() == first.kept.tolist()


def test_a_probe_is_fitted_once_for_the_same_images_and_labels(
    model_folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []

    def counted(*arguments: Any, **options: Any) -> Any:
        fitted.append(options["classes"])
        return fit_probe(*arguments, **options)

    monkeypatch.setattr("synthclip.evaluation.evaluators.fit_probe", counted)
    first = judge(model_folder, "shapes", root, tmp_path)
    assert judge(model_folder, "shapes", root, tmp_path).results == first.results
    assert fitted == [6]
    shutil.move(
        root / "shapes" / "train" / "class 0" / "0.jpg", root / "shapes" / "train" / "class 1" / "a.jpg"
    )
    judge(model_folder, "shapes", root, tmp_path)
    assert fitted == [6, 6]


def test_another_model_or_other_images_are_encoded_anew(
    model_folder: Path, root: Path, tmp_path: Path
) -> None:
    first = judge(model_folder, "shapes", root, tmp_path)
    tasks = Counting()
    judge(model_folder, "shapes", root, tmp_path, tasks)
    assert (16, 36) not in tasks.steps
    (root / "shapes" / "test" / "class 0" / "0.jpg").write_bytes(picture(4242))
    judge(model_folder, "shapes", root, tmp_path, tasks)
    assert (16, 36) in tasks.steps
    other = save_model(tmp_path / "other", **MODEL_CONFIG, seed=1)
    assert judge(other, "shapes", root, tmp_path).results[0]["checkpoint"] != first.results[0]["checkpoint"]


def test_a_torn_cache_file_is_made_again(model_folder: Path, root: Path, tmp_path: Path) -> None:
    first = judge(model_folder, "shapes", root, tmp_path)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert judge(model_folder, "shapes", root, tmp_path).results == first.results


def test_a_cache_file_that_lies_is_made_again(model_folder: Path, root: Path, tmp_path: Path) -> None:
    first = judge(model_folder, "shapes", root, tmp_path)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 0x40
        path.write_bytes(content)
    assert judge(model_folder, "shapes", root, tmp_path).results == first.results
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        save_file({"other": torch.zeros(2)}, path)
    assert judge(model_folder, "shapes", root, tmp_path).results == first.results


def test_a_cache_that_cannot_be_written_is_one_line(model_folder: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        SynthClipError, match="a file stands where a folder should be: choose another --cache"
    ):
        judge(model_folder, "shapes", root, tmp_path)


def test_prompts_of_ones_own_are_named_in_the_results(model_folder: Path, root: Path, tmp_path: Path) -> None:
    prompts = ("a {}", "the {c}!")
    (tmp_path / "prompts.txt").write_text("a {}\n\nthe {c}!\n")
    assert parse_templates(str(tmp_path / "prompts.txt")) == parse_templates("a {}; the {c}!") == prompts
    assert parse_templates("own") == "own"
    with pytest.raises(SynthClipError, match="choose one of own, imagenet-7, imagenet-80, a file"):
        parse_templates("a photo")
    settings, out = Settings(prompts, episodes=10), tmp_path / "out"
    found = evaluate(model_folder, "shapes", data=root, out=out, cache=tmp_path / "cache", settings=settings)
    named = {row["task"]: row["prompts"] for row in found.results}
    assert named == {"zero_shot": "a {}; the {c}!", "linear_probe": None, "few_shot": None}
    usual = judge(model_folder, "shapes", root, tmp_path)
    assert {row["prompts"] for row in usual.results} == {"a photo of a {}.", None}


def test_imagenets_kin_say_which_prompts_they_took(model_folder: Path, root: Path, tmp_path: Path) -> None:
    for name in ("imagenet-a", "imagenette"):
        class_folders(root / name, splits=("test",))
        (root / name / "zeroshot_classification_templates.txt").write_text("one {c}\n")
    found = judge(model_folder, "imagenet-a,imagenette", root, tmp_path)
    prompts = {row["dataset"]: row["prompts"] for row in found.results}
    assert prompts == {"imagenet-a": "imagenet-7", "imagenette": "one {c}"}
    assert [note for note in found.notes if "--templates own" in note] == [
        "imagenet-a: prompts are the paper's, imagenet-7, not the set's own: --templates own takes those"
    ]


def test_many_data_sets_make_a_folder_of_a_bounded_name(
    model_folder: Path, root: Path, tmp_path: Path
) -> None:
    names = [f"a data set with a rather long name {number}" for number in range(8)]
    for name in names:
        (root / name).symlink_to(root / "caps")
    found = judge(model_folder, ",".join(names), root, tmp_path)
    assert found.files is not None
    assert len(found.files.name) < 120
    other = judge(model_folder, ",".join(names[::-1]), root, tmp_path)
    assert other.files != found.files


def test_download_makes_the_root(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="--download makes it"):
        open_suite("mine", tmp_path / "new")
    with pytest.raises(SynthClipError, match="no data set 'mine'"):
        open_suite("mine", tmp_path / "new" / "root", download=True)
    assert (tmp_path / "new" / "root").is_dir()


def test_unreadable_images_are_counted_and_named(model_folder: Path, root: Path, tmp_path: Path) -> None:
    (root / "shapes" / "test" / "class 3" / "2.jpg").write_bytes(b"no picture")
    found = judge(model_folder, "shapes", root, tmp_path)
    assert {row["n"] for row in found.results if row["task"] == "zero_shot"} == {35}
    assert any("1 images cannot be read" in note and "class 3/2.jpg" in note for note in found.notes)


def test_an_unreadable_image_takes_its_captions_along(model_folder: Path, root: Path, tmp_path: Path) -> None:
    members = {"a.jpg": b"no", "a.txt": b"one\ntwo"}
    for number in range(11):
        members |= {f"p{number}.jpg": picture(number), f"p{number}.txt": f"text {number}".encode()}
    tar_of(root / "caps" / "test" / "0.tar", members)
    found = judge(model_folder, "caps", root, tmp_path)
    assert {row["n"] for row in found.results} == {11}


def test_a_broken_set_does_not_take_the_others_along(model_folder: Path, root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    found = judge(model_folder, "empty,shapes,dtd", root, tmp_path)
    assert {row["dataset"] for row in found.results} == {"shapes"}
    assert "no data in any known layout" in found.failed[0]
    assert "--download" in found.missing[0]


def test_an_unusual_test_split_is_named(model_folder: Path, root: Path, tmp_path: Path) -> None:
    class_folders(root / "dtd")
    found = judge(model_folder, "shapes,dtd", root, tmp_path)
    assert "few-shot needs 5 classes" in found.failed[0]
    assert any(note.startswith("dtd: 9 test images, not the usual 1880") for note in found.notes)


def test_the_papers_suite_is_its_table() -> None:
    plan = plan_of("paper")
    assert plan["aircraft"] == ("linear_probe", "few_shot")
    assert plan["coco"] == ("retrieval",)
    assert plan["imagenet"] == ("zero_shot",)
    assert len(plan) == 13
    assert plan_of("quick,dtd") == {"cifar10": (), "flickr8k": (), "dtd": ()}
    some = plan_of_names(["paper", "dtd"], ["zero_shot", "retrieval"])
    assert some == dict.fromkeys(("coco", "flickr8k", "flickr30k"), ("retrieval",)) | {
        "imagenet": ("zero_shot",),
        "dtd": (),
    }


def test_a_model_of_another_resolution_has_its_own(root: Path, tmp_path: Path) -> None:
    config = json.loads(json.dumps(MODEL_CONFIG))
    config["model_cfg"]["vision_cfg"]["image_size"] = 48
    model = save_model(tmp_path / "model", **config)
    found = judge(model, "shapes", root, tmp_path)
    assert found.results[0]["n"] == 36


def test_features_are_those_of_the_whole_preprocessing_on_any_number_of_threads(model_folder: Path) -> None:
    model, preprocess, tokenizer = load_model(model_folder)
    whole, batched = split_preprocess(preprocess)
    pictures = [Image.open(BytesIO(picture(seed))) for seed in range(5)]
    pixels_53HW = torch.stack([preprocess(one) for one in pictures])
    assert torch.equal(batched(torch.stack([whole(one) for one in pictures])), pixels_53HW)
    with torch.inference_mode():
        wanted = model.encode_image(pixels_53HW, normalize=True).numpy()
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found = Encoder(model, preprocess, tokenizer, batch_size=4).images(
            [*pictures[:3], b"", *pictures[3:]]
        )
        assert found.features.numpy() == pytest.approx(wanted, abs=1e-6)
        assert found.kept.tolist() == [0, 1, 2, 4, 5]
        assert found.unreadable == (3,)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


def test_images_of_a_size_the_model_does_not_take_are_refused(model_folder: Path) -> None:
    model, _, tokenizer = load_model(model_folder)
    encoder = Encoder(model, lambda image: torch.zeros(3, 48, 48), tokenizer)
    with pytest.raises(SynthClipError, match="does not take the 48x48 px images"):
        encoder.images([picture(0)])


def test_the_command_prints_the_table_and_writes_it(model_folder: Path, root: Path, tmp_path: Path) -> None:
    shutil.move(root / "shapes", root / "dtd")
    command = ["eval", str(model_folder), "--suite", "dtd", "--data", str(root), "--episodes", "50"]
    where = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, [*command, *where, "--against", "CC3M"])
    assert result.exit_code == 0, result.output
    assert "CC12M" in result.output
    assert "Delta_MTL against CC3M" in result.output
    assert "over 2 of 5 tasks" in result.output
    results = pq.read_table(tmp_path / "out" / "suites" / "dtd" / "results.parquet").to_pylist()
    assert next(row["n"] for row in results if row["task"] == "few_shot") == 50
    against = CliRunner().invoke(app, [*command, *where, "--against", str(tmp_path / "out/suites/dtd")])
    assert against.exit_code == 0, against.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "paper"], "needs --data ROOT"),
        (["--suite", "paper", "--data", "nowhere"], "no such folder"),
        (["--data", ".", "--templates", "80"], "choose one of own"),
        (["--suite", "shapes,dtd", "--data", "."], "none of the suite's 2 data sets can be used"),
        (["seed=1", "--data", "."], "seed=1: --suite takes no overrides of a recipe"),
        (["--data", ".", "--against", "CC4M"], "did you mean 'CC3M'"),
    ],
)
def test_bad_commands(
    model_folder: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    result = CliRunner().invoke(app, ["eval", str(model_folder), *arguments])
    assert isinstance(result.exception, SynthClipError)
    assert message in str(result.exception)


def test_a_set_with_nothing_to_learn_from_is_zero_shot_only(
    model_folder: Path, root: Path, tmp_path: Path
) -> None:
    shutil.rmtree(root / "shapes" / "train")
    found = judge(model_folder, "shapes", root, tmp_path)
    assert {row["task"] for row in found.results} == {"zero_shot"}
    assert np.isfinite([row["value"] for row in found.results]).all()


def test_a_root_without_data_and_a_set_without_a_readable_image_are_named(
    model_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(SynthClipError, match=rf"^{root}: an empty folder: --data names the one"):
        judge(model_folder, "paper", root, tmp_path)
    (root / "shapes").mkdir()
    with pytest.raises(SynthClipError, match=rf"^{root}/shapes: no data in any known layout"):
        judge(model_folder, "shapes", root, tmp_path)
    class_folders(root / "shapes")
    for path in root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        SynthClipError, match=r"shapes, zero_shot: none of 9 images can be read \(test/apple/0\.jpg, …\)"
    ):
        judge(model_folder, "shapes", root, tmp_path)
    for path in root.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(SynthClipError, match=rf"^{root}/shapes/train: no images in its class folders"):
        judge(model_folder, "shapes", root, tmp_path)
