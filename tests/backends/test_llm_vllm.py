"""vLLM where there is none: the remedy, and a stand-in that shows what is asked and made of answers."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from synthclip.backends import Unfinished, build_llm
from synthclip.backends.llm_vllm import Config
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_remedy_is_named() -> None:
    recipe = load_recipe("synthci-30m")
    with pytest.raises(SynthClipError, match=r"choose llamacpp or openai.*\[vllm\]"):
        build_llm(recipe.llm)


class Engine:
    """As much of vllm.LLM as the backend uses; it says what it was asked."""

    asked: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        self.values = values

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(chat_template="{{ messages }}")

    def chat(self, messages: Any, sampling: Any, *, use_tqdm: bool, chat_template_kwargs: Any) -> list[Any]:
        Engine.asked = {"sampling": sampling, "template": chat_template_kwargs}
        return [self._answer(one[0]["content"]) for one in messages]

    def _answer(self, prompt: str) -> Any:
        ended = "length" if prompt == "long" else "stop"
        output = SimpleNamespace(text=f"<think>x</think>{prompt}", finish_reason=ended, token_ids=[1, 2])
        return SimpleNamespace(outputs=[output], prompt_token_ids=[1, 2, 3])


def test_what_vllm_is_asked_and_what_is_made_of_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = Engine, SimpleNamespace
    vllm.sampling_params = SimpleNamespace(StructuredOutputsParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    off = {"enable_thinking": False}
    config = Config(backend="vllm", model="m", max_tokens=10, top_p=None, chat_template_kwargs=off)
    llm = build_llm(config)
    plain, cut = llm.generate(["short", "long"], [1, 2**64 - 1], [1, 3])
    assert [isinstance(text, Unfinished) for text in (plain, cut)] == [False, True]
    assert Engine.asked["template"] == off
    one, three = Engine.asked["sampling"]
    assert not one.skip_special_tokens, "some families mark thinking by special tokens"
    assert (one.max_tokens, three.max_tokens, three.seed) == (10, 30, 2**63 - 1)
    assert not hasattr(one, "structured_outputs")
    assert not hasattr(one, "top_p")
    assert three.structured_outputs.json["maxItems"] == 3
    assert vars(llm.tokens) == {"read": 6, "written": 4}  # type: ignore[attr-defined]
