"""Digests of source files: taken once, and again as soon as a file may have changed."""

import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthclip.keys import quick_digest
from synthclip.samples import remembered
from synthclip.samples.remembered import quick_digests

TICK_S = 0.02


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED_NS", int(TICK_S / 2 * 1e9))


def files(folder: Path) -> list[Path]:
    paths = [folder / name for name in ("a.json", "b\tc.json", "d\ne.json", os.fsdecode(b"f\xff.json"))]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number)
    time.sleep(TICK_S)
    return paths


def test_an_unchanged_file_is_not_opened_again(tmp_path: Path) -> None:
    paths = files(tmp_path)
    first = quick_digests(paths)
    assert first == [quick_digest(path) for path in paths]
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    assert quick_digests([paths[0], paths[3]]) == [first[0], first[3]]
    assert not [one for one in list(opened) if one in map(str, paths)]


EDITS = st.tuples(st.sampled_from(["edit", "swap", "damage", "same"]), st.integers(0, 3))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, max_size=5))
def test_digests_are_those_of_the_files_after_any_edits(
    tmp_path: Path, cache: Path, edits: list[tuple[str, int]]
) -> None:
    paths = files(tmp_path)
    for kind, number in edits:
        path = paths[number]
        if kind == "edit":  # of the same size, and with its old time
            before = path.stat()
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif kind == "swap":
            path.rename(tmp_path / "away")
            paths[0].rename(path) if number else None
            (tmp_path / "away").rename(paths[0])
        elif kind == "damage":
            for memory in (cache / "synthclip/digests").glob("*"):
                memory.write_bytes(memory.read_bytes()[:-1] + b"x")
        time.sleep(TICK_S)
        assert quick_digests(paths) == [quick_digest(path) for path in paths]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        quick_digests([tmp_path / "missing"])
    assert raised.value.filename == str(tmp_path / "missing")


def test_without_a_folder_for_derived_data_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    paths = files(tmp_path)
    assert quick_digests(paths) == [quick_digest(path) for path in paths]
