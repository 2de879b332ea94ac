"""From what a language model said to a caption, or to the reason why it is none."""

import re
import unicodedata

from synthclip.recipe.textgen import CaptionsConfig, Template
from synthclip.textgen import language

_MOST_CHARS = 2_000  # beyond this nothing is a caption, and nothing below is worth running
_QUOTES = str.maketrans("", "", '"“”„«»')
_MARKUP = re.compile(r"</?[a-zA-Z!][^>]*>|&[a-z]+;|\]\(|https?://|```|\*\*|<\|")
_LEAD = re.compile(
    r"^(?:(?:\d{1,2}[.)]|[-*•])\s+"
    r"|(?:(?:sure|certainly|of course|okay|ok)\b[^:\n]{0,80}|here(?:'s| is| are)\b[^:\n]{0,80}"
    r"|(?:image |photo |picture )?caption)\s*:\s*)+",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:cannot|can't|can not|apologi[sz]e)"
    r"|as an? (?:AI|language model))\b",
    re.IGNORECASE,
)
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=\S)")
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # categories of Unicode that no caption needs


def clean(raw: str, concept: str, config: CaptionsConfig, template: Template) -> tuple[str, str | None]:
    """(caption, None), or (what is left of the text, reason)."""
    if len(raw) > _MOST_CHARS:
        return raw, "too long"
    text = _LEAD.sub("", raw.strip().translate(_QUOTES).strip()).strip()
    if template.sentences is not None:
        text = _first_sentences(text, template.sentences)
    if not text:
        return text, "empty"
    if "\n" in text or "\r" in text:
        return text, "several lines"
    text = " ".join(text.split())
    if "�" in text or any(unicodedata.category(character) in _UNSEEN for character in text):
        return text, "control characters"
    if _REFUSAL.search(text):
        return text, "refusal"
    if _MARKUP.search(text):
        return text, "markup"
    words = len(text.split())
    if words < (template.min_words or config.min_words):
        return text, "too short"
    if words > (template.max_words or config.max_words):
        return text, "too long"
    if config.must_contain_concept and not contains(text, concept):
        return text, "concept missing"
    if config.language is not None and not language.may_be(text, config.language):
        return text, "language"
    return text, None


def _first_sentences(text: str, count: int) -> str:
    """The first whole sentences of all lines, each ended by a mark and a space between two.

    A last one that the model did not finish is left out, unless there is no other.
    """
    lines = [_LEAD.sub("", line.strip()).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    whole = [line if line[-1] in ".!?" else f"{line}." for line in lines[:-1]]
    sentences = _SENTENCE_ENDS.split(" ".join([*whole, *lines[-1:]]))
    if len(sentences) > 1 and sentences[-1][-1:] not in (".", "!", "?"):
        sentences.pop()
    return " ".join(sentences[:count])


def contains(text: str, concept: str) -> bool:
    """Whether the text has the concept as whole words, in any case; the last word may be inflected."""
    *first, last = concept.split()
    stem = re.escape(last[:-1] if last[-1:] in ("e", "y") else last)
    last, final = re.escape(last), re.escape(last[-1:])
    inflected = rf"(?:{last}(?:'?s|es|ed|ing|{final}(?:ed|ing))?|{stem}(?:ies|ied|ed|ing))"
    words = r"\s+".join([*map(re.escape, first), inflected])
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None
