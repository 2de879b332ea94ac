"""The suites end to end, on made data in every layout that the real sets come in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heldout_run import picture
from test_datasets import tar_of
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.evaluation.paper import cells

pytestmark = pytest.mark.slow

CLASSES = ("red", "green", "blue", "black", "white")
SPLITS = {"train": 5, "test": 6}
"""Images of each class: few-shot needs 5 and 6."""
WORDNET = ("n01440764", "n01443537")


def samples(split: str) -> list[tuple[int, bytes]]:
    start = 1000 * list(SPLITS).index(split)
    return [(label, picture(start + 10 * label + n)) for label in range(5) for n in range(SPLITS[split])]


def as_folders(folder: Path) -> None:
    for split in SPLITS:
        for number, (label, data) in enumerate(samples(split)):
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:02d}.jpg").write_bytes(data)


def as_tars(folder: Path) -> None:
    for split in SPLITS:
        members: dict[str, bytes] = {}
        for number, (label, data) in enumerate(samples(split)):
            members |= {f"{number:02d}.cls": str(label).encode(), f"{number:02d}.jpg": data}
        tar_of(folder / split / "0.tar", members)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}.")


def as_parquet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in SPLITS:
        labels, pictures = zip(*samples(split), strict=True)
        table = pa.table({"image": [{"bytes": data} for data in pictures], "label": labels})
        features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{split}-00000-of-00001.parquet")


def as_torchvision(folder: Path) -> None:
    """DTD's archive, unpacked."""
    for split in ("train", "test"):
        lines = []
        for number, (label, data) in enumerate(samples(split)):
            lines.append(f"{CLASSES[label]}/{split}{number:02d}.jpg")
            place = folder / "dtd" / "images" / lines[-1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        (folder / "dtd" / "labels").mkdir(exist_ok=True)
        (folder / "dtd" / "labels" / f"{split}1.txt").write_text("\n".join(lines))
        if split == "train":
            (folder / "dtd" / "labels" / "val1.txt").write_text("\n".join(lines[::5]))


def as_imagenet(folder: Path) -> None:
    for label, wordnet in enumerate(WORDNET):
        (folder / "val" / wordnet).mkdir(parents=True)
        for number in range(3):
            (folder / "val" / wordnet / f"{number}.JPEG").write_bytes(picture(10 * label + number))


def as_retrieval_tars(folder: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(12):
        members |= {f"{number:02d}.jpg": picture(number), f"{number:02d}.txt": f"a {number}\none".encode()}
    tar_of(folder / "test" / "0.tar", members)
    (folder / "dataset_type.txt").write_text("retrieval")


def loose_images(folder: Path) -> list[str]:
    (folder / "images").mkdir(parents=True)
    names = [f"{number}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        (folder / "images" / name).write_bytes(picture(number))
    return names


def as_coco(folder: Path) -> None:
    names = loose_images(folder)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [{"image_id": number // 2, "caption": f"caption {number}"} for number in range(24)]
    (folder / "captions_val2017.json").write_text(json.dumps({"images": images, "annotations": captions}))


def as_tokens(folder: Path) -> None:
    lines = [f"{name}#{n}\tcaption {n} of {name}" for name in loose_images(folder) for n in range(2)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines))


LAYOUTS = {
    "cifar10": as_parquet,
    "cifar100": as_tars,
    "aircraft": as_tars,
    "dtd": as_torchvision,
    "flowers": as_tars,
    "pets": as_folders,
    "sun397": as_folders,
    "caltech101": as_tars,
    "food101": as_parquet,
    "coco": as_coco,
    "flickr8k": as_tokens,
    "flickr30k": as_retrieval_tars,
    "imagenet": as_imagenet,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set of the paper's table."""
    folder = tmp_path_factory.mktemp("data")
    for name, write in LAYOUTS.items():
        write(folder / name)
    return folder


def run_eval(model: Path, root: Path, tmp_path: Path, suite: str) -> tuple[str, Path]:
    where = ["--data", str(root), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["eval", str(model), "--suite", suite, "--episodes", "20", *where])
    assert result.exit_code == 0, result.output
    return result.output, tmp_path / "out" / "suites" / suite / "results.parquet"


def test_one_command_fills_the_papers_table(model_folder: Path, root: Path, tmp_path: Path) -> None:
    output, path = run_eval(model_folder, root, tmp_path, "paper")
    rows = pq.read_table(path).to_pylist()
    main = {"linear_probe": "top1", "few_shot": "top1", "zero_shot": "top1"}
    filled = {(row["task"], row["dataset"]) for row in rows if row["metric"] == main.get(row["task"], "R@5")}
    assert set(cells()) <= filled
    assert np.isfinite([row["value"] for row in rows]).all()
    for baseline in ("CC3M", "CC12M"):
        line = next(line for line in output.splitlines() if f"Delta_MTL against {baseline}" in line)
        assert "at hand only" not in line
    header = next(line for line in output.splitlines() if "data set" in line)
    assert {"CC12M", "SynthCI-30M"} <= set(header.split())
    note = next(line for line in output.splitlines() if line.startswith("cifar10: "))
    assert note == "cifar10: 30 test images, not the usual 10000: not comparable with published results"


def test_what_is_missing_is_a_line_with_its_remedy(model_folder: Path, root: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for name in ("cifar10", "flickr8k"):
        shutil.copytree(root / name, few / name)
    output, path = run_eval(model_folder, few, tmp_path, "paper")
    missing = [line for line in output.splitlines() if "no data set" in line]
    assert len(missing) == len(LAYOUTS) - 2
    assert all("--download fetches it from the hub" in line for line in missing)
    assert {row["dataset"] for row in pq.read_table(path).to_pylist()} == {"cifar10", "flickr8k"}
    assert "over 4 of 5 tasks and the data sets at hand only" in output
    output, path = run_eval(model_folder, few, tmp_path, "quick")
    assert "no data set" not in output
    tasks = {(row["dataset"], row["task"]) for row in pq.read_table(path).to_pylist()}
    assert tasks == {
        ("cifar10", "zero_shot"),
        ("cifar10", "linear_probe"),
        ("cifar10", "few_shot"),
        ("flickr8k", "image_retrieval"),
        ("flickr8k", "text_retrieval"),
    }


def test_robustness_is_zero_shot_on_imagenets_kin(model_folder: Path, tmp_path: Path) -> None:
    as_imagenet(tmp_path / "data" / "imagenet-v2")
    as_tars(tmp_path / "data" / "objectnet")
    output, path = run_eval(model_folder, tmp_path / "data", tmp_path, "robustness")
    rows = pq.read_table(path).to_pylist()
    assert {(row["dataset"], row["task"]) for row in rows} == {
        ("imagenet-v2", "zero_shot"),
        ("objectnet", "zero_shot"),
    }
    assert output.count("no data set") == 4


def test_a_broken_set_stops_none_of_the_others(model_folder: Path, root: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(root / "cifar100", few / "cifar100")
    shutil.copytree(root / "pets", few / "pets")
    (few / "cifar100" / "classnames.txt").write_text("red\ngreen\n")
    where = ["--data", str(few), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, ["eval", str(model_folder), "--suite", "paper", "--episodes", "20", *where]
    )
    assert isinstance(result.exception, SynthClipError)
    assert "cifar100, train: labels run from 0 to 4, but there are 2 class names" in str(result.exception)
    assert "pets" in result.output
