"""Where one image of a run comes from, and the same image once more."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthclip import schema
from synthclip.backends import build_text_to_image
from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe, load_saved_recipe
from synthclip.recipe.backends import backend_config
from synthclip.run.store import RunDirectory
from synthclip.samples import OTHER_TEXTS, read_metadata
from synthclip.samples.pictures import encode, fit
from synthclip.schema import IMAGE_SPLITS
from synthclip.textgen.concepts import read_bank
from synthclip.textgen.prompts import Prompt, Prompts

_MAX_ATTEMPTS = 10_000
"""How many draws of a concept are searched for the prompt that a caption answers."""


@dataclass(frozen=True)
class Trace:
    """Image -> caption -> concept -> prompt -> model. What the run no longer holds is None."""

    image: dict[str, Any]
    """The image's row of the sidecar, and what its JSON in the tar says."""
    caption: dict[str, Any] | None
    concept: str | None
    """What the caption was written for."""
    concepts: list[str]
    """What was found in the caption."""
    prompt: str | None
    prefill: str | None
    """What the caption was begun with, for the model to go on from; empty where it began it itself."""

    def facts(self) -> dict[str, str | None]:
        """What a reader wants to know, by name; None where it is not known."""
        image, caption = self.image, self.caption or {}
        return {
            "image": f"{image['shard']} at byte {image['offset']}, {image['width_px']} px, "
            f"sha256 {image['sha256']}",
            "painted": f"variant {image['variant']}, attempt {image['attempt']}, seed {image['seed']}"
            if "attempt" in image
            else None,
            "imported": image.get("image_path"),
            "by": f"{image['backend']}; licence {image['licence']}",
            "painter": ", ".join(f"{name} {value}" for name, value in image.get("text_to_image", {}).items())
            or None,
            "asked for": json.dumps(image["prompt"], ensure_ascii=False)
            if image.get("prompt", image["text"]) != image["text"]
            else None,
            "scores": ", ".join(f"{name} {score:.4g}" for name, score in image["scores"]) or None,
            "from": json.dumps(image["text"], ensure_ascii=False),
            "unread": image.get("unread") or None,
            "seen in it": "; ".join(filter(None, image.get(OTHER_TEXTS) or ())) or None,
            "caption": f"{image['caption_id']:016x}",
            "concept": self.concept,
            "found in it": ", ".join(self.concepts) or None,
            "written by": f"{caption['model']}, seed {caption['seed']}" if caption else None,
            "template": caption.get("template"),
            "prompt": json.dumps(self.prompt, ensure_ascii=False) if self.prompt else None,
            "prefill": json.dumps(self.prefill, ensure_ascii=False) if self.prefill else None,
        }

    def lines(self) -> list[str]:
        """The facts that are known, one a line."""
        return [f"{name:12}{value}" for name, value in self.facts().items() if value is not None]


@dataclass(frozen=True)
class Repainted:
    """An image made again."""

    jpeg: bytes
    same: bool
    """Byte for byte what the run holds."""


def trace(path: Path | str, key: str, *, split: str | None = None) -> Trace:
    """Follow an image back to the concept; of images in several splits that have this key the first, or that
    of `split`. Raises SynthClipError where the run holds no such image."""
    run = RunDirectory(path, read_only=True)
    recipe = load_saved_recipe(run.path)
    image = _image(run, key, IMAGE_SPLITS if split is None else (split,))
    caption = _row(run, "captions", "caption_id", pa.scalar(image["caption_id"], pa.uint64()))
    names = dict(enumerate(read_bank(run))) if run.manifests("concepts") else {}
    concept = names.get(caption["concept_id"]) if caption else None
    prompt = _prompt(recipe, concept, caption["seed"]) if caption and concept else None
    found = [names[at] for at in image["concept_ids"] if at in names]
    return Trace(image, caption, concept, found, *((prompt.text, prompt.prefill) if prompt else (None, None)))


def repaint(path: Path | str, key: str, *, trust: bool = False) -> Repainted:
    """Paint one image of a run again, from what stands beside it in its tar.

    Raises SynthClipError where the run holds no such image, its model cannot be loaded, or its backend is
    code that only `trust` allows.
    """
    image = _image(RunDirectory(path), key)
    values = image.get("text_to_image")
    if values is None:
        raise SynthClipError(f"{path}: image {key} was imported, so it cannot be painted again")
    model = build_text_to_image(backend_config("t2i", values, trust=trust))
    painted = model.generate([image["prompt"]], [image["seed"]])
    jpeg = encode(fit(painted.images[0], image["size_px"]), image["jpeg_quality"])
    return Repainted(jpeg, hashlib.sha256(jpeg).hexdigest() == image["sha256"])


def _image(run: RunDirectory, key: str, splits: Sequence[str] = IMAGE_SPLITS) -> dict[str, Any]:
    """The image's sidecar row and its JSON, as one."""
    for split in splits:
        for sidecar in schema.split_tables(run.stage("images"), split):
            rows = schema.read_table(sidecar, filters=pc.field("key") == key).to_pylist()
            if rows:
                return {**read_metadata(sidecar.with_suffix(".tar"), key), **rows[0]}
    refused = _row(run, "images/rejected", "key", pa.scalar(key))
    if refused is not None:
        raise SynthClipError(f"{run.path}: image {key}: refused ({refused['reason']}), so not kept")
    raise SynthClipError(
        f"{run.path}: holds no image of key {key!r}: keys are the names in images/*/*.tar without .jpg"
    )


def _row(run: RunDirectory, stage: str, column: str, value: pa.Scalar) -> dict[str, Any] | None:
    for file in sorted(run.stage(stage).rglob("*.parquet")):
        if "rejected" in file.relative_to(run.stage(stage)).parts:
            continue
        rows = schema.read_table(file, filters=pc.field(column) == value).to_pylist()
        if rows:
            return dict(rows[0])
    return None


def _prompt(recipe: Recipe, concept: str, seed: int) -> Prompt | None:
    """The prompt whose draw had that seed."""
    prompts = Prompts(recipe.captions, recipe.seed)
    drawn = (prompts.draw(concept, attempt) for attempt in range(_MAX_ATTEMPTS))
    return next((prompt for prompt in drawn if prompt.seed == seed), None)
