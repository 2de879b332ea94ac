"""Data sets as they are found on people's disks: nothing is guessed or left out without a line."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heldout_run import picture
from PIL import Image
from test_datasets import captioned, class_folders, classification, retrieval, tar_of

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import identity, open_dataset


def parquet(
    path: Path, labels: Sequence[int | None], names: list[str], image: str = "image", **more: list[int]
) -> None:
    """A file in Hugging Face's layout; the columns of `more` are classes too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    columns = {image: pa.array(rows), "label": pa.array(labels, pa.int64())} | {
        name: pa.array(values, pa.int64()) for name, values in more.items()
    }
    features = {name: {"names": names, "_type": "ClassLabel"} for name in columns if name != image}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def coco(path: Path, images: dict[str, list[str]], stray: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [{"id": number, "file_name": name} for number, name in enumerate(images)]
    captions = [
        {"image_id": number, "caption": text}
        for number, texts in enumerate(images.values())
        for text in texts
    ]
    captions += [{"image_id": 10_000 + number, "caption": "stray"} for number in range(stray)]
    path.write_text(json.dumps({"images": known, "annotations": captions}))


def test_cocos_validation_is_taken_by_its_name(tmp_path: Path) -> None:
    captioned(tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"
    coco(folder / "captions_train2017.json", {"0.jpg": ["of training"]})
    coco(folder / "captions_val2017.json", {"1.jpg": ["of validation"], "2.jpg": ["another"]})
    dataset = retrieval("coco", tmp_path)
    assert dataset.texts == ("of validation", "another")
    assert dataset.notes == (
        "captions are taken from annotations/captions_val2017.json, not from captions_train2017.json",
    )


def test_one_stray_caption_is_left_out_and_many_are_refused(tmp_path: Path) -> None:
    captioned(tmp_path / "mine")
    file = tmp_path / "mine" / "captions_val.json"
    coco(file, {"0.jpg": ["zero"], "1.jpg": ["one"], "2.jpg": ["two"], "gone.jpg": ["gone"]}, stray=1)
    dataset = retrieval("mine", tmp_path)
    assert dataset.texts == ("zero", "one", "two")
    assert any("1 images are not there, their captions left out (gone.jpg)" in note for note in dataset.notes)
    assert any("1 rows of captions_val.json are no captions" in note for note in dataset.notes)
    coco(file, {"0.jpg": ["zero"], "1.jpg": ["one"]}, stray=2)
    with pytest.raises(SynthClipError, match="2 of 4 rows are no captions"):
        open_dataset("mine", tmp_path)


def test_an_image_without_captions_in_a_tar_is_left_out(tmp_path: Path) -> None:
    members = {
        "a.jpg": picture(1),
        "a.txt": b"one",
        "b.jpg": picture(2),
        "b.txt": b"two",
        "c.jpg": picture(3),
    }
    tar_of(tmp_path / "caps" / "test" / "0.tar", members)
    (tmp_path / "caps" / "dataset_type.txt").write_text("retrieval")
    dataset = retrieval("caps", tmp_path)
    assert dataset.texts == ("one", "two")
    assert len(dataset.pictures) == 2
    assert dataset.notes == ("1 images without captions are left out (c)",)


def test_pictures_are_known_by_their_content_and_others_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path / "mine", splits=("test",))
    folder = tmp_path / "mine" / "test" / "bus"
    (folder / "9.jfif").write_bytes(picture(9))
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    (folder / "10.picture").write_bytes(buffer.getvalue())
    (folder / "readme.md").write_text("a text")
    dataset = classification("mine", tmp_path)
    assert {"test/bus/9.jfif", "test/bus/10.picture"} < set(dataset.splits["test"].pictures.names)
    assert dataset.notes == ("1 files are no pictures and are left out (test/bus/readme.md)",)


def test_folders_of_operating_systems_are_no_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, splits=("set",))
    for name in ("__MACOSX", "@eaDir", ".AppleDouble", "lost+found"):
        (tmp_path / "set" / name).mkdir()
        (tmp_path / "set" / name / "0.jpg").write_bytes(picture(1))
    (tmp_path / "set" / "bus" / "._0.jpg").write_bytes(picture(2))
    dataset = classification("set", tmp_path)
    assert dataset.class_names == ("apple", "bus", "hot dog")
    assert len(dataset.splits["test"].pictures) == 9
    (note,) = dataset.notes
    assert note.startswith("folders of the operating system left out: ")


@pytest.mark.parametrize("name", ["train", "val", "dev", "test"])
def test_a_class_may_be_called_as_a_split_is(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path, splits=("set",))
    (tmp_path / "set" / "bus").rename(tmp_path / "set" / name)
    dataset = classification("set", tmp_path)
    assert sorted(dataset.class_names) == sorted(("apple", "hot dog", name))
    assert dataset.splits.keys() == {"test"}


def test_what_stands_beside_the_splits_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    (tmp_path / "set" / "meta").mkdir()
    dataset = classification("set", tmp_path)
    assert dataset.splits.keys() == {"train", "test"}
    assert dataset.notes == ("beside the splits left out: meta",)


@pytest.mark.parametrize("unknown", [-1, None])
def test_a_test_split_without_labels_gives_way_to_the_validation(tmp_path: Path, unknown: int | None) -> None:
    folder = tmp_path / "set" / "data"
    for split, labels in (("train", [0, 1, 0]), ("validation", [1, 0]), ("test", [unknown] * 3)):
        parquet(folder / f"{split}-00000-of-00001.parquet", labels, ["tractor", "camel"])
    dataset = classification("set", tmp_path)
    assert dataset.splits["test"].labels.tolist() == [1, 0]
    assert dataset.notes == (
        "the test split has no labels and is left out",
        "the validation split is taken for the test",
    )


def test_a_configurations_folder_and_its_columns_are_found(tmp_path: Path) -> None:
    names = ["airplane", "automobile"]
    folder = tmp_path / "cifar10"
    parquet(folder / "plain_text" / "test-00000-of-00001.parquet", [0, 1], names, image="img", coarse=[1, 1])
    dataset = classification("cifar10", tmp_path)
    assert dataset.splits["test"].labels.tolist() == [0, 1]
    assert dataset.notes == ("the label is column 'label', not coarse",)
    chosen = classification("cifar10?image=img&label=coarse", tmp_path)
    assert chosen.splits["test"].labels.tolist() == [1, 1]
    assert identity("cifar10?label=coarse", tmp_path) == identity("cifar10", tmp_path)
    with pytest.raises(SynthClipError, match=r"no column 'other': found img, label, coarse"):
        open_dataset("cifar10?label=other", tmp_path)
    parquet(folder / "other_text" / "test" / "0.parquet", [1, 0], names)
    with pytest.raises(SynthClipError, match="several configurations \\(other_text, plain_text\\): name one"):
        open_dataset("cifar10", tmp_path)
    assert classification("cifar10/other_text", tmp_path).splits["test"].labels.tolist() == [1, 0]


def test_imagenets_names_are_the_same_whatever_the_layout(tmp_path: Path) -> None:
    parquet(
        tmp_path / "imagenet" / "data" / "validation-00000-of-00001.parquet",
        [0, 1],
        ["tench, Tinca tinca", "goldfish, Carassius auratus"],
    )
    for wordnet in ("n01440764", "n01443537"):
        folder = tmp_path / "folders" / "val" / wordnet
        folder.mkdir(parents=True)
        (folder / "0.JPEG").write_bytes(picture(0))
    names = classification("imagenet", tmp_path).class_names
    assert names == classification("folders", tmp_path).class_names == ("tench", "goldfish")
