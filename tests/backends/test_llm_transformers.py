"""Transformers on a small random model that the test builds."""

import shutil
from pathlib import Path

import pytest

from synthclip.backends import Unfinished, build_llm
from synthclip.backends.llm_transformers import Config
from synthclip.errors import SynthClipError

pytestmark = pytest.mark.slow

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")

NOUNS = ("dog", "cat", "tree", "hill")
WORDS = ("[PAD]", "[UNK]", "[EOS]", "a", "the", "red", "blue", "sits", "runs", "under", "on", ".", *NOUNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers that knows 16 words."""
    import torch

    from synthclip.models import transformers

    path = tmp_path_factory.mktemp("llama")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'the' if enable_thinking is false else 'a' }} {{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(path)
    return path


def config(folder: Path, **values: object) -> Config:
    plain = {"model": str(folder), "chat": False, "max_tokens": 6, "device": "cpu", "temperature": 1.0}
    return Config.model_validate({"backend": "transformers", **plain, **values})


def test_a_text_depends_on_its_seed_not_on_its_batch(folder: Path) -> None:
    llm = build_llm(config(folder))
    prompts, seeds = ["a red dog", "the cat sits under the tree", "a", "a red dog"], [1, 2**64 - 1, 3, 4]
    together = llm.generate(prompts, seeds)
    assert together == [
        llm.generate([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together[0] != together[3]
    assert llm.continues


def test_it_stops_before_the_stop_string(folder: Path) -> None:
    many = build_llm(config(folder, stop=["dog"])).generate(["a red"] * 12, range(12))
    assert all("dog" not in str(text) for text in many)


def test_no_temperature_is_greedy_and_chat_uses_the_template(folder: Path) -> None:
    greedy = build_llm(config(folder, temperature=0))
    assert len(set(greedy.generate(["a cat"] * 3, [1, 2, 3]))) == 1
    chat = build_llm(config(folder, temperature=0, chat=True))
    assert chat.generate(["cat"], [1]) == greedy.generate(["a cat"], [1])
    assert not chat.continues
    off = build_llm(config(folder, temperature=0, chat=True, chat_template_kwargs={"enable_thinking": False}))
    assert off.generate(["cat"], [1]) == greedy.generate(["the cat"], [1])


def test_an_answer_that_reaches_no_end_is_unfinished(folder: Path) -> None:
    texts = build_llm(config(folder, stop=["dog"], max_tokens=4)).generate(["a red"] * 24, range(24))
    assert {isinstance(text, Unfinished) for text in texts} == {True, False}
    assert all(isinstance(text, Unfinished) == (len(str(text).split()) == 4) for text in texts)


def test_penalties_keep_a_greedy_model_from_repeating_itself(folder: Path) -> None:
    prompts, seeds = ["a red dog", "the cat"], [1, 2]
    plain = build_llm(config(folder, temperature=0, max_tokens=10)).generate(prompts, seeds)
    assert any(len(set(str(text).split())) < len(str(text).split()) for text in plain)
    for penalty in ("presence_penalty", "frequency_penalty"):
        varied = build_llm(config(folder, temperature=0, max_tokens=10, **{penalty: 100.0}))
        for text in map(str, varied.generate(prompts, seeds)):
            assert len(set(text.split())) == len(text.split())


def test_a_model_without_a_chat_template_is_one_line(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(SynthClipError, match=r"has no chat template: set llm\.chat to false"):
        build_llm(config(bare, chat=True))
    assert build_llm(config(bare)).continues


@pytest.mark.parametrize("values", [{"dtype": "flote16"}, {"gguf_file": "none.gguf"}, {"device": "gpu7"}])
def test_a_value_that_no_model_is_loaded_with_is_one_line(folder: Path, values: dict[str, object]) -> None:
    with pytest.raises(SynthClipError, match="cannot be loaded") as error:
        build_llm(config(folder, **values))
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="cannot be loaded") as error:
        build_llm(config(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(SynthClipError, match="no such folder"):
        config(tmp_path / "none").inputs()
