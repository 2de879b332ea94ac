"""The recipe's section for evaluation."""

from pydantic import Field

from synthclip.recipe.section import Section, runtime


class EvaluationConfig(Section):
    templates: tuple[str, ...] = Field(("a photo of a {}.",), min_length=1)
    """Zero-shot prompts; `{}` is the class name. Their embeddings are averaged."""
    captions: int = Field(5000, ge=1)
    """At most so many held-out captions, drawn by content. Recall depends on how many there are to choose
    from: 5,000 is the size of COCO's usual test split."""
    batch_size: int = runtime(256, ge=1)
