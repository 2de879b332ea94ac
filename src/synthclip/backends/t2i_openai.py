"""Any server with OpenAI's images API, by OpenAI's own client.

Servers that take no seed (OpenAI's own) cannot paint a picture twice.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthclip.backends import Painted
from synthclip.backends.servers import Server, ServerConfig
from synthclip.recipe.section import runtime


class Config(ServerConfig):
    base_url: str = "https://api.openai.com/v1"
    """Stands in the model's name, and so beside every image."""
    size_px: int = Field(1024, ge=16)
    seeded: bool = True
    """Send each image's seed; off for servers that refuse the field, as OpenAI's own does."""
    licence: str | None = None
    """The licence that its pictures carry."""
    concurrency: int = runtime(8, ge=1)
    """Requests that a worker has under way at once."""


def build(config: Config) -> "OpenAIImages":
    return OpenAIImages(config)


class OpenAIImages:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._server = Server(config, "text_to_image")
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
        for at, answer in enumerate(self._server.all(self._one, prompts, seeds)):
            if isinstance(answer, str):
                refused[at] = answer
            else:
                images[at] = answer
        return Painted(images, refused)

    async def _one(self, prompt: str, seed: int) -> NDArray[np.uint8] | str:
        """The image, or why there is none."""
        import openai

        config = self._config
        # Servers that take a seed take one of 32 bits at least.
        extra = {"seed": seed % 2**31} if config.seeded else {}
        answer: Any
        try:
            answer = await self._server.client.images.generate(
                model=config.model,
                prompt=prompt,
                n=1,
                size=f"{config.size_px}x{config.size_px}",
                response_format="b64_json",
                extra_body=extra,
            )
        except openai.BadRequestError:
            return "refused by the server"
        except ValueError:
            answer = None
        if not hasattr(answer, "data"):
            raise self._server.no_such_api()
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
