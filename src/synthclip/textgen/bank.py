"""The concept bank of a run, which every later stage reads."""

import pyarrow.parquet as pq

from synthclip.run.store import RunDirectory

BANK = "00000"
"""The one shard of the concept bank."""


def read_bank(run: RunDirectory) -> list[str]:
    """The concepts, by their ids."""
    table = pq.read_table(run.file("concepts", f"{BANK}.parquet"), columns=["text"])
    texts: list[str] = table["text"].to_pylist()
    return texts
