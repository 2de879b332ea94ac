"""Match, dedup and balance of millions of captions against 500,000 concepts: time and memory as they grow.

    python benchmarks/textgen_scale.py [--wordnet DIR] [--millions 1 3 10 30]

A caption is the front half of a real one joined to the back half of another (../shared/data/captions). They
come as official JSON files, whose import is timed too. Memory is that of all processes together, pages that
they share counted once, looked at twice a second.
"""

import argparse
import itertools
import json
import random
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from synthclip import load_recipe, run
from synthclip.run.progress import Console
from synthclip.textgen.lexicons import DEBIAN_WORDNET
from textgen import make_bank, real_captions

PER_FILE = 250_000


class Memory:
    """The most that this process and its children held while the block ran."""

    def __enter__(self) -> Self:
        self.peak_gib, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self.peak_gib = max(self.peak_gib, sum(map(_held_kib, _family())) / 2**20)


def _family() -> list[str]:
    """The ids of this process and all below it."""
    family = ["self"]
    for process in family:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                family += task.read_text().split()
            except OSError:
                continue
    return family


def _held_kib(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def write_captions(texts: Sequence[str], count: int, folder: Path) -> None:
    """So many made captions in files of 250,000."""
    rng = random.Random(1)
    halves = [text.split() for text in texts]
    folder.mkdir()
    for number, first in enumerate(range(0, count, PER_FILE)):
        some = min(PER_FILE, count - first)
        fronts, backs = rng.choices(halves, k=some), rng.choices(halves, k=some)
        rows = [
            " ".join(itertools.chain(front[: len(front) // 2], back[len(back) // 2 :]))
            for front, back in zip(fronts, backs, strict=True)
        ]
        (folder / f"{number}.json").write_text(json.dumps(rows))


def measured(bank: Sequence[str], texts: Sequence[str], millions: float, folder: Path) -> None:
    """One row of the table."""
    write_captions(texts, int(millions * 1_000_000), folder / "captions")
    (folder / "metadata.json").write_text(json.dumps(bank))
    values = [
        f"concepts.sources=[{{kind: json, path: {folder}/metadata.json}}]",
        f"captions.imported={folder}/captions",
        "balance.captions_per_shard=1000000",
    ]
    recipe = load_recipe("demo", values)
    with (folder / "log").open("w") as log:
        run(recipe, folder / "run", stages=("concepts", "captions"), console=Console(log))
        with Memory() as memory:
            made = run(recipe, folder / "run", stages=("match", "balance"), console=Console(log))
    seconds = {line["stage"]: line["seconds"] for line in made.metrics() if line["event"] == "stage"}
    [balance] = made.manifests("balance")
    print(
        f"| {millions:g} | {seconds['captions']:.0f} | {seconds['match']:.0f} | {seconds['balance']:.0f} | "
        f"{seconds['match'] + seconds['balance']:.0f} | {memory.peak_gib:.2f} | "
        f"{balance.notes['duplicates']:,} | {balance.rows:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, default=DEBIAN_WORDNET)
    parser.add_argument("--millions", type=float, nargs="*", default=[1, 3, 10, 30])
    chosen = parser.parse_args()
    texts = real_captions()
    bank = make_bank(texts, chosen.wordnet)
    print("| million captions | import s | match s | balance s | sum s | GiB | duplicates | selected |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for millions in chosen.millions:
        with tempfile.TemporaryDirectory() as folder:
            measured(bank, texts, millions, Path(folder))


if __name__ == "__main__":
    main()
