"""The recipe's section for evaluation."""

from pydantic import Field

from synthclip.config import Section, runtime


class EvaluationConfig(Section):
    templates: tuple[str, ...] = Field(("a photo of a {}.",), min_length=1)
    """Zero-shot prompts; `{}` is the class name. Their embeddings are averaged."""
    batch_size: int = runtime(256, ge=1)
