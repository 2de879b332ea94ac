"""Any server with OpenAI's images API.

Servers that take no seed (OpenAI's own) cannot paint a picture twice.
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthclip.backends import Painted, Refused
from synthclip.backends.servers import Server, ServerConfig
from synthclip.recipe.section import runtime


class Config(ServerConfig):
    base_url: str = "https://api.openai.com/v1"
    """Stands in the model's name, and so beside every image."""
    size_px: int = Field(1024, ge=16)
    """Side of the images that are asked for."""
    seeded: bool = True
    """Send each image's seed; off for servers that refuse the field, as OpenAI's own does."""
    response_format: Literal["b64_json"] | None = runtime("b64_json")
    """null leaves the field out, for servers that refuse it, as OpenAI does for gpt-image-1."""
    licence: str | None = None
    """The licence that its pictures carry."""
    concurrency: int = runtime(8, ge=1)
    """Requests that a worker has under way at once."""


def build(config: Config) -> "OpenAIImages":
    return OpenAIImages(config)


class OpenAIImages:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._server = Server(config, "text_to_image", 2**20 + 8 * config.size_px**2)
        self.name = f"{config.model} at {config.base_url}"
        self.licence = config.licence or f"see {config.model}"
        self.batch_size = 2 * config.concurrency

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, size, size, 3] in RGB.

        What the server's content filter refuses, or answers with no image of the size asked for, is refused
        by position. Raises SynthClipError where the server is at fault.
        """
        side = self._config.size_px
        images = np.zeros((len(prompts), side, side, 3), np.uint8)
        refused: dict[int, str] = {}
        for at, answer in enumerate(self._server.all(self._one, prompts, seeds)):
            if isinstance(answer, str):
                refused[at] = answer
            else:
                images[at] = answer
        return Painted(images, refused)

    async def _one(self, prompt: str, seed: int) -> NDArray[np.uint8] | str:
        """The image, or why there is none."""
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "prompt": prompt,
            "n": 1,
            "size": f"{config.size_px}x{config.size_px}",
        }
        if config.response_format is not None:
            body["response_format"] = config.response_format
        if config.seeded:
            body["seed"] = seed % 2**31  # servers that take a seed take one of 32 bits at least
        answer = await self._server.post("images/generations", body)
        if isinstance(answer, Refused):
            return answer.reason
        data = answer.get("data", self)
        if data is self or not isinstance(data, list | None):
            raise self._server.malformed("no list of data")
        image = data[0] if data else {}
        if not isinstance(image, dict) or not isinstance(image.get("b64_json"), str | None):
            raise self._server.malformed("an image is no text in base64")
        if image.get("url") and not image.get("b64_json"):
            raise self._server.malformed("an image's address in the place of the image")
        return self._decoded(image.get("b64_json") or "")

    def _decoded(self, encoded: str) -> NDArray[np.uint8] | str:
        import cv2

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
