"""What a training step reads of a caption."""

import re
from collections.abc import Sequence

SENTENCES = 32
"""Sentences of one caption that are drawn from, and the uniform numbers that one draw takes."""
_END = re.compile(r"(?<=[.!?])\s+")


def sub_caption(caption: str, count: int, uniform_D: Sequence[float]) -> str:
    """`count` sentences of a caption, drawn without replacement, in their order (DreamLIP, arXiv 2403.17007,
    Section 3.2); the caption where it has no more. `uniform_D` holds `SENTENCES` numbers in [0, 1)."""
    sentences = _END.split(caption.strip())[:SENTENCES]
    if len(sentences) <= count:
        return caption
    drawn = sorted(range(len(sentences)), key=uniform_D.__getitem__)[:count]
    return " ".join(sentences[at] for at in sorted(drawn))
