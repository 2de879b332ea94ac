"""The concept bank: sources merged in order, filtered, each entry with where it came from."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synthclip import keys
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.textgen import ConceptsConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, ShardWriter
from synthclip.schema import CONCEPT, REJECTED_CONCEPT
from synthclip.textgen import sources
from synthclip.textgen.bank import BANK
from synthclip.textgen.matcher import ConceptMatcher


class Concepts(Stage):
    name, reads, sections = "concepts", (), ("concepts",)
    rejects = REJECTED_CONCEPT

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.concepts
        blocked = {"block": keys.digest(*_block_list(config.block))} if config.block else {}
        return [Shard(BANK, sources.digests(config.sources) | blocked)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        concepts = bank(self.recipe.concepts, writer.reject)
        if not concepts:
            why = ", ".join(f"{count} {reason}" for reason, count in writer.rejected.most_common())
            raise SynthClipError(
                f"the concept bank is empty{f' ({why})' if why else ''}: check concepts.sources"
            )
        texts, kinds = zip(*concepts, strict=True)
        columns = [pa.array(range(len(texts)), pa.int32()), pa.array(texts), pa.array(kinds)]
        with writer.table(f"{BANK}.parquet", CONCEPT) as out:
            out.write_table(pa.Table.from_arrays(columns, schema=CONCEPT))
        tick(1)
        return Outcome(len(texts), notes={"sources": dict(Counter(kinds))})


def bank(
    config: ConceptsConfig, reject: Callable[[dict[str, str], str], None] = lambda row, reason: None
) -> list[tuple[str, str]]:
    """(text, kind of its source) of every concept, each text once.

    `reject` is called with the `text` and `source` of every entry refused, and the reason.
    """
    found: dict[str, str] = {}
    pattern = re.compile(config.pattern) if config.pattern else None
    for source in config.sources:
        for entry in sources.read(source):
            reason = _refusal(entry, config, pattern)
            if reason is None and entry.strip() in found:
                reason = "duplicate"
            if reason is None:
                found[entry.strip()] = source.kind
            else:
                reject({"text": str(entry), "source": source.kind}, reason)
    if config.block:
        offsets, _ = ConceptMatcher(_block_list(config.block), lowercase=True).match(list(found))
        blocked = [text for text, hits in zip(found, np.diff(offsets), strict=True) if hits]
        for text in blocked:
            reject({"text": text, "source": found.pop(text)}, "blocked")
    return list(found.items())[: config.limit]


def _refusal(entry: Any, config: ConceptsConfig, pattern: re.Pattern[str] | None) -> str | None:
    if not isinstance(entry, str):
        return "not a string"
    text = entry.strip()
    if not text:
        return "empty"
    if len(text) < config.min_chars:
        return "too short"
    if len(text) > config.max_chars:
        return "too long"
    if not text.isprintable():
        return "unprintable characters"
    if pattern and not pattern.fullmatch(text):
        return "pattern"
    return None


def _block_list(block: Sequence[str]) -> list[str]:
    terms: list[str] = []
    for name in block:
        if name == "nsfw":
            with needs_extra("concepts", "concepts.block: 'nsfw'"):
                words = resources.files("better_profanity")
            path = Path(str(words / "profanity_wordlist.txt"))
        else:
            path = Path(name).expanduser()
        try:
            terms += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SynthClipError(f"concepts.block: {path}: cannot be read: {error}") from None
    return [term.strip() for term in terms if term.strip()]
