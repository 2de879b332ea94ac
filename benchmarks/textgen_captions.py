"""Captions of the small model: what is kept by prompt, how much they differ, and what the pipeline costs.

    python benchmarks/textgen_captions.py [prompts|lists|overhead] [--concepts 40] [--per-concept 5]

All with SmolLM2-135M-Instruct by llama.cpp and the recipe demo, whose prompt is the first of the table.
Distinct-n is the share of different n-grams among all (Li et al., 2016), over as many captions of each
prompt as the poorest kept; self-similarity the mean Jaccard similarity of the word sets of two captions of
one concept.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip import RunDirectory, load_recipe, run
from synthclip.backends import LLM, Refused, build_llm
from synthclip.recipe.backends import BackendConfig
from synthclip.run.progress import Console
from synthclip.textgen import captions
from synthclip.textgen.concepts import bank
from synthclip.textgen.prompts import Prompts, answered

EXAMPLES = (("umbrella", "A red umbrella lies in the street."), ("apple", "Two green apples shine."))
BY_WORD = "".join(f"{word}: {caption}\n" for word, caption in EXAMPLES) + "{{ concept }}:"
LABELLED = "".join(f"Concept: {word}\nCaption: {caption}\n" for word, caption in EXAMPLES)
INSTRUCTION = (
    "Write one sentence of at most 15 words that describes a picture of: {{ concept }}. "
    "Answer with the sentence alone."
)
PLAIN = ["captions.axes={}"]
PROMPTS = {
    "demo: begun for the model, with axes": [],
    "the same without axes": [*PLAIN, "captions.templates.0.prefill=A {{ concept }}"],
    "`word: caption` examples": [
        *PLAIN,
        f"captions.templates=[{{name: words, text: {BY_WORD!r}}}]".replace("'", '"'),
    ],
    "`Concept: … Caption: …` examples": [
        *PLAIN,
        "captions.templates=[{name: labels, text: "
        + f"{LABELLED + 'Concept: {{ concept }}' + chr(10) + 'Caption:'!r}}}]".replace("'", '"'),
    ],
    "instruction, in the chat template": [
        *PLAIN,
        f'captions.templates=[{{name: chat, text: "{INSTRUCTION}"}}]',
        "llm.chat=true",
        "llm.max_tokens=40",
    ],
}


def make(folder: Path, overrides: Sequence[str]) -> RunDirectory:
    recipe = load_recipe("demo", overrides)
    with (folder / "log").open("a") as log:
        return run(recipe, folder / "run", stages=("concepts", "captions", "match"), console=Console(log))


def rows(made: RunDirectory, stage: str) -> list[dict[str, object]]:
    files = [made.file(stage, f"{manifest.shard}.parquet") for manifest in made.manifests(stage)]
    found: list[dict[str, object]] = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    return found


def spent(made: RunDirectory, event: str) -> float:
    """Seconds of the stage captions: of its shards, or of the whole with the start of its workers."""
    told = [line for line in made.metrics() if (line["event"], line["stage"]) == (event, "captions")]
    return sum(float(line["seconds"]) for line in told)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    grams = [gram for text in map(words, texts) for gram in zip(*(text[k:] for k in range(n)), strict=False)]
    return len(set(grams)) / len(grams)


def self_similarity(texts: dict[object, list[str]]) -> float:
    sets = [[set(words(text)) for text in group] for group in texts.values()]
    return fmean(len(a & b) / len(a | b) for group in sets for a, b in combinations(group, 2))


def prompts(sizes: Sequence[str]) -> None:
    kept: dict[str, list[dict[str, object]]] = {}
    print("| prompt | kept | of them name it literally | refused for | captions/s |")
    print("| --- | ---: | ---: | --- | ---: |")
    for name, overrides in PROMPTS.items():
        with tempfile.TemporaryDirectory() as folder:
            made = make(Path(folder), [*sizes, *overrides])
            kept[name] = rows(made, "captions")
            concepts = [row["concept_ids"] for row in rows(made, "match")]
            refused: Counter[str] = Counter()
            for manifest in made.manifests("captions"):
                refused.update(manifest.rejected)
            seconds = spent(made, "stage")
        count = len(kept[name])
        asked = count + refused.total()
        literal = sum(row["concept_id"] in ids for row, ids in zip(kept[name], concepts, strict=True))  # type: ignore[operator]
        told = ", ".join(f"{reason} {count}" for reason, count in refused.most_common()) or "-"
        print(
            f"| {name} | {count / asked:.2f} of {asked} | {literal / max(count, 1):.2f} | {told} | "
            f"{asked / seconds:.1f} |",
            flush=True,
        )
    least = min(map(len, kept.values()))
    print(f"\n| prompt ({least} captions each) | distinct-1 | distinct-2 | distinct-3 | self-similarity |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, found in kept.items():
        texts = [str(row["text"]) for row in found[:: max(1, len(found) // least)]][:least]
        groups: dict[object, list[str]] = defaultdict(list)
        for row in found:
            groups[row["concept_id"]].append(str(row["text"]))
        shares = " | ".join(f"{distinct(texts, n):.3f}" for n in (1, 2, 3))
        print(f"| {name} | {shares} | {self_similarity(groups):.3f} |")


LINES = {
    "umbrella": ["A red umbrella lies in the street.", "An umbrella stands by the door."],
    "apple": ["Two green apples shine.", "An apple falls from a tree."],
}
ONE = "".join(f"{word}: {texts[0]}\n" for word, texts in LINES.items()) + "{{ concept }}:"
MANY = "".join(f"{word}: {json.dumps(texts)}\n" for word, texts in LINES.items()) + "{{ concept }}: "
LISTS = {
    "examples, one a request": (1, ONE, ['llm.stop=["\\n"]']),
    "examples, 4 a request": (4, MANY, []),
    "examples, 8 a request": (8, MANY, []),
    "chat, one a request": (1, INSTRUCTION, ["llm.chat=true"]),
    "chat, 4 a request": (4, INSTRUCTION, ["llm.chat=true"]),
    "chat, 8 a request": (8, INSTRUCTION, ["llm.chat=true"]),
}


def lists(sizes: Sequence[str]) -> None:
    """One caption a request against several, on one thread of one process; seconds are of the processor."""
    print("| captions a request | kept | of them different | captions/s | kept and different/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, (count, template, overrides) in LISTS.items():
        recipe = load_recipe(
            "demo",
            [
                *sizes,
                "captions.axes={}",
                f"captions.templates=[{{name: list, text: {json.dumps(template)}}}]",
                f"captions.per_request={count}",
                "llm={backend: llamacpp, max_tokens: 40, stop: [], context: 1024}",
                *overrides,
            ],
        )
        texts = [text for text, _ in bank(recipe.concepts)]
        llm, drawn = build_llm(recipe.llm), Prompts(recipe.captions, recipe.seed)
        per_concept = recipe.captions.per_concept
        asked = [drawn.draw(text, first) for text in texts for first in range(0, per_concept, count)]
        list(answered(llm, asked[:2], recipe.captions))
        started = time.process_time()
        judged = [one for few in answered(llm, asked, recipe.captions) for one in few]
        seconds = time.process_time() - started
        kept = [text for text, reason in judged if reason is None]
        total = count * len(asked)
        print(
            f"| {name} | {len(kept) / total:.2f} of {total} | {len(set(kept)) / max(len(kept), 1):.2f} | "
            f"{total / seconds:.2f} | {len(set(kept)) / seconds:.2f} |",
            flush=True,
        )


class Timed:
    """A language model that keeps what it was asked, and how long it took."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.name, self.batch_size, self.continues = llm.name, llm.batch_size, llm.continues
        self.seconds = 0.0
        self.asked: list[tuple[list[str], list[int]]] = []

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> Sequence[str | Refused]:
        started = time.perf_counter()
        said = self._llm.generate(prompts, seeds, counts)
        self.seconds += time.perf_counter() - started
        self.asked.append((list(prompts), list(seeds)))
        return said


