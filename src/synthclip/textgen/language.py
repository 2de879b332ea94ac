"""Which language a caption is in, by py3langid: a naive Bayes model of byte n-grams, 4 MB, in its wheel."""

from functools import cache
from typing import Any

from synthclip.errors import SynthClipError, needs_extra

_LEAST = 0.05
"""A caption is refused where its language is less probable than this; five words seldom tell more."""


def check(language: str) -> None:
    """Raise SynthClipError where nothing can tell this language."""
    if language not in _identifier().labels:
        raise SynthClipError(f"captions.language {language!r}: unknown: give an ISO 639 code such as 'en'")


def may_be(text: str, language: str) -> bool:
    """Whether the text can be in the language, an ISO 639 code."""
    return float(dict(_identifier().rank(text)).get(language, 0.0)) >= _LEAST


@cache
def _identifier() -> Any:
    with needs_extra("language", "captions.language"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
