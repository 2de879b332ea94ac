"""The answer in what a language model said: without its thinking, out of its JSON."""

import json
import re
from typing import Any

_NAMES = (
    "think|thinking|thoughts?|reason|reasoning|rationale|reflection|analysis|scratchpad"
    "|inner_monologue|details"
)
_BEGINS = (
    rf"<\|?(?:\w+[:_])?(?:{_NAMES})\b[^<>]*>",  # most families; <seed:think>, <|think|>
    r"\[(?:THINK|THINKING|REASONING)\]",  # Mistral
    r"◁think▷",  # Kimi
    r"<\|(?:START_THINKING|begin_of_thought|inner_prefix)\|>",  # Cohere, OpenThinker, Apertus
    r"<\|channel>\w*",  # Gemma
    r"<(?:unused|ctrl)94>",  # MedGemma, Gemini
)
_ENDS = (
    rf"<\|?/(?:\w+[:_])?(?:{_NAMES})\s*\|?>",
    r"\[/(?:THINK|THINKING|REASONING)\]",
    r"◁/think▷",
    r"<\|(?:END_THINKING|end_of_thought|inner_suffix|content)\|>",
    r"<channel\|>",
    r"<(?:unused|ctrl)95>",
)
_MARKS = re.compile(rf"(?P<end>{'|'.join(_ENDS)})|(?:{'|'.join(_BEGINS)})", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)(?=<\||\Z)", re.DOTALL)
"""OpenAI's harmony format: (channel, text) of each message; the answer is in `final`."""
_BARE_CHANNELS = re.compile(r"\s*(?:analysis|commentary).*assistantfinal", re.DOTALL)
"""The same where a server drops the special tokens and leaves the names between them."""
_BARE_THINKING = re.compile(
    r"\s*(?:(?:analysis|commentary)(?=[A-Z])"
    r"|Here are my reasoning steps:(?!.*\[BEGIN FINAL RESPONSE\]))",  # Apriel
    re.DOTALL,
)
_GRANITE = re.compile(r"\s*here is my thought process:.*?here is my response:", re.IGNORECASE | re.DOTALL)
_FRAMES = re.compile(
    r"<(?P<name>answer|final_answer|final|response|output|caption)>(.*?)(?:</(?P=name)>|\Z)"
    r"|<\|(?:START_RESPONSE|begin_of_solution|begin_of_box)\|>(.*?)(?=<\||\Z)"
    r"|<\|(?:im_start|start)\|>assistant\s*(?:<\|message\|>)?(.*?)(?=<\||\Z)"
    r"|\[BEGIN FINAL RESPONSE\](.*?)(?:\[END FINAL RESPONSE\]|\Z)",  # Apriel
    re.IGNORECASE | re.DOTALL,
)
_FIRST_TOKEN = re.compile(r"(?:\s|<s>|<bos>|<\|begin_of_text\|>|[\ufeff\u200b])*")
_LAST_TOKEN = re.compile(
    r"(?:<\|\w+\|>|</\w*s>|<(?:\w+:)?eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>"
    r"|\[EOS\]|\[/INST\]|\[e~\[)\Z"
)
_FENCED = re.compile(r"(?:```|~~~)(?:[ \t]*\w*[ \t]*\r?\n)?(.*?)(?:```|~~~|\Z)", re.DOTALL)
_JSON = re.compile(r"[{\[]\s*[\"{\[]")
_LIST = re.compile(r"\A\[|\[(?=\s*[\"{])")
_GAP = re.compile(r"[\s,]*(?=[\"{])")
"""Between two items of a JSON list."""
_MAX_TOKEN_CHARS = 40
_CAPTION_KEYS = ("caption", "text", "description", "answer", "sentence", "response", "output")


