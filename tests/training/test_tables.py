"""Tables as pandas, open_clip and `datasets` write them; hostile paths in them are counted, not read."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from shape_runs import train, with_training, write_images

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.training import SourceConfig
from synthclip.run.store import RunDirectory
from synthclip.samples import SampleError
from synthclip.samples.csv_rows import RowError, numbered_rows
from synthclip.training.tables import open_csv, open_parquet

CASES = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[3] / "shared")) / "cases"


def jpeg(seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(noise))


def config(kind: str, **values: Any) -> SourceConfig:
    return SourceConfig.model_validate({"kind": kind, "path": "x", **values})


def rows_of(content: bytes, **options: Any) -> list[tuple[str, str] | str]:
    found = numbered_rows(io.BytesIO(content), "a.csv", **options)
    return [str(row) if isinstance(row, RowError) else row for _, _, row in found]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
fields = text.filter(lambda value: value.strip() == value)


@given(
    rows=st.lists(st.tuples(fields, fields), max_size=8),
    delimiter=st.sampled_from("\t,;|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_writer_of_csv_writes_is_read_back(
    rows: list[tuple[str, str]], delimiter: str, quoting: Any, end: str
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("image_path", "caption"), *rows])
    read = rows_of(out.getvalue().encode())
    assert read == [(path, caption.strip()) for path, caption in rows]


@given(at=st.integers(0, 299), other=st.integers(0, 299))
def test_a_stray_quote_loses_no_row_but_its_own(at: int, other: int) -> None:
    lines = [f"{n}.jpg,thing {n}" for n in range(300)]
    lines[other] = f'{other}.jpg,"thing, {other}"'
    lines[at] = f'{at}.jpg,"thing {at}'
    read = rows_of("\n".join(["image_path,caption", *lines]).encode())
    assert read[at] == "quotes do not match"
    wanted = [(f"{n}.jpg", f"thing, {n}" if n == other else f"thing {n}") for n in range(300)]
    assert [row for n, row in enumerate(read) if n != at] == [row for n, row in enumerate(wanted) if n != at]


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no {CASES}")
@pytest.mark.parametrize("name", ["multi.csv", "open_clip.csv", "quoted.tsv", "semicolon.csv"])
def test_the_tables_that_others_write(name: str) -> None:
    source = open_csv(str(CASES / "csv_pandas" / name), config("csv"))
    assert (len(source), source.bad_rows) == (160, {})
    first = {"multi.csv": "A thing number 0\nsecond line", "quoted.tsv": "Stop sign 0"}
    assert source.read(0).text == first.get(name, "A thing number 0")
    assert all(source.read(index).image[:2] == b"\xff\xd8" for index in range(160))


def test_columns_and_separator_can_be_said(tmp_path: Path) -> None:
    table = "id#Bild#Text\n1#0.jpg#ein Hund, ja\n"
    said: dict[str, Any] = {"image_column": "Bild", "text_column": "Text", "separator": "#"}
    assert rows_of(table.encode(), **said) == [("0.jpg", "ein Hund, ja")]
    with pytest.raises(SynthClipError, match=r"line 1: expected the columns image_path or filepath and Text"):
        rows_of(table.encode(), text_column="Text")


def test_paths_that_leave_their_folder_and_what_is_no_file_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    for path in (tmp_path / "secret.jpg", folder / "0.jpg", folder / "inner" / "1.jpg"):
        path.write_bytes(jpeg())
    os.mkfifo(folder / "pipe")
    bad = ["../secret.jpg", f"{tmp_path}/secret.jpg", f"file://{tmp_path}/secret.jpg", "pipe", "/dev/zero"]
    bad += ["inner", "inner/../../secret.jpg", "https://example.invalid/0.jpg", "gone.jpg"]
    good = ["0.jpg", f"{folder}/0.jpg", "inner/1.jpg", "inner/../0.jpg"]
    rows = "".join(f"{path},a caption\n" for path in [*good, *bad])
    (folder / "all.csv").write_text(f"image_path,caption\n{rows}")
    source = open_csv(str(folder / "all.csv"), config("csv"))
    for index in range(len(good)):
        assert source.read(index).image == jpeg()
    for index, name in enumerate(bad, len(good)):
        with pytest.raises(SampleError) as error:
            source.read(index)
        assert error.value.reason == "missing image", name
    rows_of_images = [{"image": {"bytes": None, "path": path}, "text": "a"} for path in bad]
    pq.write_table(pa.Table.from_pylist(rows_of_images), folder / "0.parquet")
    source = open_parquet(str(folder / "0.parquet"), config("parquet"))
    for index in range(len(bad)):
        with pytest.raises(SampleError):
            source.read(index)


def test_each_pass_draws_one_of_several_captions(tmp_path: Path, tiny_recipe: Recipe) -> None:
    rows = [
        {
            "about": {"id": n},
            "image": {"bytes": jpeg(n), "path": None},
            "caption": [f"red {n}", None, f"blue {n}"],
        }
        for n in range(32)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    source = open_parquet(str(tmp_path / "0.parquet"), config("parquet", text_column="caption"))
    assert (source.read(3).text, source.read(3).other_texts) == ("red 3", ("blue 3",))
    run = RunDirectory(tmp_path / "run")
    write_images(run, 0)
    sources = [{"kind": "parquet", "path": str(tmp_path / "0.parquet"), "text_column": "caption"}]
    assert not train(with_training(tiny_recipe, sources=sources), run).rejected


@pytest.mark.parametrize(
    ("column", "kind"),
    [([1] * 3, "int64"), ([0.5] * 3, "double"), ([{"a": "x"}] * 3, "struct"), ([[1]] * 3, "list")],
)
def test_captions_that_are_no_text_are_refused(tmp_path: Path, column: list[Any], kind: str) -> None:
    pq.write_table(pa.table({"image": [jpeg()] * 3, "text": column}), tmp_path / "0.parquet")
    with pytest.raises(SynthClipError, match=rf"column 'text' holds {kind}.*, not text: set text_column"):
        open_parquet(str(tmp_path / "0.parquet"), config("parquet"))


def test_a_misnamed_or_struct_image_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [jpeg()] * 3, "text": ["a"] * 3}), tmp_path / "0.parquet")
    with pytest.raises(
        SynthClipError, match=r"set image_column in .*: no column 'image'; did you mean 'img'"
    ):
        open_parquet(str(tmp_path / "0.parquet"), config("parquet"))
    source = open_parquet(str(tmp_path / "0.parquet"), config("parquet", image_column="img"))
    assert source.read(0).image == jpeg()
    pq.write_table(pa.table({"image": [{"height": 3}] * 3, "text": ["a"] * 3}), tmp_path / "1.parquet")
    with pytest.raises(SynthClipError, match=r"column 'image' holds struct<height: int64>, not image files"):
        open_parquet(str(tmp_path / "1.parquet"), config("parquet"))


def test_without_a_home_or_a_cache_that_can_be_written_one_line_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg())
    (tmp_path / "all.csv").write_text("image_path,caption\n0.jpg,a dog\n")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SynthClipError, match=r"cannot be made .*: set XDG_CACHE_HOME elsewhere"):
        open_csv(str(tmp_path / "all.csv"), config("csv"))

    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(SynthClipError, match="no home folder: set XDG_CACHE_HOME"):
        open_csv(str(tmp_path / "all.csv"), config("csv"))
