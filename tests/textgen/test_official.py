"""The official files, both ways."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_runs import RunText, contents, table

from synthclip.errors import SynthClipError
from synthclip.textgen import official

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@settings(max_examples=50)
@given(st.lists(JSON, max_size=20), st.booleans(), st.integers(1, 40))
def test_items_are_those_of_the_json_list(
    tmp_path_factory: Any, values: list[Any], ascii: bool, n: int
) -> None:
    file = tmp_path_factory.mktemp("json") / "list.json"
    file.write_text(
        json.dumps(values, ensure_ascii=ascii, indent=n % 3 or None), encoding="utf-8", errors="replace"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "_READ_CHARS", n)
        assert list(official.items(file)) == json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}', "expected a JSON list"),
        (b"", "expected a JSON list"),
        (b'["a", "b', "after element 1"),
        (b'["a", "b"', "after element 1"),
        (b'["a", nonsense]', "after element 1"),
        (b'["\xff"]', "not UTF-8"),
    ],
)
def test_a_broken_list_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    file = tmp_path / "captions.json"
    file.write_bytes(raw)
    with pytest.raises(SynthClipError, match=message) as error:
        list(official.items(file))
    assert str(file) in str(error.value)


def test_a_folder_is_read_by_number(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        (tmp_path / f"{number}.json").write_text("[]")
    assert [file.stem for file in official.files(tmp_path)] == ["9", "10", "100"]
    with pytest.raises(SynthClipError, match="no such file"):
        official.files(tmp_path / "nothing")


def test_what_is_no_caption_is_refused_and_kept(tmp_path: Path, run_text: RunText) -> None:
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(['A "big" dog. ', "", "two\nlines", 7, None, ["A cat.", [1]], ["A", 1]]))
    run = run_text(f"captions.imported={file}")
    assert table(run, "captions")["text"].to_pylist() == ["A big dog.", "A cat."]
    [manifest] = run.manifests("captions")
    assert manifest.rejected == {"empty": 1, "not a caption": 3, "several lines": 1}
    assert len(table(run, "captions", "rejected")) == 5


def test_a_run_goes_on_from_each_official_file(tmp_path: Path, run_text: RunText) -> None:
    run = run_text("balance.heldout=0", "captions.per_concept=3")
    folder = tmp_path / "official"
    captions, matches, selection = folder / "captions", folder / "matches", folder / "selection.json"
    assert official.export_captions(run, captions) == len(table(run, "captions"))
    assert official.export_matches(run, matches) == len(table(run, "match"))
    assert official.export_selection(run, selection) == len(table(run, "balance", "train"))

    first = json.loads((matches / "0.json").read_text())[0]
    assert first[0] == table(run, "captions")["text"][0].as_py()
    assert first[1] == table(run, "match")["concept_ids"][0].as_py()

    from_captions = run_text(f"captions.imported={captions}", "balance.heldout=0", out="captions")
    from_matches = run_text(
        f"captions.imported={matches}", "match.imported=true", "balance.heldout=0", out="matches"
    )
    assert contents(from_captions, "balance") == contents(run, "balance")
    assert contents(from_matches, "balance") == contents(run, "balance")
    chosen = run_text(
        f"captions.imported={selection}", "balance.heldout=0", "balance.t=null", out="selection"
    )
    assert table(chosen, "balance", "train")["text"] == table(run, "balance", "train")["text"]


def test_entry_counts_are_uint64_by_entry(tmp_path: Path, run_text: RunText) -> None:
    run = run_text()
    assert official.export_counts(run, tmp_path / "entry_count.npy") == len(table(run, "concepts"))
    counts = np.load(tmp_path / "entry_count.npy")
    assert counts.dtype == np.uint64
    assert counts.sum() > 0


@pytest.mark.parametrize(
    ("items", "message"), [([["A dog.", [10_000]]], "entry id 10000"), (["A dog."], "no entry ids")]
)
def test_matches_of_another_bank_are_refused(
    tmp_path: Path, run_text: RunText, items: list[Any], message: str
) -> None:
    file = tmp_path / "matches.json"
    file.write_text(json.dumps(items))
    with pytest.raises(SynthClipError, match=message):
        run_text(f"captions.imported={file}", "match.imported=true")
