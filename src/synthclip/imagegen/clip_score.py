"""Scores images against their captions with a CLIP of open_clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.imagegen.config import LOCAL
from synthclip.imagegen.filters import Verdict


class ClipScore:
    """Refuses images that a CLIP finds unlike their captions.

    `clip_score` is the cosine similarity of the two embeddings: CLIPScore (Hessel et al., 2021, section 3)
    without its factor of 2.5 and its cut at zero.
    """

    def __init__(self, model: str, least: float) -> None:
        from synthclip import torchvision_ops

        torchvision_ops.ensure()
        import open_clip
        import torch

        name, pretrained = (model, None) if ":" in model else model.rpartition("/")[::2]
        try:
            self._model, self._transform = open_clip.create_model_from_pretrained(name, pretrained=pretrained)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            told = str(error).strip().splitlines()[0]
            raise SynthClipError(
                f"images.filters.clip_model: {model}: cannot be loaded: {told}; give "
                f"NAME/PRETRAINED of open_clip, hf-hub:OWNER/NAME or {LOCAL}PATH"
            ) from None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.eval().to(self._device)
        self._least = least

    def judge(self, images: NDArray[np.uint8], captions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        at = [number for number, verdict in enumerate(verdicts) if verdict.reason is None]
        if not at:
            return
        scores = self.scores(images[at], [captions[number] for number in at])
        for number, score in zip(at, scores, strict=True):
            verdicts[number].scores["clip_score"] = float(score)
            if score < self._least:
                verdicts[number].reason = "clip score"

    def scores(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Cosine similarities, float32 [B], of uint8 [B, H, W, 3] in RGB and their captions."""
        import torch
        from PIL import Image

        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            image: Any = self._model.encode_image(pixels.to(self._device), normalize=True)
            text: Any = self._model.encode_text(
                self._tokenizer(list(captions)).to(self._device), normalize=True
            )
            return np.asarray((image * text).sum(-1).float().cpu().numpy(), np.float32)
