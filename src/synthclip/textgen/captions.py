"""Captions: a language model writes several for each concept; what is refused is kept with its reason."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from synthclip import keys
from synthclip.backends import build_llm
from synthclip.engine import Resources, Shard, Tick
from synthclip.schema import CAPTION, REJECTED_CAPTION
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter
from synthclip.textgen import BANK, imported
from synthclip.textgen.cleaning import clean
from synthclip.textgen.prompts import Prompts


class Captions(Stage):
    """One shard for every `captions.concepts_per_shard` concepts, in the order of the bank, or for every
    imported file."""

    name, reads, sections = "captions", ("concepts",), ("seed", "llm", "captions")

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.captions
        if config.imported is not None:
            return imported.shards(config.imported)
        bank = self._bank()
        model = self.recipe.llm.inputs()
        shards = []
        for number, first in enumerate(range(0, len(bank), config.concepts_per_shard)):
            stop = min(first + config.concepts_per_shard, len(bank))
            inputs = {"concepts": keys.digest(f"{first}", *bank[first:stop]), **model}
            rows = (stop - first) * config.per_concept
            shards.append(Shard(f"{number:05d}", inputs, {"first": first, "stop": stop}, rows))
        return shards

    def resources(self) -> Resources:
        return Resources(gpus=self.recipe.llm.gpus)

    def load(self) -> Maker:
        config = self.recipe.captions
        if config.imported is not None:
            return imported.make_captions
        bank = self._bank()
        prompts = Prompts(config, self.recipe.seed)
        llm = build_llm(self.recipe.llm)

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            kept: list[dict[str, Any]] = []
            refused: list[dict[str, Any]] = []
            first, stop = shard.payload["first"], shard.payload["stop"]
            asked = [(number, k) for number in range(first, stop) for k in range(config.per_concept)]
            for start in range(0, len(asked), llm.batch_size):
                batch = asked[start : start + llm.batch_size]
                drawn = [prompts.draw(bank[number], attempt) for number, attempt in batch]
                texts = [prompt.prefilled if llm.continues else prompt.text for prompt in drawn]
                said = llm.generate(texts, [prompt.seed for prompt in drawn])
                for (number, _), prompt, raw in zip(batch, drawn, said, strict=True):
                    raw = (prompt.prefill + raw if llm.continues else raw).encode("utf-8", "replace").decode()
                    text, reason = clean(raw, bank[number], config)
                    row = {
                        "caption_id": keys.text_id(text),
                        "concept_id": number,
                        "text": text,
                        "template": prompt.template,
                        "model": llm.name,
                        "seed": prompt.seed,
                    }
                    if reason is None:
                        kept.append(row)
                    else:
                        refused.append({**row, "reason": reason})
                tick(len(batch), kept=len(kept) / (len(kept) + len(refused)))
            writer.rows(f"{shard.name}.parquet", CAPTION, kept)
            writer.rows(f"rejected/{shard.name}.parquet", REJECTED_CAPTION, refused)
            return Outcome(len(kept), Counter(row["reason"] for row in refused))

        return make

    def _bank(self) -> list[str]:
        self.whole("concepts")
        table = pq.read_table(self.run.file("concepts", f"{BANK}.parquet"), columns=["text"])
        texts: list[str] = table["text"].to_pylist()
        return texts
