"""vLLM where there is none: the recipe is still checked, and the line names the remedy."""

import importlib.util

import pytest

from synthclip.backends import build_llm
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_remedy_is_named() -> None:
    recipe = load_recipe("synthci-30m")
    with pytest.raises(SynthClipError, match=r"choose llamacpp or openai.*synthclip\[vllm\]"):
        build_llm(recipe.llm)
