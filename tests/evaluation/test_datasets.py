import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heldout_run import picture

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Classification, MissingDataError, Retrieval, open_dataset
from synthclip.keys import digest

CLASSES = ("apple", "bus", "hot_dog")


def class_folders(root: Path, *, each: int = 3, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                data = picture(hash_of(split, label, number))
                (folder / f"{number}.jpg").write_bytes(data)
    return root


def hash_of(split: str, label: int, number: int) -> int:
    return (split == "train") * 1000 + label * 100 + number


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def wds_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classnames.txt").write_text("apple\nbus\nhot dog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\n")
    for split in ("train", "test"):
        for shard in range(2):
            members: dict[str, bytes] = {}
            for number in range(3):
                members[f"s{shard}{number}.cls"] = str(number).encode()
                members[f"s{shard}{number}.jpg"] = picture(hash_of(split, number, shard))
            tar_of(root / split / f"{shard}.tar", members)
        (root / split / "nshards.txt").write_text("2")
    return root


def hf_parquet(root: Path, *, labels: pa.Array | None = None, metadata: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    labels = pa.array([0, 1, 2, 1], pa.int64()) if labels is None else labels
    images = pa.array([{"bytes": picture(n), "path": None} for n in range(4)])
    table = pa.table({"image": images, "label": labels})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, root / "test-00000-of-00001.parquet")
    return root


def captioned(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for number in range(3):
        (root / "images" / f"{number}.jpg").write_bytes(picture(number))


def classification(name: str, root: Path) -> Classification:
    dataset = open_dataset(name, root)
    assert isinstance(dataset, Classification)
    return dataset


def retrieval(name: str, root: Path) -> Retrieval:
    dataset = open_dataset(name, root)
    assert isinstance(dataset, Retrieval)
    return dataset


def test_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "mine")
    dataset = classification("mine", tmp_path)
    assert dataset.class_names == ("apple", "bus", "hot dog")
    assert dataset.splits.keys() == {"train", "test"}
    assert dataset.splits["test"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(dataset.splits["test"].pictures.read())[4] == picture(hash_of("test", 1, 1))
    assert dataset.splits["test"].pictures.names[4] == "test/bus/1.jpg"


def test_class_folders_without_splits_are_a_test_split(tmp_path: Path) -> None:
    class_folders(tmp_path, splits=("mine",))
    assert classification("mine", tmp_path).splits.keys() == {"test"}


def test_imagenet_folders_have_open_clips_names(tmp_path: Path) -> None:
    for wordnet in ("n01440764", "n01443537"):
        folder = tmp_path / "imagenet" / "val" / wordnet
        folder.mkdir(parents=True)
        (folder / "a.JPEG").write_bytes(picture(1))
    dataset = classification("imagenet", tmp_path)
    assert dataset.class_names == ("tench", "goldfish")
    assert dataset.splits.keys() == {"test"}


def test_numbered_folders_need_names(tmp_path: Path) -> None:
    for number in ("0", "1", "10", "2"):
        folder = tmp_path / "mine" / "test" / number
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(picture(int(number)))
    with pytest.raises(SynthClipError, match=r"add a classnames\.txt"):
        open_dataset("mine", tmp_path)
    (tmp_path / "mine" / "classnames.txt").write_text("zero\none\ntwo\nten\n")
    dataset = classification("mine", tmp_path)
    assert [dataset.class_names[label] for label in dataset.splits["test"].labels] == [
        "zero",
        "one",
        "two",
        "ten",
    ]


def test_clip_benchmarks_tars(tmp_path: Path) -> None:
    wds_folder(tmp_path / "wds_vtab-fruit")
    dataset = classification("wds/vtab/fruit", tmp_path)
    assert dataset.class_names == ("apple", "bus", "hot dog")
    assert dataset.templates == ("a photo of {c}.",)
    assert dataset.splits["test"].labels.tolist() == [0, 1, 2, 0, 1, 2]
    expected = [picture(hash_of("test", label, shard)) for shard in range(2) for label in range(3)]
    assert list(dataset.splits["test"].pictures.read()) == expected
    assert dataset.splits["test"].pictures.digest != dataset.splits["train"].pictures.digest


def test_clip_benchmarks_retrieval_tars(tmp_path: Path) -> None:
    members = {"a.jpg": picture(1), "a.txt": b"one\ntwo", "b.jpg": picture(2), "b.txt": b"three"}
    tar_of(tmp_path / "caps" / "test" / "0.tar", members)
    (tmp_path / "caps" / "dataset_type.txt").write_text("retrieval\n")
    dataset = retrieval("caps", tmp_path)
    assert dataset.texts == ("one", "two", "three")
    assert dataset.pairs.tolist() == [[0, 0], [1, 0], [2, 1]]
    assert list(dataset.pictures.read()) == [picture(1), picture(2)]


def test_equal_captions_of_several_images_are_one_text(tmp_path: Path) -> None:
    members = {"a.jpg": picture(1), "a.txt": b"a dog\ntwo\ntwo", "b.jpg": picture(2), "b.txt": b"a dog"}
    tar_of(tmp_path / "caps" / "test" / "0.tar", members)
    (tmp_path / "caps" / "dataset_type.txt").write_text("retrieval\n")
    dataset = retrieval("caps", tmp_path)
    assert dataset.texts == ("a dog", "two")
    assert dataset.pairs.tolist() == [[0, 0], [1, 0], [0, 1]]


def test_hugging_face_parquet(tmp_path: Path) -> None:
    hf_parquet(tmp_path / "mine" / "data")
    dataset = classification("mine", tmp_path)
    assert dataset.class_names == ("apple", "bus", "hot dog")
    assert dataset.splits["test"].labels.tolist() == [0, 1, 2, 1]
    assert list(dataset.splits["test"].pictures.read()) == [picture(n) for n in range(4)]


def test_coco_json(tmp_path: Path) -> None:
    captioned(tmp_path / "mine")
    data = {
        "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 9, "file_name": "0.jpg"}],
        "annotations": [
            {"image_id": 9, "caption": "a zero"},
            {"image_id": 7, "caption": "a one "},
            {"image_id": 9, "caption": "again"},
        ],
    }
    (tmp_path / "mine" / "annotations").mkdir()
    (tmp_path / "mine" / "annotations" / "captions_val2017.json").write_text(json.dumps(data))
    dataset = retrieval("mine", tmp_path)
    assert dataset.texts == ("a zero", "a one", "again")
    assert dataset.pairs.tolist() == [[0, 0], [1, 1], [2, 0]]
    assert list(dataset.pictures.read()) == [picture(0), picture(1)]


def test_karpathys_test_split(tmp_path: Path) -> None:
    captioned(tmp_path / "mine")
    data = {
        "images": [
            {"filename": "0.jpg", "split": "train", "sentences": [{"raw": "no"}]},
            {"filename": "2.jpg", "split": "test", "sentences": [{"raw": "yes"}, {"raw": "also"}]},
        ]
    }
    (tmp_path / "mine" / "dataset_mine.json").write_text(json.dumps(data))
    dataset = retrieval("mine", tmp_path)
    assert dataset.texts == ("yes", "also")
    assert dataset.pictures.names == ["images/2.jpg"]


def test_flickr_tokens_with_a_list_of_test_images(tmp_path: Path) -> None:
    captioned(tmp_path / "mine")
    tokens = "0.jpg#0\tA zero .\n0.jpg#1\tAgain .\n1.jpg#0\tA one .\n"
    (tmp_path / "mine" / "Flickr8k.token.txt").write_text(tokens)
    assert len(retrieval("mine", tmp_path).texts) == 3
    (tmp_path / "mine" / "Flickr_8k.testImages.txt").write_text("1.jpg\n")
    assert retrieval("mine", tmp_path).texts == ("A one .",)


def test_captions_table(tmp_path: Path) -> None:
    captioned(tmp_path / "mine")
    (tmp_path / "mine" / "captions.txt").write_text('image,caption\n0.jpg,"a, b"\n2.jpg,two\n')
    assert retrieval("mine", tmp_path).texts == ("a, b", "two")


def test_torchvisions_layout(tmp_path: Path) -> None:
    folder = tmp_path / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        lines = []
        for name in ("banded", "polka_dotted"):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            (folder / "images" / name / f"{number}.jpg").write_bytes(picture(number + len(name)))
            lines.append(f"{name}/{number}.jpg")
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
    dataset = classification("dtd", tmp_path)
    assert dataset.class_names == ("banded", "polka dotted")
    assert dataset.splits.keys() == {"train", "val", "test"}
    assert dataset.splits["test"].labels.tolist() == [0, 1]
    assert list(dataset.splits["test"].pictures.read()) == [picture(8), picture(14)]


def test_a_torchvision_set_that_is_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(SynthClipError, match="cifar-100-python"):
        open_dataset("cifar100", tmp_path)


@pytest.mark.parametrize("make", [wds_folder, hf_parquet])
def test_packed_files_are_hashed_once_and_only_for_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    make(tmp_path / "mine")
    hashed: list[str] = []

    def sha256_of(path: Path) -> str:
        hashed.append(path.name)
        return path.name

    monkeypatch.setattr("synthclip.evaluation.data.packed.sha256_of", sha256_of)
    pictures = classification("mine", tmp_path).splits["test"].pictures
    assert not hashed
    assert pictures.digest == pictures.digest == digest(*hashed) != digest()


def test_a_digest_follows_the_content(tmp_path: Path) -> None:
    first = classification("a", class_folders(tmp_path / "a").parent).splits["test"].pictures.digest
    (tmp_path / "a" / "test" / "bus" / "0.jpg").write_bytes(picture(77))
    assert classification("a", tmp_path).splits["test"].pictures.digest != first


def test_a_missing_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="--download fetches it"):
        open_dataset("dtd", tmp_path)
    with pytest.raises(MissingDataError, match="no data set 'mine'"):
        open_dataset("mine", tmp_path)


def _empty(root: Path) -> None:
    root.mkdir()


def _one_class(root: Path) -> None:
    (root / "test" / "only").mkdir(parents=True)
    (root / "test" / "only" / "a.jpg").write_bytes(picture(0))


def _no_images(root: Path) -> None:
    (root / "test" / "a").mkdir(parents=True)
    (root / "test" / "b").mkdir()


def _too_few_names(root: Path) -> None:
    wds_folder(root)
    (root / "classnames.txt").write_text("apple\nbus\n")


def _wrong_names_for_folders(root: Path) -> None:
    class_folders(root)
    (root / "classnames.txt").write_text("apple\nbus\n")


def _labels_in_strings(root: Path) -> None:
    hf_parquet(root, labels=pa.array(["apple", "bus", "hot dog", "bus"]))


def _tar_labels_in_strings(root: Path) -> None:
    wds_folder(root)
    tar_of(root / "test" / "0.tar", {"a.jpg": picture(0), "a.cls": b"apple"})


def _torn_tar(root: Path) -> None:
    wds_folder(root)
    whole = (root / "test" / "0.tar").read_bytes()
    (root / "test" / "0.tar").write_bytes(whole[:700])


def _no_names(root: Path) -> None:
    hf_parquet(root, metadata=False)


def _missing_images(root: Path) -> None:
    captioned(root)
    (root / "captions.txt").write_text("image,caption\n0.jpg,zero\n5.jpg,five\n6.jpg,six\n")


def _not_json(root: Path) -> None:
    captioned(root)
    (root / "captions_val.json").write_text("{")


def _not_parquet(root: Path) -> None:
    root.mkdir()
    (root / "test.parquet").write_bytes(b"no")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, "no data in any known layout"),
        (_one_class, "1 class: at least two"),
        (_no_images, "no images in its class folders"),
        (_too_few_names, "labels run from 0 to 2, but there are 2 class names"),
        (_wrong_names_for_folders, "2 names for 3 class folders"),
        (_labels_in_strings, "'label' holds string, not class numbers"),
        (_tar_labels_in_strings, "sample 'a': its .cls is 'apple': a class number is needed"),
        (_torn_tar, "not a whole tar"),
        (_no_names, "neither the metadata nor a classnames.txt"),
        (_missing_images, r"2 of the 3 images it names are not below .*'5.jpg'"),
        (_not_json, "not a captions file"),
        (_not_parquet, "not a Parquet file"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "mine")
    with pytest.raises(SynthClipError, match=message) as caught:
        open_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value)
