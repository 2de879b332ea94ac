"""Balancing a run: what is selected depends on the captions alone."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from text_runs import RunText, contents, table, write_lists

from synthclip.textgen import match, official

NOUNS = ("dog", "cat", "bee", "car", "wolf")


def captions(count: int) -> list[str]:
    """Many of dogs, few of wolves, every tenth a repeat, every seventh about nothing."""
    rng = np.random.default_rng(1)
    made: list[str] = []
    for number in range(count):
        noun = NOUNS[min(int(rng.exponential(1.0)), len(NOUNS) - 1)]
        subject = "nothing" if number % 7 == 0 else noun
        made.append(made[-5] if number % 10 == 9 else f"A {subject} near a {noun} number {number}.")
    return made


def test_selection_does_not_depend_on_how_captions_are_split(tmp_path: Path, run_text: RunText) -> None:
    texts = captions(600)
    runs = [
        run_text(f"captions.imported={write_lists(tmp_path / f'{files}', texts, files)}", out=f"run{files}")
        for files in (1, 7)
    ]
    one, seven = (contents(run, "balance") for run in runs)
    assert one == seven


def test_selection_is_sorted_unique_and_split_by_content(tmp_path: Path, run_text: RunText) -> None:
    texts = captions(600)
    folder = write_lists(tmp_path / "texts", texts, 3)
    run = run_text(
        f"captions.imported={folder}",
        "balance.heldout=0.2",
        "balance.captions_per_shard=20",
        "balance.t=null",
    )
    train, heldout = table(run, "balance", "train"), table(run, "balance", "heldout")
    for part in (train, heldout):
        ids = part["caption_id"].to_numpy()
        assert (ids[1:] > ids[:-1]).all()
    assert not set(train["text"].to_pylist()) & set(heldout["text"].to_pylist())
    assert 0.1 < heldout.num_rows / (heldout.num_rows + train.num_rows) < 0.3
    sizes = [pq.read_metadata(file).num_rows for file in sorted(run.stage("balance").glob("train/*.parquet"))]
    assert sizes[:-1] == [20] * (len(sizes) - 1)
    [manifest] = run.manifests("balance")
    assert manifest.notes["duplicates"] == 600 - len(set(texts))
    assert manifest.rows == train.num_rows + heldout.num_rows


def test_counts_are_of_different_captions_before_and_after(tmp_path: Path, run_text: RunText) -> None:
    texts = captions(300)
    run = run_text(f"captions.imported={write_lists(tmp_path / 'texts', texts, 2)}", "balance.t=5")
    counts = pq.read_table(run.file("balance", "counts.parquet"))
    bank = table(run, "concepts")["text"].to_pylist()
    selected = [*table(run, "balance", "train")["text"].to_pylist()]
    heldout = list(run.stage("balance").glob("heldout/*.parquet"))
    selected += table(run, "balance", "heldout")["text"].to_pylist() if heldout else []
    for noun in NOUNS:
        row = counts.filter(pc.equal(counts["concept_id"], bank.index(noun))).to_pylist()[0]
        assert row["matched"] == sum(f" {noun} " in text for text in set(texts))
        assert row["selected"] == sum(f" {noun} " in text for text in selected)
    assert len(selected) < len(set(texts))


@pytest.mark.parametrize("target", [20, 100])
def test_a_target_size_is_met(tmp_path: Path, run_text: RunText, target: int) -> None:
    folder = write_lists(tmp_path / "texts", captions(600), 2)
    run = run_text(f"captions.imported={folder}", f"balance.target={target}")
    [manifest] = run.manifests("balance")
    assert abs(manifest.rows - target) <= 1


def test_spilling_to_disk_changes_nothing(
    tmp_path: Path, run_text: RunText, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_lists(tmp_path / "texts", captions(600), 2)
    whole = run_text(f"captions.imported={folder}", "balance.t=200", out="whole")
    monkeypatch.setattr(match, "_ROWS_IN_MEMORY", 64)
    monkeypatch.setattr(official, "_ROWS_AT_ONCE", 50)
    spilled = run_text(f"captions.imported={folder}", "balance.t=200", out="spilled")
    assert contents(spilled, "balance") == contents(whole, "balance")
    assert not list(spilled.path.rglob("*.arrow"))


def test_a_run_may_match_in_any_case(tmp_path: Path, run_text: RunText) -> None:
    folder = write_lists(tmp_path / "texts", ["A DOG.", "A dog.", "A Cat."], 1)
    run = run_text(f"captions.imported={folder}", "match.lowercase=true", "balance.heldout=0")
    assert all(table(run, "match")["concept_ids"].to_pylist())
    assert len(table(run, "balance", "train")) == 3


def test_random_sampling_selects_as_many_whatever_they_name(tmp_path: Path, run_text: RunText) -> None:
    folder = write_lists(tmp_path / "texts", captions(600), 2)
    imported = (f"captions.imported={folder}", "balance.t=20", "balance.heldout=0")
    balanced, random = (
        run_text(*imported, f"balance.sample={how}", out=how) for how in ("balanced", "random")
    )
    assert len(table(random, "balance", "train")) == len(table(balanced, "balance", "train"))
    shares = []
    for run in (balanced, random):
        counts = pq.read_table(run.file("balance", "counts.parquet")).to_pylist()
        most = max(counts, key=lambda row: int(row["matched"]))
        shares.append(most["selected"] / most["matched"])
    assert shares[1] > 1.3 * shares[0], "the most frequent concept is not thinned out more than others"
