"""A recipe that runs from concepts to a trained model in seconds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "textgen"))  # the language model of its tests

RECIPE = """
name: words
concepts: {sources: [{kind: text, path: NOUNS}]}
llm: {backend: small_models.wordy}
captions:
  per_concept: 12
  templates: [{name: plain, text: "{{ concept }}:"}]
balance: {t: 4, heldout: 0.3}
text_to_image: {backend: compositor, size_px: 32}
images: {size_px: 32}
model:
  embed_dim: 8
  vision: {image_size_px: 32, layers: 1, width: 16, head_width: 16, patch_size_px: 16}
  text: {context_length: 16, width: 16, heads: 2, layers: 1}
training: {epochs: 2, batch_size: 8, lr: 0.001, warmup_epochs: 0.5, data_threads: 1, loggers: []}
engine: {workers: 0, attempts: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of the recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "nouns.txt").write_text("apple\nbanana\ncat\ndog\nbus\ncar\nboat\nbee\nbell\nkey\n")
    path = folder / "words.yaml"
    path.write_text(RECIPE.replace("NOUNS", str(folder / "nouns.txt")))
    return str(path)
