"""What the tests of the text stages share: a recipe, and how to read a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.run.store import RunDirectory

TEXT_STAGES = ("concepts", "captions", "match", "balance")
RECIPE = """
name: words
llm: {backend: small_models.wordy}
captions:
  per_concept: 6
  concepts_per_shard: 4
  templates: [{name: plain, text: "{{ concept }}:"}]
text_to_image: {backend: compositor}
engine: {workers: 0}
"""

RunText = Callable[..., RunDirectory]


def table(run_directory: RunDirectory, stage: str, folder: str = "") -> pa.Table:
    """All rows of a stage's folder, in the order of its files."""
    files = sorted((run_directory.stage(stage) / folder).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def contents(run_directory: RunDirectory, *stages: str) -> dict[str, bytes]:
    """Every hand-over of the stages, byte for byte."""
    return {
        str(path.relative_to(run_directory.path)): path.read_bytes()
        for stage in stages
        for path in sorted(run_directory.stage(stage).rglob("*.parquet"))
    }


def write_lists(folder: Path, texts: list[str], files: int) -> Path:
    """The captions in `files` JSON lists, as the original keeps them."""
    folder.mkdir()
    for number in range(files):
        (folder / f"{number}.json").write_text(json.dumps(texts[number::files]))
    return folder
