"""What servers answer, family by family, from HTTP to the caption or the reason why there is none."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Answer, ScriptedServer

from synthclip.backends import build_llm, llm_openai
from synthclip.recipe.textgen import CaptionsConfig, Template
from synthclip.textgen.answers import listed, without_thinking
from synthclip.textgen.prompts import Prompts, answered

pytest.importorskip("httpx", reason="needs the package httpx")

A = "A dog runs on the beach."
NO_ANSWER, UNFINISHED = "thinking without an answer", "unfinished"
T = 'Okay, a dog. {"x": 1} The user wants\n\none line.'
HARMONY = (
    f"<|channel|>analysis<|message|>{T}<|end|><|start|>assistant<|channel|>final<|message|>{A}<|return|>"
)


def message(content: Any, ended: str = "stop", **fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **fields}, "finish_reason": ended}]}


CAPTION: dict[str, Any] = {
    "plain": message(A),
    "think (DeepSeek, Qwen, GLM)": message(f"<think>\n{T}\n</think>\n\n{A}"),
    "think, empty": message(f"<think>\n\n</think>\n\n{A}"),
    "think, not opened": message(f"{T}\n</think>\n{A}"),
    "think, twice": message(f"<think>{T}</think><think>again</think>{A}"),
    "think, opened again inside": message(f"<think>a <think> b</think> c</think>{A}"),
    "think, after the answer and not closed": message(f"{A}\n<think>Was that right?"),
    "thinking": message(f"<thinking>{T}</thinking>{A}"),
    "thought (Gemini, EXAONE)": message(f"<thought>{T}</thought>{A}"),
    "reasoning (Reka)": message(f"<reasoning>{T}</reasoning>\n{A}"),
    "seed:think (Seed-OSS)": message(f"<seed:think>{T}</seed:think>{A}"),
    "longcat_think": message(f"<longcat_think>{T}</longcat_think>{A}"),
    "upper case": message(f"<THINK>{T}</THINK>{A}"),
    "THINK (Magistral)": message(f"[THINK]{T}[/THINK]{A}"),
    "Kimi": message(f"◁think▷{T}◁/think▷{A}"),
    "Cohere": message(f"<|START_THINKING|>{T}<|END_THINKING|><|START_RESPONSE|>{A}<|END_RESPONSE|>"),
    "OpenThinker": message(
        f"<|begin_of_thought|>{T}<|end_of_thought|><|begin_of_solution|>{A}<|end_of_solution|>"
    ),
    "Apertus": message(f"<|inner_prefix|>{T}<|inner_suffix|>{A}"),
    "Solar": message(f"<|think|>{T}<|end|><|begin|>assistant<|content|>{A}<|end|>"),
    "Gemma": message(f"<|channel>thought\n{T}<channel|>{A}<turn|>"),
    "MedGemma": message(f"<unused94>thought\n{T}<unused95>{A}"),
    "Granite": message(f"Here is my thought process:\n{T}\nHere is my response:\n{A}"),
    "harmony (gpt-oss)": message(HARMONY),
    "harmony, JSON in its last channel": message(
        f"<|channel|>analysis<|message|>{T}<|end|><|start|>assistant<|channel|>final "
        f'<|constrain|>json<|message|>{{"caption": "{A}"}}<|return|>'
    ),
    "a turn that is opened again (HyperCLOVA)": message(
        f"/think\n{T}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>"
    ),
    "Apriel": message(
        f"Here are my reasoning steps:\n{T}\n[BEGIN FINAL RESPONSE]\n{A}\n[END FINAL RESPONSE]\n<|end|>"
    ),
    "Open WebUI": message(f'<details type="reasoning" done="true">\n> {T}\n</details>\n{A}'),
    "harmony without its special tokens": message(f"analysis{T}assistantfinal{A}"),
    "answer in a frame (Hunyuan, R1)": message(f"<think>{T}</think>\n<answer>\n{A}\n</answer>"),
    "reasoning_content": message(A, reasoning_content=T),
    "reasoning": message(A, reasoning=T, reasoning_details=[{"type": "reasoning.text", "text": T}]),
    "parts (Mistral)": message(
        [{"type": "thinking", "thinking": [{"type": "text", "text": T}]}, {"type": "text", "text": A}]
    ),
    "parts (Anthropic)": message([{"type": "thinking", "thinking": T}, {"type": "text", "text": A}]),
    "parts, reasoning with a text": message([{"type": "reasoning", "text": T}, {"type": "text", "text": A}]),
    "parts (Gemini)": message([{"text": T, "thought": True}, {"text": A}]),
    "end tokens": message(f"{A}<|im_end|>\n<|endoftext|>"),
    "end tokens of others": message(f"<s>{A}<seed:eos></s>"),
    "JSON": message(f'{{"caption": "{A}"}}'),
    "JSON after thinking": message(f'<think>{T}</think>{{"caption": "{A}", "words": 6}}'),
    "JSON in a block of code": message(f'```json\n{{"text": "{A}"}}\n```'),
    "JSON in a block after a preamble": message(f'Here it is:\n```json\n{{"text": "{A}"}}\n```\nEnjoy!'),
    "JSON in a block that is not closed": message(f'```json\n{{"text": "{A}"}}'),
    "JSON after a preamble": message(f'Here you go: {{"caption": "{A}"}}'),
    "JSON, then a remark": message(f'{{"caption": "{A}"}}\n\nShall I write another?'),
    "JSON inside JSON": message(json.dumps(json.dumps({"caption": A}))),
    "JSON list of one": message(f'["{A}"]'),
    "JSON string": message(f'"{A}"'),
    "block of code": message(f"```\n{A}\n```"),
    "final answer": message(f"Final answer: {A}"),
    "Markdown": message(f"**Image caption:** *{A}*"),
    "a heading": message(f"## {A}"),
    "quotation marks": message(f"'{A}'"),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "thinking not closed": (message(f"<think>{T}"), NO_ANSWER),
    "thinking cut short": (message(f"<think>{T}", "length"), UNFINISHED),
    "harmony without an answer": (message(f"<|channel|>analysis<|message|>{T}<|end|>"), NO_ANSWER),
    "bare harmony cut short": (message("analysisWe need one sentence", "length"), UNFINISHED),
    "an answer in the thinking's field": (message(None, reasoning_content=A), NO_ANSWER),
    "cut in the field of thinking": (message(None, "length", reasoning_content=T), UNFINISHED),
    "only parts of thinking": (message([{"type": "thinking", "thinking": A}]), "empty"),
    "cut": (message("A dog runs on the", "length"), UNFINISHED),
    "cut where a sentence ends": (message(A, "length"), UNFINISHED),
    "cut, Anthropic's word": (message("A dog runs on the", "max_tokens"), UNFINISHED),
    "cut, Mistral's word": (message("A dog runs on the", "model_length"), UNFINISHED),
    "cut, Google's word": (message("A dog runs on the", "MAX_TOKENS"), UNFINISHED),
    "cut, Zhipu's word": (message("A dog runs on the", "model_context_window_exceeded"), UNFINISHED),
    "filtered, Zhipu's word": (message("A dog runs on the", "sensitive"), "content filter"),
    "filtered, Google's word": (message("", "content_filter: PROHIBITED_CONTENT"), "content filter"),
    "Apriel without an answer": (message(f"Here are my reasoning steps:\n{T}"), NO_ANSWER),
    "JSON list of several": (message(f'["{A}", "{A}"]'), "JSON"),
    "JSON of no standard": (message("Here: {'caption': 'A dog runs on the beach.'}"), "markup"),
    "LaTeX": (message("\\boxed{A dog runs on the beach.}"), "markup"),
    "another family's token": (message(f"[INST]{A}"), "markup"),
    "JSON of other things": (message('{"concept": "dog", "words": 3}'), "JSON"),
    "broken JSON": (message(f'{{"caption": "{A}'), "JSON"),
    "nested deeply": (message("[" * 5000), "JSON"),
    "refusal": (message(None, refusal="No."), "refusal"),
    "refusal in a part": (message([{"type": "refusal", "refusal": "No."}]), "refusal"),
}


def ask(
    url: str, count: int, template: str = "{{ concept }}", per_request: int = 1, **values: Any
) -> list[list[tuple[str, str | None]]]:
    """What comes of each of `count` requests."""
    config = llm_openai.Config.model_validate(
        {"backend": "openai", "model": "m", "base_url": url, "concurrency": 1, **values}
    )
    captions = CaptionsConfig(templates=(Template(name="t", text=template),), per_request=per_request)
    prompts = Prompts(captions, 0)
    return list(answered(build_llm(config), [prompts.draw("dog", n) for n in range(count)], captions))


def test_the_answer_is_the_caption_and_thinking_never_is() -> None:
    with ScriptedServer(*map(Answer, CAPTION.values())) as server:
        found = dict(zip(CAPTION, ask(server.url, len(CAPTION)), strict=True))
    assert found == {kind: [(A, None)] for kind in CAPTION}


def test_what_is_no_answer_is_refused_for_what_it_is() -> None:
    with ScriptedServer(*(Answer(body) for body, _ in REFUSED.values())) as server:
        found = dict(zip(REFUSED, ask(server.url, len(REFUSED)), strict=True))
    assert {kind: reason for kind, [(_, reason)] in found.items()} == {
        kind: reason for kind, (_, reason) in REFUSED.items()
    }


B, C = "A dog sleeps in the snow.", "A small dog and a ball."
MISSING = "missing from the list"
LISTS: dict[str, tuple[Any, list[str | None]]] = {
    "JSON list": (message(f'["{A}", "{B}", "{C}"]'), [None, None, None]),
    "JSON object": (message(f'{{"captions": ["{A}",\n "{B}", "{C}"]}}'), [None, None, None]),
    "JSON objects": (message(f'[{{"caption": "{A}"}}, {{"text": "{B}"}}, ["{C}"]]'), [None, None, None]),
    "after thinking, in a block": (
        message(f'<think>{T}</think>\n```json\n["{A}", "{B}", "{C}"]\n```'),
        [None, None, None],
    ),
    "after a preamble": (message(f'Here you are: ["{A}", "{B}", "{C}"] Enjoy!'), [None, None, None]),
    "after a preamble with a bracket": (
        message(f'Three [as asked]: ["{A}", "{B}", "{C}"]'),
        [None, None, None],
    ),
    "JSON inside JSON": (message(json.dumps(json.dumps([A, B, C]))), [None, None, None]),
    "JSON of numbered texts": (message(json.dumps({"1": A, "2": B, "3": C})), [None, None, None]),
    "JSON on each line": (
        message("\n".join(json.dumps({"caption": text}) for text in (A, B, C))),
        [None, None, None],
    ),
    "quoted lines": (message(f'"{A}",\n"{B}",\n"{C}"'), [None, None, None]),
    "numbered lines": (message(f"Here are 3 captions:\n\n1. {A}\n2. {B}\n3. {C}"), [None, None, None]),
    "cut short": (message(f'["{A}", "{B}", "A small', "length"), [None, None, UNFINISHED]),
    "cut in the first": (message('["A dog', "length"), [UNFINISHED] * 3),
    "not closed": (message(f'["{A}", "{B}"'), [None, None, MISSING]),
    "broken in the middle": (message(f'["{A}", "{B}" and "{C}"]'), [None, None, MISSING]),
    "a number in it": (message(f'["{A}", 7, "{C}"]'), [None, "JSON", None]),
    "one that is no caption": (
        message(f'["{A}", "A cat sleeps here.", "{C}"]'),
        [None, "concept missing", None],
    ),
    "too many": (message(f'["{A}", "{B}", "{C}", "{A}"]'), [None, None, None, "more than asked for"]),
    "empty": (message("[]"), [MISSING] * 3),
    "prose": (message("I cannot do that, as I am an AI."), ["refusal", MISSING, MISSING]),
    "filtered": (message("", "content_filter"), ["content filter"] * 3),
    "only thinking": (message(f"<think>{T}"), [NO_ANSWER] * 3),
}


def test_a_malformed_list_gives_what_is_whole_and_the_rest_its_reason() -> None:
    with ScriptedServer(*(Answer(body) for body, _ in LISTS.values())) as server:
        found = ask(server.url, len(LISTS), per_request=3)
    kept = [text for judged in found for text, reason in judged if reason is None]
    assert set(kept) == {A, B, C}
    assert {kind: [reason for _, reason in judged] for kind, judged in zip(LISTS, found, strict=True)} == {
        kind: reasons for kind, (_, reasons) in LISTS.items()
    }


GUIDES: dict[str, Callable[[Any], Any]] = {
    "response_format": lambda sent: sent["json_schema"]["schema"]["properties"]["captions"],
    "structured_outputs": lambda sent: sent["json"],
    "guided_json": lambda sent: sent,
    "json_schema": lambda sent: sent,
}


def test_a_list_is_asked_for_in_words_and_by_a_schema() -> None:
    with ScriptedServer(Answer(message(f'["{A}", "{B}", "{C}"]'))) as server:
        for guide, schema in GUIDES.items():
            ask(server.url, 1, per_request=3, guide=guide, max_tokens=50)
            asked = server.requests[-1]
            assert "JSON list of 3 strings" in asked["messages"][0]["content"]
            listed = schema(asked[guide])
            assert (listed["type"], listed["minItems"], listed["maxItems"]) == ("array", 3, 3)
            assert asked["max_tokens"] == 150
        ask(server.url, 1, per_request=3, guide=None)
        assert not GUIDES.keys() & server.requests[-1].keys()
        ask(server.url, 1, "{{ count }} captions of {{ concept }}", per_request=3)
        assert server.requests[-1]["messages"][0]["content"] == "3 captions of dog"
        ask(server.url, 1)
        assert not GUIDES.keys() & server.requests[-1].keys()


@given(st.lists(st.text(max_size=8), max_size=4), st.integers(0, 40))
def test_a_list_cut_anywhere_gives_its_first_items(texts: list[str], length: int) -> None:
    whole = json.dumps(texts)
    assert listed(whole) == texts
    cut = listed("[" + whole[1:][:length])
    assert cut == texts[: len(cut)]
    assert listed(r'["\ud800 and \ud83d\ude00"]') == ["? and 😀"], "half a character is no text"


def test_any_field_can_be_left_out_and_any_other_added() -> None:
    with ScriptedServer(Answer(message(A))) as server:
        ask(server.url, 1)
        plain = server.requests[-1]
        ask(server.url, 1, max_completion_tokens=500, temperature=None, top_p=None, seeded=False)
        few = server.requests[-1]
        extra = {
            "chat_template_kwargs": {"enable_thinking": False},
            "seed": None,
            "max_tokens": None,
            "presence_penalty": 0.5,
        }
        ask(server.url, 1, extra_body=extra)
        more = server.requests[-1]
    sent = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed"}
    assert sent <= plain.keys()
    assert sent & few.keys() == {"presence_penalty", "frequency_penalty"}
    assert few["max_completion_tokens"] == 500
    assert sent & more.keys() == sent - {"seed", "max_tokens"}
    assert more["chat_template_kwargs"] == {"enable_thinking": False}
    assert more["presence_penalty"] == 0.5
    with pytest.raises(ValueError, match="'messages' is not a field to set here"):
        ask("http://localhost/v1", 1, extra_body={"messages": []})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("A dog." + "<|im_end|>\n" * 100_000, 6),
        ("<|channel|>" + " " * 100_000, 0),
        ("<think>" * 20_000, 0),
        ("```" + "\n" * 100_000, 3),
        ("x" + " " * 100_000 + "x", 100_002),
    ],
)
def test_a_long_answer_takes_no_long_time(text: str, left: int) -> None:
    assert len(without_thinking(text)) == left
