"""From what a language model said to a caption, or to the reason why it is none."""

import re
import unicodedata

from synthclip.textgen.config import CaptionsConfig

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
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # categories of Unicode that no caption needs


def clean(raw: str, concept: str, config: CaptionsConfig) -> tuple[str, str | None]:
    """(caption, None), or (what is left of the text, reason)."""
    if len(raw) > _MOST_CHARS:
        return raw, "too long"
    text = _LEAD.sub("", raw.strip().translate(_QUOTES).strip()).strip()
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
    if words < config.min_words:
        return text, "too short"
    if words > config.max_words:
        return text, "too long"
    if config.must_contain_concept and not contains(text, concept):
        return text, "concept missing"
    return text, None


def contains(text: str, concept: str) -> bool:
    """Whether the text has the concept as whole words, in any case; the last word may be inflected."""
    *first, last = concept.split()
    stem = re.escape(last[:-1] if last[-1:] in ("e", "y") else last)
    last, final = re.escape(last), re.escape(last[-1:])
    inflected = rf"(?:{last}(?:'?s|es|ed|ing|{final}(?:ed|ing))?|{stem}(?:ies|ied|ed|ing))"
    words = r"\s+".join([*map(re.escape, first), inflected])
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None
