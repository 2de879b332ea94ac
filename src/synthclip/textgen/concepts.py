"""The concept bank: sources merged in order, filtered, each entry with where it came from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from synthclip.engine import Resources, Shard, Tick
from synthclip.errors import SynthClipError
from synthclip.schema import CONCEPT
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter, quick_digest
from synthclip.textgen import sources
from synthclip.textgen.config import ConceptsConfig

BANK = "00000"
"""The bank's one shard."""


class Concepts(Stage):
    name, reads, sections = "concepts", (), ("concepts",)

    def shards(self) -> Sequence[Shard]:
        return [Shard(BANK, self._inputs())]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def prepare(self) -> None:
        for source in self.recipe.concepts.sources:
            path = sources.located(source)
            if path is not None and not path.exists():
                raise SynthClipError(f"concepts.sources: {path}: no such file: correct its `path`")

    def load(self) -> Maker:
        config = self.recipe.concepts

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            rejected: Counter[str] = Counter()
            texts, names = [], []
            for text, name in bank(config, rejected):
                texts.append(text)
                names.append(name)
            if not texts:
                why = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
                raise SynthClipError(
                    f"the concept bank is empty{f' ({why})' if why else ''}: check concepts.sources"
                )
            columns = [pa.array(range(len(texts)), pa.int32()), pa.array(texts), pa.array(names)]
            with writer.table(f"{BANK}.parquet", CONCEPT) as out:
                out.write_table(pa.Table.from_arrays(columns, schema=CONCEPT))
            tick(1)
            return Outcome(
                len(texts), rejected, {"inputs": dict(shard.inputs), "sources": dict(Counter(names))}
            )

        return make

    def _inputs(self) -> dict[str, str]:
        """The digest of every source's file. A file that is gone since the bank was made counts as unchanged:
        a run can go on where its sources are not."""
        made = self.run.manifest(self.name, BANK)
        recorded = made.notes.get("inputs", {}) if made else {}
        found = {}
        for source in self.recipe.concepts.sources:
            path = sources.located(source)
            if path is None:
                continue
            try:
                found[str(source.path)] = quick_digest(path)
            except OSError:
                found[str(source.path)] = recorded.get(str(source.path), "missing")
        return found


def bank(config: ConceptsConfig, rejected: Counter[str]) -> Iterator[tuple[str, str]]:
    """(text, source) of every concept, each text once; what is refused is counted by reason in `rejected`."""
    seen: set[str] = set()
    for source in config.sources:
        for entry in sources.read(source):
            reason = _refusal(entry, config)
            text = entry.strip() if reason is None else ""
            if reason is None and text in seen:
                reason = "duplicate"
            if reason is not None:
                rejected[reason] += 1
                continue
            seen.add(text)
            yield text, source.kind
            if config.limit is not None and len(seen) >= config.limit:
                return


def _refusal(entry: Any, config: ConceptsConfig) -> str | None:
    if not isinstance(entry, str):
        return "not a string"
    text = entry.strip()
    if not text:
        return "empty"
    if len(text) > config.max_chars:
        return "too long"
    if not text.isprintable():
        return "unprintable characters"
    return None
