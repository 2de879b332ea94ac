"""Any server with OpenAI's images API: vLLM-Omni, SGLang-Diffusion, LocalAI, stable-diffusion.cpp, OpenAI's.

Servers that take no seed (OpenAI's own) cannot paint a picture twice.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import unquote, urljoin

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthclip.backends import Painted, Refused
from synthclip.backends.painters import terms_note
from synthclip.backends.servers import Server, ServerConfig
from synthclip.recipe.section import later, runtime
from synthclip.samples.pictures import decode_over_white, fit

_OPENAI = re.compile(r"gpt-image|chatgpt-image", re.IGNORECASE)
"""Models that refuse `seed` and `response_format`."""
_SD_SERVER = "sd-cpp-local"
"""What stable-diffusion.cpp's server calls its model. It reads everything but prompt and size inside the
prompt, and paints with one and the same seed where that names none."""
_OPENAI_SIDE_PX = 1024
"""The only square that they paint."""


class Config(ServerConfig):
    base_url: str = "https://api.openai.com/v1"
    """Stands in the model's name, and so beside every image."""
    size_px: int = Field(1024, ge=16)
    """Side of the pictures. One that the server paints at another size is cut to a square and resized."""
    seeded: bool = True
    """Send each image's seed, except to OpenAI's models, which refuse the field; off for others that do."""
    response_format: Literal["auto", "b64_json", "url"] | None = runtime("auto")
    """How to ask for the picture; what comes is read either way. auto: as b64_json, except of OpenAI's
    models, which refuse the field; null leaves it out."""
    extra_body: dict[str, Any] = later({})
    """More fields of every request, such as `{quality: low}` or `{num_inference_steps: 9}`; one that is null
    is not sent."""
    licence: str | None = None
    """The licence that its pictures carry."""
    concurrency: int = runtime(16, ge=1)
    """Requests that a worker has under way at once: twice what the server paints at once."""

    def notes(self) -> list[str]:
        notes = terms_note(self.model)
        if not self.takes_seeds:
            notes.append(f"text_to_image: {self.model} takes no seed: no picture can be painted again")
        return notes

    @property
    def takes_seeds(self) -> bool:
        return self.seeded and not _OPENAI.search(self.model)


def build(config: Config) -> "OpenAIImages":
    return OpenAIImages(config)


class OpenAIImages:
    calls_at_once = 2
    """While one batch waits for its last pictures, the next one keeps the server busy."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._server = Server(config, "text_to_image", 2**23 + 8 * config.size_px**2)
        self.name = f"{config.model} at {config.base_url}"
        self.licence = config.licence or f"see {config.model}"
        self.batch_size = config.concurrency

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, size, size, 3] in RGB.

        What the server's content filter refuses, or answers with no image, is refused by position. Raises
        SynthClipError where the server is at fault.
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
        answer = await self._server.post("images/generations", self._body(prompt, seed))
        if isinstance(answer, Refused):
            return answer.reason
        data = answer.get("data", self)
        if data is self or not isinstance(data, list | None):
            raise self._server.malformed("no list of data")
        image = data[0] if data else {}
        given = (image.get("b64_json") or image.get("url") or "") if isinstance(image, dict) else None
        if not isinstance(given, str):
            raise self._server.malformed("an image is no text in base64")
        if given.startswith(("http://", "https://", "/")) and given == image.get("url"):
            raw = await self._server.download(urljoin(self._config.base_url, given))
        else:
            try:
                raw = _decoded(given)
            except ValueError:
                return "no image in the answer"
        try:
            return fit(decode_over_white(raw), self._config.size_px)
        except ValueError:
            return "no image in the answer"

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        config = self._config
        is_openai = _OPENAI.search(config.model) is not None
        side = _OPENAI_SIDE_PX if is_openai else config.size_px
        form = config.response_format
        asked: dict[str, Any] = {"model": config.model, "prompt": prompt, "n": 1, "size": f"{side}x{side}"}
        more = {
            "response_format": form if form != "auto" else None if is_openai else "b64_json",
            "seed": seed % 2**31 if config.takes_seeds else None,  # of 32 bits at least where one is taken
            **config.extra_body,
        }
        more = {name: value for name, value in more.items() if value is not None}
        if config.model == _SD_SERVER:
            return asked | {"prompt": f"{prompt}<sd_cpp_extra_args>{json.dumps(more)}</sd_cpp_extra_args>"}
        return asked | more


def _decoded(text: str) -> bytes:
    """The bytes of a data URI, or of base64 in either alphabet, padded or not. Raises ValueError where it is
    none of these."""
    if text[:5].lower() == "data:":
        text = unquote(text.partition(",")[2])
    return base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "==")
