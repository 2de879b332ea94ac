"""Writes a model in the formats of other libraries, reads it back, and holds its embeddings against ours."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from synthclip.errors import SynthClipError
from synthclip.interop.huggingface import write_huggingface
from synthclip.interop.onnx import write_onnx
from synthclip.models.load import Encoders, OpenedModel, is_paper_model, open_model
from synthclip.models.weights import CONFIG_FILE, WEIGHTS_FILE, write_checkpoint
from synthclip.recipe.training import PAPER_MODEL
from synthclip.run.store import disk_errors

Format = Literal["open_clip", "official", "hf", "onnx"]
TOLERANCE = 1e-4
"""Largest difference allowed in any component of an L2-normalised embedding."""


def export_model(source: str | Path, folder: Path, format: Format) -> float:
    """Write the model of `source` (as `load_model` takes it) into a new folder.

    - `open_clip`: loads with `open_clip.create_model_and_transforms("local-dir:…")`.
    - `official`: `checkpoint_best.pt` as the paper's code reads it; only `synthclip-vitb16` has that layout.
    - `hf`: a folder for transformers' `AutoModel` and `AutoProcessor`, where it has an equal architecture.
    - `onnx`: `image.onnx` and `text.onnx`, batches of any size, checked with onnxruntime.

    The folder appears once all is written, read back and compared. Returns the largest difference between
    the L2-normalised embeddings of the two. Raises SynthClipError where the model cannot be loaded, has no
    equal in the format, or comes back different.
    """
    opened = open_model(source)
    with new_folder(folder) as partial:
        difference = _difference(opened, _write(opened, partial, format))
        if difference > TOLERANCE:
            raise SynthClipError(
                f"{source}: as {format} its embeddings differ by {difference:.2g}, so nothing was written: "
                "please report this model's architecture"
            )
    return difference


def write_open_clip(opened: OpenedModel, folder: Path) -> Encoders:
    """An open_clip folder."""
    from safetensors.torch import save_file

    if "hf_tokenizer_name" in opened.config["text_cfg"]:
        opened.tokenizer.save_pretrained(folder)  # open_clip looks for it in the folder, not on the hub
    kept = ("mean", "std", "interpolation", "resize_mode")
    config = {
        "model_cfg": opened.config,
        "preprocess_cfg": {key: opened.preprocess[key] for key in kept if key in opened.preprocess},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.contiguous() for name, value in opened.model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    model = open_model(folder).model
    return Encoders(model.encode_image, model.encode_text)


def write_official(opened: OpenedModel, folder: Path) -> Encoders:
    """`checkpoint_best.pt` in the official layout."""
    if not is_paper_model(opened.config):
        raise SynthClipError(
            f"the official format holds the architecture {PAPER_MODEL} alone: choose another --format"
        )
    path = folder / "checkpoint_best.pt"
    write_checkpoint(path, opened.model.state_dict())
    model = open_model(path).model
    return Encoders(model.encode_image, model.encode_text)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SynthClipError(f"{folder}: not an empty folder: choose another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield scratch
            scratch.chmod(0o755)  # mkdtemp and safetensors let nobody else read
            for path in scratch.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write(opened: OpenedModel, folder: Path, format: Format) -> Encoders:
    match format:
        case "open_clip":
            return write_open_clip(opened, folder)
        case "official":
            return write_official(opened, folder)
        case "hf":
            return write_huggingface(opened, folder)
        case "onnx":
            return write_onnx(opened, folder)


def _difference(opened: OpenedModel, written: Encoders) -> float:
    import torch
    from torch.nn.functional import normalize

    size = opened.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    ids = opened.tokenizer(["a photo of a dog", "two red umbrellas on a rainy street at night"])
    with torch.no_grad():
        pairs = (
            (opened.model.encode_image(pixels), written.image(pixels)),
            (opened.model.encode_text(ids), written.text(ids)),
        )
        return max(float((normalize(a, dim=-1) - normalize(b, dim=-1)).abs().max()) for a, b in pairs)
