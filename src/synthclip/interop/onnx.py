"""ONNX graphs of the two towers."""

import json
from collections.abc import Callable
from pathlib import Path

from synthclip.errors import needs_extra
from synthclip.models.load import Encoders, OpenedModel

_SINGLE_FILE_BYTES = 1_500_000_000
"""A graph above 2 GB (protobuf's limit) keeps its weights in a file beside it."""


def write_onnx(opened: OpenedModel, folder: Path) -> Encoders:
    """`image.onnx` (pixel_values float32 [B, 3, H, W] -> image_embeds), `text.onnx` (input_ids int64
    [B, context_length] -> text_embeds), both not normalised, and `preprocess.json` with what else it takes:
    open_clip's `preprocess_cfg` and the factor that turns cosines into logits.
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

    size = opened.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    ids = opened.tokenizer(["a dog", "a cat"])

    weights_bytes = sum(value.nbytes for value in opened.model.state_dict().values())

    def export(encode: Callable[[Tensor], Tensor], example: Tensor, name: str, put: str, get: str) -> Path:
        path = folder / name
        torch.onnx.export(
            Tower(encode).eval(),
            (example,),
            path,
            input_names=[put],
            output_names=[get],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=weights_bytes > _SINGLE_FILE_BYTES,
            verbose=False,
        )
        return path

    def run(path: Path) -> Callable[[Tensor], Tensor]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (put,), (get,) = session.get_inputs(), session.get_outputs()
        return lambda batch: torch.from_numpy(session.run([get.name], {put.name: batch.numpy()})[0])

    pixels = torch.zeros(2, 3, height, width)
    image = export(opened.model.encode_image, pixels, "image.onnx", "pixel_values", "image_embeds")
    text = export(opened.model.encode_text, ids, "text.onnx", "input_ids", "text_embeds")
    extra = {"preprocess_cfg": opened.preprocess, "logit_scale": opened.model.logit_scale.exp().item()}
    (folder / "preprocess.json").write_text(json.dumps(extra, indent=2) + "\n", encoding="utf-8")
    return Encoders(run(image), run(text))
