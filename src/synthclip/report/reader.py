"""The files that the stages of a run have finished."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from synthclip import schema
from synthclip.run.durable import rejected_by_reason
from synthclip.run.store import Manifest, RunDirectory

EXAMPLES = 2
"""Texts shown of each reason for a refusal."""
EXAMPLE_SHARDS = 20
"""Shards that these are looked for in."""


class Reader:
    """The files of finished shards."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def rows(self, stage: str) -> int:
        return sum(manifest.rows for manifest in self.run.manifests(stage))

    def refused(self, stage: str) -> Mapping[str, int]:
        """Rows refused by reason, the most frequent first."""
        return rejected_by_reason(self.run.manifests(stage))

    def examples(self, stage: str) -> dict[str, tuple[str, ...]]:
        """The first texts refused for each reason, each once, from the first shards that refused any."""
        found: dict[str, dict[str, None]] = {reason: {} for reason in self.refused(stage)}
        refusing = [one.shard for one in self.run.manifests(stage) if one.rejected][:EXAMPLE_SHARDS]
        for path in (self.run.file(stage, f"rejected/{shard}.parquet") for shard in refusing):
            for row in (
                schema.read_table(path, columns=["text", "reason"]).to_pylist() if path.is_file() else ()
            ):
                texts = found.setdefault(row["reason"], {})
                if row["text"] and len(texts) < EXAMPLES:
                    texts[row["text"]] = None
        return {reason: tuple(texts) for reason, texts in found.items()}

    def files(self, stage: str, prefix: str = "", suffix: str = ".parquet") -> list[Path]:
        """Files by the beginning and end of their path in the stage, in order; rejects are left out."""
        paths = {entry.path for manifest in self.run.manifests(stage) for entry in manifest.files}
        return [
            self.run.file(stage, path)
            for path in sorted(paths)
            if path.startswith(prefix) and path.endswith(suffix) and not path.startswith("rejected/")
        ]

    def table(self, stage: str, path: str) -> pa.Table | None:
        found = self.files(stage, path)
        return schema.read_table(found[0]) if found else None

    def shards(self, split: str) -> list[Manifest]:
        """The manifests of a split's images."""
        return [manifest for manifest in self.run.manifests("images") if manifest.split == split]
