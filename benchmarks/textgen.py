"""Matching against 500,000 concepts.

    python benchmarks/textgen.py [--wordnet DIR]

Captions are the 40,960 of ../shared/data/captions. The bank is WordNet's lemmas, the captions' bigrams, and
composed pairs.
"""

import argparse
import gzip
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from synthclip import ConceptMatcher
from synthclip.recipe.textgen import ConceptSource
from synthclip.textgen.lexicons import DEBIAN_WORDNET, wordnet

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[2] / "shared"))
CAPTIONS = SHARED / "data" / "captions" / "flickr8k-captions.txt.gz"
ENTRIES = 500_000
ROUNDS = 20


def real_captions() -> list[str]:
    if not CAPTIONS.is_file():
        sys.exit(f"{CAPTIONS}: not there: set SYNTHCLIP_SHARED to the folder of the test data")
    with gzip.open(CAPTIONS, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]


def make_bank(captions: Sequence[str], folder: Path) -> list[str]:
    """WordNet, then bigrams, then pairs of words, up to 500,000 different entries."""
    rng = random.Random(0)
    lemmas = list(wordnet(folder, ConceptSource(kind="wordnet", named_people=True)))
    bigrams = sorted({f"{a} {b}" for caption in captions for a, b in pairwise(caption.split())})
    bank = dict.fromkeys([*lemmas, *bigrams])
    while len(bank) < ENTRIES:
        bank[f"{rng.choice(lemmas)} {rng.choice(lemmas)}"] = None
    return list(bank)[:ENTRIES]


def official(bank: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """One substring search an entry, as MetaCLIP does it."""
    padded = [f" {entry} " for entry in bank]
    return [[number for number, entry in enumerate(padded) if entry in text] for text in map(spaced, texts)]


def ngrams(bank: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """A dictionary of entries, asked for every n-gram: what one writes first."""
    numbers = {entry: number for number, entry in enumerate(bank)}
    longest = max(len(entry.split(" ")) for entry in bank)
    found = []
    for text in texts:
        tokens = spaced(text)[1:-1].split(" ")
        spans = (
            " ".join(tokens[i:j])
            for i in range(len(tokens))
            for j in range(i + 1, min(i + longest, len(tokens)) + 1)
        )
        found.append(sorted({numbers[span] for span in spans if span in numbers}))
    return found


def spaced(text: str) -> str:
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return f" {text} "


def best(work: Callable[[], object], times: int) -> float:
    """The least seconds of several tries."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _serve(path: Path, texts: list[str], ready: object, go: object, out: object) -> None:
    started = time.perf_counter()
    matcher = ConceptMatcher.load(path)
    load = time.perf_counter() - started
    matcher.match(texts)
    ready.release()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    for _ in range(ROUNDS):
        matcher.match(texts)
    held = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Pss:" in line)
    out.put((load, int(held.split()[1]) / 2**10))  # type: ignore[attr-defined]


def workers(path: Path, texts: list[str], count: int) -> tuple[float, float, float]:
    """Captions a second of all processes together, seconds to load, MiB of all: shared pages count once."""
    context = multiprocessing.get_context("spawn")
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    processes = [context.Process(target=_serve, args=(path, texts, ready, go, out)) for _ in range(count)]
    for worker in processes:
        worker.start()
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    go.set()
    told = [out.get() for _ in processes]
    seconds = time.perf_counter() - started
    for worker in processes:
        worker.join()
    return count * ROUNDS * len(texts) / seconds, max(load for load, _ in told), sum(held for _, held in told)


def matching(bank: list[str], texts: list[str]) -> None:
    few = texts[:100]
    assert official(bank, few) == ngrams(bank, few)
    started = time.perf_counter()
    matcher = ConceptMatcher(bank)
    build = time.perf_counter() - started
    offsets, ids = matcher.match(few)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == official(bank, few)
    slow = len(few) / best(lambda: official(bank, few), 1)
    plain = 4_000 / best(lambda: ngrams(bank, texts[:4_000]), 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matcher"
        matcher.save(path)
        one, _, _ = workers(path, texts, 1)
        two, load, memory = workers(path, texts, 2)
    print(f"\nMatching {len(texts):,} captions against {len(bank):,} entries\n")
    print("| method | captions/s | times the official loop |\n| --- | ---: | ---: |")
    for name, rate in (
        ("official loop", slow),
        ("dictionary of n-grams", plain),
        ("ConceptMatcher, one process", one),
        ("ConceptMatcher, two processes", two),
    ):
        print(f"| {name} | {rate:,.0f} | {rate / slow:,.0f} |")
    print(f"\nBuilt in {build:.1f} s, loaded by a worker in {load:.3f} s; two workers hold {memory:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, default=DEBIAN_WORDNET)
    chosen = parser.parse_args()
    texts = real_captions()
    bank = make_bank(texts, chosen.wordnet)
    matching(bank, texts)


if __name__ == "__main__":
    main()
