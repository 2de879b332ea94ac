"""The size and the arithmetic of language models."""

import re
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig

_BITS_PER_WEIGHT = 5
"""Of a GGUF file at the usual four bits, scales included."""


def gguf_bytes(recipe: Recipe, llm_params: float | None) -> float:
    """The size of llama.cpp's model. Raises SynthClipError where neither parameters nor a file give it."""
    if llm_params is not None:
        return llm_params * _BITS_PER_WEIGHT / 8
    from synthclip.backends.llm_llamacpp import gguf

    return gguf(getattr(recipe.llm, "model", None)).stat().st_size


def transformer(parameters: float, tokens: float) -> float:
    """FLOPs of a forward pass: two for each parameter and token (Kaplan et al., 2020, section 2.1)."""
    return 2 * parameters * tokens


def llm_parameters(config: BackendConfig) -> float:
    """The parameters of a language model, by its name. Raises SynthClipError where it gives none."""
    name = Path(str(getattr(config, "model", ""))).name
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([MB])(?![a-z])", name, re.IGNORECASE)
    if match is None:
        raise SynthClipError(f"llm.model {name!r}: its name gives no size: give --llm-params, such as 7e9")
    return float(match[1]) * (1e9 if match[2].upper() == "B" else 1e6)
