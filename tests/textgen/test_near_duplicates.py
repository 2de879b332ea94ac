"""Near duplicates against the similarity of all pairs, worked out slowly."""

import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_runs import RunText, contents, table, write_lists

from synthclip import keys
from synthclip.textgen import near_duplicates

pytestmark = pytest.mark.slow

pytest.importorskip("rensa", reason="needs rensa: pip install 'synthclip[dedup]'")

WORDS = st.sampled_from(["a", "the", "red", "dog", "Dog", "cat", "runs", "été", "in", "snow", "-", "5"])
TEXTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), max_size=12, unique=True)


def similarity(one: str, other: str) -> float:
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 0.0


def found(texts: list[str], threshold: float, folder: Path, parts: int = 1) -> dict[str, str]:
    """Text left out -> the text it is near to."""
    by_id = {keys.text_id(text): text for text in texts}
    pieces = [texts[k::parts] for k in range(parts)]
    sketches = [
        (keys.text_ids(piece), near_duplicates.sketch(pa.chunked_array([piece], pa.string()), threshold))
        for piece in pieces
    ]
    gone, near = near_duplicates.find(sketches, threshold, folder / "near")
    assert (np.diff(gone.astype(object)) > 0).all()
    assert not (folder / "near").exists()
    return {by_id[one]: by_id[other] for one, other in zip(gone.tolist(), near.tolist(), strict=True)}


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from([0.5, 0.8, 1.0]))
def test_what_is_left_out_is_near_to_a_smaller_id(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], threshold: float
) -> None:
    folder = tmp_path_factory.mktemp("near")
    left_out = found(texts, threshold, folder)
    for text, near in left_out.items():
        assert similarity(text, near) >= threshold
        assert keys.text_id(near) < keys.text_id(text)
    kept = [text for text in texts if text not in left_out]
    for k, one in enumerate(kept):
        assert all(similarity(one, other) < 1 for other in kept[:k]), "equal sets of words are never missed"
    assert found(texts[::-1], threshold, folder, parts=3) == left_out


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.9])
def test_few_near_pairs_are_missed(tmp_path: Path, threshold: float) -> None:
    draw = random.Random(0)
    words = [f"word{k}" for k in range(400)]
    texts = []
    for _ in range(400):
        text, others = draw.sample(words, 20), draw.randint(1, 5)
        texts.append(" ".join(text))
        text[:others] = draw.sample(words, others)
        texts.append(" ".join(text))
    kept = set(texts) - set(found(texts, threshold, tmp_path))
    pairs = [(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True) if similarity(a, b) >= threshold]
    assert len(pairs) > 50
    assert sum(a in kept and b in kept for a, b in pairs) <= 0.05 * len(pairs)
    assert len(kept) == len(set(texts)) - sum(not (a in kept and b in kept) for a, b in pairs)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_fit_the_threshold(threshold: float) -> None:
    bands, rows = near_duplicates.bands(threshold)
    assert 1 - (1 - threshold**rows) ** bands >= 0.95
    assert bands * rows <= 64


def test_a_run_leaves_them_out_and_shows_them(tmp_path: Path, run_text: RunText) -> None:
    texts = [
        f"A {look} dog runs along the long road number {k}." for k in range(40) for look in ("red", "blue")
    ]
    texts += [f"In snow {k} sits one happy cat, alone with car {k * 7} and boat {k * 13}." for k in range(40)]
    options = ("balance.near_duplicates=0.8", "balance.t=null", "balance.heldout=0")
    runs = [
        run_text(f"captions.imported={write_lists(tmp_path / f'{n}', texts, n)}", *options, out=f"run{n}")
        for n in (1, 5)
    ]
    assert contents(runs[0], "balance") == contents(runs[1], "balance")
    [manifest] = runs[0].manifests("balance")
    refused = pq.read_table(runs[0].file("balance", "rejected/all.parquet")).to_pylist()
    kept = {row["caption_id"]: row["text"] for row in table(runs[0], "balance", "train").to_pylist()}
    assert manifest.rejected == {"near duplicate": len(refused)}
    assert len(refused) >= 40
    assert len(kept) + len(refused) == len(texts)
    for row in refused:
        assert row["caption_id"] not in kept
        near = next(text for text in texts if keys.text_id(text) == row["near_caption_id"])
        assert similarity(row["text"], near) >= 0.8
    bank = table(runs[0], "concepts")["text"].to_pylist()
    counts = pq.read_table(runs[0].file("balance", "counts.parquet"))["matched"].to_pylist()
    assert counts[bank.index("dog")] == sum(" dog " in text for text in kept.values())
