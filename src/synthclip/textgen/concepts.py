"""The concept bank: sources merged in order, filtered, each entry with where it came from."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synthclip import keys
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.textgen import ConceptsConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Maker, Stage
from synthclip.run.store import Outcome, ShardWriter
from synthclip.schema import CONCEPT
from synthclip.textgen import sources
from synthclip.textgen.bank import BANK
from synthclip.textgen.matcher import ConceptMatcher


class Concepts(Stage):
    name, reads, sections = "concepts", (), ("concepts",)

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.concepts
        blocked = {"block": keys.digest(*_block_list(config.block))} if config.block else {}
        return [Shard(BANK, sources.digests(config.sources) | blocked)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def load(self) -> Maker:
        config = self.recipe.concepts

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            rejected: Counter[str] = Counter()
            concepts = bank(config, rejected)
            if not concepts:
                why = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
                raise SynthClipError(
                    f"the concept bank is empty{f' ({why})' if why else ''}: check concepts.sources"
                )
            texts, kinds = zip(*concepts, strict=True)
            columns = [pa.array(range(len(texts)), pa.int32()), pa.array(texts), pa.array(kinds)]
            with writer.table(f"{BANK}.parquet", CONCEPT) as out:
                out.write_table(pa.Table.from_arrays(columns, schema=CONCEPT))
            tick(1)
            return Outcome(len(texts), rejected, {"sources": dict(Counter(kinds))})

        return make


def bank(config: ConceptsConfig, rejected: Counter[str]) -> list[tuple[str, str]]:
    """(text, kind of its source) of every concept, each text once; counts in `rejected` what is refused."""
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
                rejected[reason] += 1
    if config.block:
        offsets, _ = ConceptMatcher(_block_list(config.block), lowercase=True).match(list(found))
        blocked = [text for text, hits in zip(found, np.diff(offsets), strict=True) if hits]
        rejected["blocked"] += len(blocked)
        for text in blocked:
            del found[text]
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
