"""The concepts of a run, each with what the stages say of it: rows of the index's table `concept`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip import schema
from synthclip.recipe.training import HELDOUT
from synthclip.run.store import RunDirectory
from synthclip.textgen.concepts import read_bank


def describe(run: RunDirectory, pictures: Mapping[int, int]) -> Iterator[tuple[Any, ...]]:
    """Rows of the index's table `concept`; `pictures` are the images of each concept."""
    names = read_bank(run)
    written = np.zeros(len(names), np.int64)
    for manifest in run.manifests("captions"):
        for entry in manifest.files:
            if entry.path.endswith(".parquet") and not entry.path.startswith("rejected/"):
                for batch in schema.read_batches(run.file("captions", entry.path), ["concept_id"]):
                    written += _counts(batch["concept_id"].to_numpy(zero_copy_only=False), len(names))
    balanced: dict[int, tuple[int, int]] = {}
    if (path := run.file("balance", "counts.parquet")).is_file():
        columns = (column.to_pylist() for column in schema.read_table(path, schema.BALANCE_COUNT.names))
        balanced = {concept: (before, after) for concept, before, after in zip(*columns, strict=True)}
    classes: dict[str, Mapping[str, Any]] = {}
    if (path := run.file("eval", "per_class.parquet")).is_file():
        rows = schema.read_table(path).to_pylist()
        classes = {row["name"]: row for row in rows if row["dataset"] == HELDOUT}
    for concept, name in enumerate(names):
        judged = classes.get(name, {})
        yield (
            concept,
            name,
            int(written[concept]),
            *balanced.get(concept, (None, None)),
            pictures.get(concept, 0),
            judged.get("n"),
            judged.get("top1"),
            judged.get("confused_with"),
            judged.get("confused_n"),
        )


def _counts(ids: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    return np.bincount(ids[(ids >= 0) & (ids < size)], minlength=size)