def overhead(sizes: Sequence[str]) -> None:
    """The stage in this very process, and the backend alone over the same prompts."""
    timed: list[Timed] = []

    def build(config: BackendConfig) -> Timed:
        timed.append(Timed(build_llm(config)))
        return timed[0]

    captions.build_llm = build  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), [*sizes, "engine.workers=0"])
        whole = spent(made, "shard")
    [llm] = timed
    inside, asked = llm.seconds, list(llm.asked)
    started = time.perf_counter()
    for texts, seeds in asked:
        llm.generate(texts, seeds)
    bare = time.perf_counter() - started
    print(f"| {len(asked)} captions, one process | seconds | captions/s |\n| --- | ---: | ---: |")
    print(f"| the backend alone, the same prompts | {bare:.2f} | {len(asked) / bare:.1f} |")
    print(f"| the stage | {whole:.2f} | {len(asked) / whole:.1f} |")
    print(
        f"\nOf the stage's seconds {whole - inside:.3f} are not the backend's: {whole / inside - 1:.2%} more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="?", choices=("prompts", "lists", "overhead"))
    parser.add_argument("--concepts", type=int, default=40)
    parser.add_argument("--per-concept", type=int, default=5)
    chosen = parser.parse_args()
    sizes = [f"concepts.limit={chosen.concepts}", f"captions.per_concept={chosen.per_concept}"]
    for part in (prompts, lists, overhead):
        if chosen.part in (None, part.__name__):
            part([*sizes, "captions.concepts_per_shard=10"])
            print()


if __name__ == "__main__":
    main()