def without_thinking(said: str) -> str:
    """What stands outside the marks of thinking, which every family of models writes in its own way.

    Thinking that was not opened, as where the prompt opens it, ends at its mark; thinking that was not
    closed takes all that follows.
    """
    if channels := _CHANNEL.findall(said):
        said = next((text for name, text in reversed(channels) if name.split()[:1] == ["final"]), "")
    elif bare := _BARE_CHANNELS.match(said) or _GRANITE.match(said):
        said = said[bare.end() :]
    elif _BARE_THINKING.match(said):
        return ""
    kept: list[str] = []
    at, thinking = 0, False
    for mark in _MARKS.finditer(said):
        if mark["end"] and not thinking:
            kept.clear()
        elif not thinking:
            kept.append(said[at : mark.start()])
        at, thinking = mark.end(), not mark["end"]
    text = "".join(kept if thinking else [*kept, said[at:]])
    for frame in _FRAMES.finditer(text):
        text = frame[frame.lastindex or 0]
    end = len(text.rstrip())
    while last := _LAST_TOKEN.search(text, max(0, end - _MAX_TOKEN_CHARS), end):
        end = last.start()
        while end and text[end - 1].isspace():
            end -= 1
    begin = _FIRST_TOKEN.match(text)
    return text[begin.end() if begin else 0 : end]


def unwrapped(text: str) -> str | None:
    """The one caption in an answer that is, or holds, JSON or a block of code; another text as it is.

    None where it is JSON that holds no caption, or several.
    """
    text = _unfenced(text)
    begun = _JSON.search(text)
    if text[:1] not in ("{", '"') and begun is None:
        return text
    at = 0 if text[:1] in ("{", '"') or begun is None else begun.start()
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None if begun or text[0] == "{" else text
    if text[at] == '"' and end < len(text):
        return text  # a quotation in a sentence
    caption = _caption(value)
    return unwrapped(caption) if caption and _JSON.match(caption) else caption


def listed(text: str) -> list[str | None]:
    """The captions in an answer that is a list: JSON, complete or not, or a line for each.

    None stands for an item that is no caption. What a list that is cut short holds of its last item is left
    out.
    """
    items = json_items(text)
    if items is None:
        lines = (line.strip().removesuffix(",") for line in _unfenced(text).splitlines())
        return [unwrapped(line) for line in lines if line and line[-1] != ":"]
    if len(items) == 1 and isinstance(items[0], dict) and not items[0].keys() & set(_CAPTION_KEYS):
        values = list(items[0].values())
        if all(isinstance(value, str) for value in values):
            items = values  # an object of numbered texts
    return [_caption(item) for item in items]


def json_items(text: str) -> list[Any] | None:
    """The items of an answer that is, or holds, a JSON list; of one that is cut short, the complete ones.
    Another JSON value is its own item. None where the answer holds no JSON."""
    text = _unfenced(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        begun = _LIST.search(text)
        return _items(text, begun.end()) if begun else None
    if isinstance(value, str) and _JSON.match(value):
        return json_items(value)
    if isinstance(value, dict):
        value = next((inner for inner in value.values() if isinstance(inner, list)), [value])
    return value if isinstance(value, list) else [value]


def _items(text: str, at: int) -> list[Any]:
    """Those of the list that begins before `at` that are complete."""
    decoder, items = json.JSONDecoder(), list[Any]()
    while begun := _GAP.match(text, at):
        try:
            value, at = decoder.raw_decode(text, begun.end())
        except (ValueError, RecursionError):
            break
        items.append(value)
    return items


def _unfenced(text: str) -> str:
    """What stands in the one block of code, where that is all or holds JSON."""
    blocks = list(_FENCED.finditer(text))
    if len(blocks) != 1:
        return text
    inside = blocks[0][1].strip()
    return inside if blocks[0].span() == (0, len(text)) or _JSON.match(inside) else text


def _caption(value: Any) -> str | None:
    """The caption that a JSON value is, or holds alone."""
    if isinstance(value, list):
        return _caption(value[0]) if len(value) == 1 else None
    if isinstance(value, dict):
        named = [value[key] for key in _CAPTION_KEYS if key in value]
        return _caption((named or list(value.values()))[0]) if named or len(value) == 1 else None
    # JSON can spell half a character, which no text may hold.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None
