"""Which files of a tar are one sample, and what becomes of the others."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.samples import Concatenated, SampleError, TarSource, any_shards, own_shards
from synthclip.samples.tars import TarWriter, entries, members, split_name

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[3] / "shared"))


def picture(kind: str = "JPEG", seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def tar_of(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def source(folder: Path, *files: tuple[str, bytes], caption_key: str = "caption") -> Concatenated:
    path = folder / "0.tar"
    path.write_bytes(tar_of(*files))
    return any_shards([str(path)], caption_key)


def texts(found: Concatenated) -> list[str]:
    return [found.read(index).text for index in range(len(found))]


def reasons(found: Concatenated) -> dict[str, str]:
    return {name.rpartition(" ")[2]: reason for name, reason in found.bad_rows.items()}


key = st.text("ab.0-_", min_size=1, max_size=6).filter(lambda text: text.strip(".") == text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    keys=st.lists(st.tuples(st.sampled_from(["", "x/", "x.y/"]), key), min_size=1, max_size=6, unique=True)
)
def test_every_key_is_one_sample_whatever_dots_it_holds_and_wherever_its_files_stand(
    keys: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = [folder + name for folder, name in keys]
    pictures = [(f"{name}.jpg", picture(seed=number)) for number, name in enumerate(names)]
    captions = [(f"{name}.txt", name.encode()) for name in names]
    found = source(tmp_path_factory.mktemp("tar"), *pictures, *reversed(captions))
    assert texts(found) == names
    assert [found.read(number).image for number in range(len(names))] == [data for _, data in pictures]
    assert not found.bad_rows


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_a_name_is_its_key_and_kind(name: str) -> None:
    stem, kind = split_name(name)
    assert "." not in kind
    assert "/" not in kind
    assert name.lower() == (f"{stem}.{kind}" if kind or name.endswith(".") else stem).lower()


def test_masks_and_features_beside_a_picture_are_left_out(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        ("a.seg.png", picture("PNG", 1)),
        ("a.webp", picture("WEBP", 2)),
        ("a.txt", b"one"),
        ("a.json", b'{"concept_ids": [3, 1]}'),
        ("a.npy", b"features"),
        ("a.seg.json", b"{}"),
        ("._a.jpg", b"AppleDouble"),
        ("__MACOSX/a.jpg", b"AppleDouble"),
    )
    assert texts(found) == ["one"]
    assert found.read(0).image == picture("WEBP", 2)
    assert found.read(0).concept_ids == (3, 1)
    assert not found.bad_rows


def test_kinds_that_share_what_stands_before_their_first_dot_are_one_sample(tmp_path: Path) -> None:
    found = source(
        tmp_path, ("a.rgb.jpg", picture()), ("a.txt", b"one"), ("b.jpg", picture()), ("b.caption.txt", b"two")
    )
    assert texts(found) == ["one", "two"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("ending", ["jfif", "JPG", "dat"])
def test_a_picture_is_known_by_its_content(tmp_path: Path, kind: str, ending: str) -> None:
    found = source(tmp_path, (f"a.{ending}", picture(kind)), ("a.TXT", b"\xef\xbb\xbfone"))
    assert texts(found) == ["one"]
    assert found.read(0).image == picture(kind)


def test_what_is_no_pair_is_named_with_its_reason(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        ("good.jpg", picture()),
        ("good.txt", b"good"),
        ("text.txt", b"no picture"),
        ("alone.jpg", picture()),
        ("two.jpg", picture()),
        ("two.png", picture("PNG")),
        ("two.txt", b"which"),
        ("class.jpg", picture()),
        ("class.cls", b"3"),
        ("latin.jpg", picture()),
        ("latin.txt", b"caf\xe9"),
        ("long.jpg", picture()),
        ("long.txt", b"x" * 2**21),
        ("keyless.jpg", picture()),
        ("keyless.json", b'{"alt": "a"}'),
        ("list.jpg", picture()),
        ("list.json", b'{"caption": ["a", "b"]}'),
        ("deep.jpg", picture()),
        ("deep.json", b"[" * 100_000),
        ("stray.npy", b"1"),
    )
    assert texts(found) == ["good"]
    assert reasons(found) == {
        "text": "no picture",
        "alone": "no caption",
        "two": "several pictures: jpg, png",
        "class": "no caption: a class (.cls) alone",
        "latin": ".txt is not UTF-8",
        "long": ".txt larger than 1 MiB",
        "keyless": "no caption: its .json has no 'caption'",
        "list": "no caption: 'caption' in its .json is no text",
        "deep": "no caption: its .json cannot be read",
        "stray": "neither a picture nor a text",
    }


def test_the_key_of_a_caption_in_json_can_be_said(tmp_path: Path) -> None:
    pairs = [("a.jpg", picture()), ("a.json", json.dumps({"caption": "one", "alt": "two"}).encode())]
    assert texts(source(tmp_path, *pairs)) == ["one"]
    assert texts(source(tmp_path, *pairs, caption_key="alt")) == ["two"]


def test_a_name_twice_in_a_tar_is_two_samples(tmp_path: Path) -> None:
    pair = [("a.jpg", picture()), ("a.txt", b"one")]
    assert texts(source(tmp_path, *pair, pair[0], ("a.txt", b"two"))) == ["one", "two"]


def test_a_compressed_tar_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "0.tar.gz"
    path.write_bytes(gzip.compress(tar_of(("a.jpg", picture()), ("a.txt", b"one"))))
    with pytest.raises(SynthClipError, match=r"0\.tar\.gz: .*compressed by gzip: decompress it"):
        any_shards([str(path)])


def test_a_tar_without_any_pair_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match=r"sample a: no caption; none of its samples can be used"):
        source(tmp_path, ("a.jpg", picture()))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_8_gib_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size, info.type = 2**33 - 1, kind
    content = (
        tar_of(("b.jpg", picture()), ("b.txt", b"one"))[:-10240]
        + info.tobuf(tarfile.GNU_FORMAT)
        + bytes(1536)
    )
    tracemalloc.start()
    found, damage = entries(io.BytesIO(content), len(content))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert [entry.key for entry in found] in (["b"], [])
    assert damage


@settings(max_examples=200)
@given(data=st.data())
def test_any_bytes_are_read_or_refused_and_every_file_lies_inside(data: st.DataObject) -> None:
    content = bytearray(tar_of(("a.jpg", picture()), ("n" * 150 + ".txt", b"one"), ("c.txt", b"two")))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    found, _ = entries(io.BytesIO(cut), len(cut))
    for entry in found:
        for place in entry.files.values():
            assert 0 <= place.offset <= place.offset + place.length <= len(cut)


def test_an_index_that_lies_cannot_reach_beyond_the_file(tmp_path: Path) -> None:

    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(("a.jpg", picture()), ("a.txt", b"one")))
    for offset, length in ((0, 2**40), (-5, 10), (2**40, 10), (10, -3)):
        row = {"key": "a", "offset": offset, "length": length, "text": "x", "concept_ids": []}
        row |= {"sha256": None, "other_texts": None}
        index = pa.Table.from_pylist([row])
        with pytest.raises(SampleError, match="unreadable shard"):
            TarSource(str(path), index).read(0)


def test_the_digest_of_an_own_picture_is_checked(tmp_path: Path) -> None:

    with TarWriter(tmp_path / "0.tar") as tar:
        place = tar.add("a", picture(), "one", {})

    row = {"key": "a", "text": "one", "sha256": hashlib.sha256(picture()).hexdigest(), **place._asdict()}
    pq.write_table(pa.Table.from_pylist([row], schema.IMAGE), tmp_path / "0.parquet")
    own = own_shards([tmp_path / "0.parquet"])
    assert own.read(0).image == picture()
    raw = bytearray((tmp_path / "0.tar").read_bytes())
    raw[place.offset + place.length // 2] ^= 1
    (tmp_path / "0.tar").write_bytes(raw)
    with pytest.raises(SampleError, match=r"damaged image.*sample a"):
        own.read(0)


def test_shards_of_the_version_before_are_read(tmp_path: Path) -> None:
    """Their sidecars have neither texts nor concepts, and ids in their JSON are numbers."""

    about = json.dumps({"caption_id": 2**64 - 1, "concept_ids": [4, 2]}).encode()
    (tmp_path / "0.tar").write_bytes(tar_of(("a.jpg", picture()), ("a.txt", b"one"), ("a.json", about)))
    pq.write_table(pa.table({"key": ["a"], "offset": [512], "length": [1]}), tmp_path / "0.parquet")
    for found in (any_shards([str(tmp_path / "0.tar")]), own_shards([tmp_path / "0.parquet"])):
        assert texts(found) == ["one"]
        assert found.read(0).image == picture()
        assert found.read(0).concept_ids == (4, 2)


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason=f"no cases in {SHARED}")
@pytest.mark.parametrize(
    "case", ["wds_dotted_keys", "wds_mask_beside", "wds_json_caption", "jpeg_extraneous"]
)
def test_small_data_sets_of_the_wild(case: str) -> None:
    found = any_shards([str(SHARED / "cases" / case / "0.tar")])
    assert len(found) == 160
    assert not found.bad_rows
    with (SHARED / "cases" / case / "0.tar").open("rb") as handle:
        names = dict(members(handle, 2**40))
    for index in range(160):
        sample = found.read(index)
        name = found.name_of(index).rpartition(" ")[2]
        kind = "webp" if case == "wds_mask_beside" else "jpg"
        place = names[f"{name}.{kind}"]
        raw = (SHARED / "cases" / case / "0.tar").read_bytes()
        assert sample.image == raw[place.offset : place.offset + place.length]
        assert sample.text.strip()
