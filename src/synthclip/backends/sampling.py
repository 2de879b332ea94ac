"""How a language model is asked to draw its words, where the server or engine does the drawing."""

from pydantic import Field

from synthclip.recipe.backends import BackendConfig


class SamplingConfig(BackendConfig):
    chat: bool = True
    """Send the prompt as a user's message in the model's chat template. Off, the model goes on from it, as
    few-shot prompts and prefills want."""
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = Field(64, ge=1)
    stop: tuple[str, ...] = ()

    def sampling(self) -> dict[str, object]:
        """The values by the names that vLLM and OpenAI's API share; `stop` only where there is any."""
        names = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens"}
        return self.model_dump(include=names) | ({"stop": list(self.stop)} if self.stop else {})
