"""Any server with OpenAI's images API, by its own client, which retries what is worth a retry.

Servers that take no seed (OpenAI's own) cannot paint a picture twice.
"""

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthclip.backends import BackendConfig, Painted
from synthclip.config import runtime
from synthclip.errors import SynthClipError


class Config(BackendConfig):
    model: str
    """The model's name on the server."""
    base_url: str = "https://api.openai.com/v1"
    size_px: int = Field(1024, ge=16)
    seeded: bool = True
    """Send each image's seed; off for servers that refuse the field, as OpenAI's own does."""
    licence: str | None = None
    """The licence that its pictures carry."""
    api_key_variable: str = runtime("OPENAI_API_KEY")
    """The environment variable that holds the key; a server that wants none gets a placeholder."""
    concurrency: int = runtime(8, ge=1)
    """Requests under way at once."""
    max_retries: int = runtime(6, ge=0)
    """For a server that is busy, fails or cannot be reached: with growing pauses, or as long as it says."""
    timeout_seconds: float = runtime(120.0, gt=0)


def build(config: Config) -> "OpenAIImages":
    return OpenAIImages(config)


class OpenAIImages:
    def __init__(self, config: Config) -> None:
        try:
            import openai
        except ImportError:
            raise SynthClipError(
                "text_to_image.backend openai needs the package openai: pip install 'synthclip[openai]'"
            ) from None
        self._config = config
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable) or "none",
            max_retries=config.max_retries,
            timeout=config.timeout_seconds,
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="openai")
        self.name = f"{config.model} at {config.base_url}"
        self.licence = config.licence or f"see {config.model}"
        self.batch_size = 2 * config.concurrency

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, size, size, 3] in RGB.

        What the server refuses to paint, or answers with no image of the size asked for, is refused by
        position. Raises SynthClipError where the server cannot be used at all.
        """
        side = self._config.size_px
        images = np.zeros((len(prompts), side, side, 3), np.uint8)
        refused: dict[int, str] = {}
        for at, answer in enumerate(self._pool.map(self._one, prompts, seeds)):
            if isinstance(answer, str):
                refused[at] = answer
            else:
                images[at] = answer
        return Painted(images, refused)

    def _one(self, prompt: str, seed: int) -> NDArray[np.uint8] | str:
        """The image, or why there is none."""
        import openai

        config = self._config
        # Servers that take a seed take one of 32 bits at least.
        extra = {"seed": seed % 2**31} if config.seeded else {}
        try:
            answer = self._client.images.generate(
                model=config.model,
                prompt=prompt,
                n=1,
                size=f"{config.size_px}x{config.size_px}",
                response_format="b64_json",
                extra_body=extra,
            )
        except openai.BadRequestError:
            return "refused by the server"
        except openai.APIStatusError as error:
            remedy = {
                401: f"set {config.api_key_variable}",
                403: f"set {config.api_key_variable} to a key that may use the model",
                404: "mend text_to_image.base_url or text_to_image.model",
                429: "wait, or lower text_to_image.concurrency",
            }.get(error.status_code, "look at the server")
            raise SynthClipError(
                f"text_to_image: {config.base_url}: answered {error.status_code} after "
                f"{config.max_retries} retries: {remedy}"
            ) from None
        except openai.APIConnectionError as error:
            raise SynthClipError(
                f"text_to_image: {config.base_url}: cannot be reached after {config.max_retries} retries "
                f"({error.__cause__ or error}): mend text_to_image.base_url, or start the server"
            ) from None
        return self._decoded(answer.data)

    def _decoded(self, data: Any) -> NDArray[np.uint8] | str:
        import cv2

        encoded = data[0].b64_json if data else None
        if not encoded:
            return "no image in the answer"
        try:
            raw = np.frombuffer(base64.b64decode(encoded), np.uint8)
        except ValueError:
            return "no image in the answer"
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB) if len(raw) else None
        if image is None:
            return "no image in the answer"
        height, width = image.shape[:2]
        if height != self._config.size_px or width != self._config.size_px:
            return "wrong size"
        return np.asarray(image, np.uint8)
