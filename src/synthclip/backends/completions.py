"""What an answer in the form of OpenAI's API says: servers answer so, and llama.cpp inside this process."""

import re
from collections.abc import Iterator
from typing import Any

from synthclip.backends import Refused, Tokens, Unfinished
from synthclip.backends.faults import how_ended

_TEXT_PARTS = ("text", "output_text")
_CUT = re.compile(r"length|max|limit|window")
"""In the reason for the end of a text, which every service words in its own way."""
_FILTERED = re.compile(r"filter|safety|sensitive|recitation|prohibited|blocklist|spii|refusal")
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")


def said(answer: dict[str, Any], chat: bool) -> str | Refused:
    """The text of the first choice of a `chat` or of a plain completion; empty where there is none.

    Fields and parts that hold the model's thinking are left out; marks of thinking inside the text are not.
    Raises ValueError, which says where the answer is not of OpenAI's form.
    """
    choice = _first_choice(answer)
    message: Any = (choice.get("message") or {}) if chat else choice
    if not isinstance(message, dict):
        raise ValueError("a message is no object")
    content = message.get("content" if chat else "text")
    text = "".join(_texts(content))
    ended = how_ended(choice)
    if _FILTERED.search(ended):
        return Refused("content filter", text)
    if _CUT.search(ended):
        return Unfinished(text)
    if text:
        return text
    refusals = [message, *(part for part in content or () if isinstance(part, dict))]
    refusal = next((one["refusal"] for one in refusals if one.get("refusal")), None)
    if isinstance(refusal, str):
        return Refused("refusal", refusal)
    if thoughts := [message[name] for name in _THOUGHTS if message.get(name)]:
        return Refused("thinking without an answer", thoughts[0] if isinstance(thoughts[0], str) else "")
    return ""


def count(answer: dict[str, Any], tokens: Tokens) -> None:
    """Add the tokens that an answer says it took."""
    usage = answer.get("usage")
    if isinstance(usage, dict):
        read, written = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        tokens.read += read if isinstance(read, int) else 0
        tokens.written += written if isinstance(written, int) else 0


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The first choice, empty where the list is. Raises ValueError as `said` does."""
    choices = answer.get("choices", answer)
    if choices is answer or not isinstance(choices, list | None):
        raise ValueError("no list of choices")
    choice = choices[0] if choices else {}
    if not isinstance(choice, dict):
        raise ValueError("a choice is no object")
    return choice


def _texts(content: Any) -> Iterator[str]:
    """A text, or the texts of a list of parts, without those of thinking and of no text."""
    if content is None or isinstance(content, str):
        yield content or ""
        return
    if not isinstance(content, list):
        raise ValueError(f"a text is of type {type(content).__name__}")
    for part in content:
        text = part
        if isinstance(part, dict):
            is_said = part.get("type", "text") in _TEXT_PARTS and not part.get("thought")
            text = part.get("text", "") if is_said else ""
        if not isinstance(text, str):
            raise ValueError(f"a part of a text is of type {type(text).__name__}")
        yield text
