"""Writes a model in the formats of other libraries, reads it back, and holds its embeddings against ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from synthclip.errors import SynthClipError, needs_extra
from synthclip.interop.huggingface import write_huggingface
from synthclip.models.build import PREPROCESS_KEYS, is_paper_model, write_folder
from synthclip.models.load import Encoders, OpenedModel, open_model
from synthclip.models.weights import write_checkpoint
from synthclip.recipe.training import PAPER_MODEL
from synthclip.run.durable import new_folder

Format = Literal["open_clip", "official", "hf", "onnx"]
TOLERANCE = 1e-4
"""Largest difference allowed in any component of an L2-normalised embedding."""
_SINGLE_FILE_BYTES = 1_500_000_000
"""A graph above 2 GB (protobuf's limit) keeps its weights in a file beside it."""


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
    if "hf_tokenizer_name" in opened.config["text_cfg"]:
        opened.tokenizer.save_pretrained(folder)  # open_clip looks for it in the folder, not on the hub
    preprocess = {key: opened.preprocess[key] for key in PREPROCESS_KEYS if key in opened.preprocess}
    architecture = {"model_cfg": opened.config, "preprocess_cfg": preprocess}
    write_folder(folder, architecture, opened.model.state_dict())
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


def write_onnx(opened: OpenedModel, folder: Path) -> Encoders:
    """`image.onnx` (pixel_values float32 [B, 3, H, W] -> image_embeds), `text.onnx` (input_ids int64
    [B, context_length] -> text_embeds), both not normalised, and `preprocess.json` with what else it takes:
    open_clip's `preprocess_cfg`, and `logit_scale` and `logit_bias`: logits are cosines times the one plus
    the other (0 for models without a bias).
    """
    with needs_extra("interop", "export to onnx"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    import torch
    from torch import Tensor, nn

    class Tower(nn.Module):
        def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.model, self.encode = opened.model, encode

        def forward(self, batch: Tensor) -> Tensor:
            return self.encode(batch)

    ids = opened.tokenizer(["a dog", "a cat"])

    weights_bytes = sum(value.nbytes for value in opened.model.state_dict().values())

    def export(encode: Callable[[Tensor], Tensor], example: Tensor, name: str, put: str, get: str) -> Path:
        path = folder / name
        program = torch.onnx.export(
            Tower(encode).eval(),
            (example,),
            input_names=[put],
            output_names=[get],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where in which local file each node comes from
        program.save(path, external_data=weights_bytes > _SINGLE_FILE_BYTES)
        return path

    def run(path: Path) -> Callable[[Tensor], Tensor]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (put,), (get,) = session.get_inputs(), session.get_outputs()
        return lambda batch: torch.from_numpy(session.run([get.name], {put.name: batch.numpy()})[0])

    pixels = torch.zeros(2, 3, *opened.image_size)
    image = export(opened.model.encode_image, pixels, "image.onnx", "pixel_values", "image_embeds")
    text = export(opened.model.encode_text, ids, "text.onnx", "input_ids", "text_embeds")
    bias = getattr(opened.model, "logit_bias", None)
    extra = {
        "preprocess_cfg": opened.preprocess,
        "logit_scale": opened.model.logit_scale.exp().item(),
        "logit_bias": 0.0 if bias is None else bias.item(),
    }
    (folder / "preprocess.json").write_text(json.dumps(extra, indent=2) + "\n", encoding="utf-8")
    return Encoders(run(image), run(text))


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

    pixels = torch.randn(2, 3, *opened.image_size, generator=torch.Generator().manual_seed(0))
    ids = opened.tokenizer(["a photo of a dog", "two red umbrellas on a rainy street at night"])
    with torch.no_grad():
        pairs = (
            (opened.model.encode_image(pixels), written.image(pixels)),
            (opened.model.encode_text(ids), written.text(ids)),
        )
        return max(float((normalize(a, dim=-1) - normalize(b, dim=-1)).abs().max()) for a, b in pairs)
