"""The answer in what a language model said: without its thinking, out of its JSON."""

import json
import re
from typing import Any

_NAMES = "think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|inner_monologue"
_BEGINS = (
    rf"<\|?(?:\w+[:_])?(?:{_NAMES})\b[^<>]*>",  # most families; <seed:think>, <|think|>
    r"\[(?:THINK|THINKING|REASONING)\]",  # Mistral
    r"◁think▷",  # Kimi
    r"<\|(?:START_THINKING|begin_of_thought|inner_prefix)\|>",  # Cohere, OpenThinker, Apertus
    r"<\|channel>\w*",  # Gemma
    r"<unused94>",  # MedGemma
)
_ENDS = (
    rf"<\|?/(?:\w+[:_])?(?:{_NAMES})\s*\|?>",
    r"\[/(?:THINK|THINKING|REASONING)\]",
    r"◁/think▷",
    r"<\|(?:END_THINKING|end_of_thought|inner_suffix|content)\|>",
    r"<channel\|>",
    r"<unused95>",
)
_MARKS = re.compile(rf"(?P<end>{'|'.join(_ENDS)})|(?:{'|'.join(_BEGINS)})", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>([^<]*)<\|message\|>(.*?)(?=<\||\Z)", re.DOTALL)
"""OpenAI's harmony format: (channel, text) of each message; the answer is in `final`."""
_BARE_CHANNELS = re.compile(r"\s*(?:analysis|commentary).*assistantfinal", re.DOTALL)
"""The same where a server drops the special tokens and leaves the names between them."""
_BARE_THINKING = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z])")
_GRANITE = re.compile(r"\s*here is my thought process:.*?here is my response:", re.IGNORECASE | re.DOTALL)
_FRAMES = re.compile(
    r"<(?P<name>answer|final_answer|response|output|caption)>(.*?)(?:</(?P=name)>|\Z)"
    r"|<\|(?:START_RESPONSE|begin_of_solution|begin_of_box)\|>(.*?)(?=<\||\Z)",
    re.IGNORECASE | re.DOTALL,
)
_LAST_TOKEN = re.compile(r"(?:<\|\w+\|>|</s>|<eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>)\Z")
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
        text = frame[2] or frame[3] or ""
    end = len(text.rstrip())
    while last := _LAST_TOKEN.search(text, max(0, end - _MAX_TOKEN_CHARS), end):
        end = last.start()
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end].lstrip()


def unwrapped(text: str) -> str | None:
    """The one caption in an answer that is JSON or a block of code; another text as it is.

    None where it is JSON that holds no caption, or several.
    """
    text = _unfenced(text)
    if text[:1] not in ("{", "[", '"'):
        return text
    try:
        return _caption(json.loads(text))
    except (ValueError, RecursionError):
        return None if re.match(r'\{|\[\s*[\[{"]', text) else text


def listed(text: str) -> list[str | None]:
    """The captions in an answer that is a list: JSON, complete or not, or a line for each.

    None stands for an item that is no caption. What a list that is cut short holds of its last item is left
    out.
    """
    text = _unfenced(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if "[" in text:
            return _items(text)
        return [line for line in map(str.strip, text.splitlines()) if line and line[-1] != ":"]
    if isinstance(value, dict):
        value = next((inner for inner in value.values() if isinstance(inner, list)), [value])
    return [_caption(item) for item in (value if isinstance(value, list) else [value])]


def _items(text: str) -> list[str | None]:
    """Those of the first list in the text that are complete."""
    decoder, items = json.JSONDecoder(), list[str | None]()
    at = text.index("[") + 1
    while begun := _GAP.match(text, at):
        try:
            value, at = decoder.raw_decode(text, begun.end())
        except (ValueError, RecursionError):
            break
        items.append(_caption(value))
    return items


def _unfenced(text: str) -> str:
    """What stands in a block of code, where that is all."""
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    language, newline, inside = text[3:-3].partition("\n")
    return (inside if newline else language).strip()


def _caption(value: Any) -> str | None:
    """The caption that a JSON value is, or holds alone."""
    if isinstance(value, list):
        return _caption(value[0]) if len(value) == 1 else None
    if isinstance(value, dict):
        named = [value[key] for key in _CAPTION_KEYS if key in value]
        return _caption((named or list(value.values()))[0]) if named or len(value) == 1 else None
    # JSON can spell half a character, which no text may hold.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None
