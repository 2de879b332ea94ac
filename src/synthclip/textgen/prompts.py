"""What the language model is asked, and what becomes of its answer: a caption, or a reason to refuse it."""

import inspect
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip import keys
from synthclip.backends import LLM, Refused, Unfinished
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.textgen import CaptionsConfig, Template
from synthclip.textgen.answers import listed, unwrapped, without_thinking
from synthclip.textgen.concepts import printable, unspaced

_MAX_CHARS = 2_000  # beyond this nothing is a caption, and nothing below is worth running
_QUOTES = str.maketrans("", "", '"“”„«»*')  # and Markdown's emphasis
_WRAPPED = re.compile(r"([_`'])((?:(?!\1).)+)\1", re.DOTALL)
_MARKUP = re.compile(r"</?[a-zA-Z!][^>]*>|&[a-z]+;|\]\(|https?://|```|<\||[{}]|\[/?[A-Z]{3,}\]")
_LEAD = re.compile(
    r"^(?:(?:\d{1,2}[.)]|[-•>]|#{1,6})\s+"
    r"|(?:(?:sure|certainly|of course|okay|ok)\b[^:\n]{0,80}|here(?:'s| is| are)\b[^:\n]{0,80}"
    r"|(?:(?:image|photo|picture) )?(?:caption|description|prompt)|photo|image|picture"
    r"|assistant|(?:final )?(?:answer|response))\s*:\s*)+",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:cannot|can't|can not|apologi[sz]e)"
    r"|as an? (?:AI|language model))\b",
    re.IGNORECASE,
)
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=\S)")
_ASK_FOR_LIST = (
    "Give {0} such answers, each for another picture, as a JSON list of {0} strings and nothing else."
)
_NAMES_COUNT = re.compile(r"\{[{%][^}]*\bcount\b")
_MIN_PROBABILITY = 0.05
"""A caption is refused where its language is less probable than this; five words seldom say more."""


@dataclass(frozen=True)
class Prompt:
    """One question to the model."""

    concept: str
    text: str
    prefill: str
    """How the caption begins, for a model that goes on from it."""
    template: Template
    seed: int
    count: int = 1
    """How many captions it asks for."""

    @property
    def prefilled(self) -> str:
        """The prompt with the caption's beginning at its end."""
        gap = " " if self.prefill and not self.text[-1:].isspace() else ""
        return f"{self.text}{gap}{self.prefill}"

    def sent(self, continues: bool) -> str:
        """The prompt for a model that `continues` a text, or for a chat model."""
        if continues:
            return self.prefilled
        says_count = self.count == 1 or _NAMES_COUNT.search(self.template.text)
        return self.text if says_count else f"{self.text}\n{_ASK_FOR_LIST.format(self.count)}"


class Prompts:
    """The recipe's templates, compiled. All that is drawn follows from concept, attempt and seed."""

    def __init__(self, config: CaptionsConfig, seed: int) -> None:
        self._templates = config.templates
        self._compiled = [template.compile(config.axes) for template in config.templates]
        weights = np.array([template.weight for template in config.templates])
        self._edges: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        self._axes = config.axes
        self._per_request = config.per_request
        self._seed = seed

    def draw(self, concept: str, attempt: int, count: int | None = None) -> Prompt:
        """The prompt of one attempt at a concept, or of `count` that begin with this one: the recipe's
        `per_request` unless given."""
        count = self._per_request if count is None else count
        chosen = int(
            np.searchsorted(self._edges[:-1], self._share(concept, "template", attempt), side="right")
        )
        drawn = {
            axis: values[int(self._share(concept, f"axis {axis}", attempt) * len(values))]
            for axis, values in self._axes.items()
        }
        try:
            values = {"count": count, **drawn, "concept": concept}
            text, prefill = (part.render(**values) for part in self._compiled[chosen])
        except Exception as error:  # whatever the template computes
            name = self._templates[chosen].name
            raise SynthClipError(
                f"captions.templates: {name!r} cannot be rendered for {concept!r}: {error}"
            ) from None
        prefill = " ".join(prefill.split())
        seed = keys.seed_of(concept, stream="caption", seed=self._seed, index=attempt)
        return Prompt(concept, text, prefill, self._templates[chosen], seed, count)

    def _share(self, concept: str, stream: str, attempt: int) -> float:
        """A number in [0, 1)."""
        return float(keys.uniform(keys.text_id(concept), stream=stream, seed=self._seed, index=attempt))


Judged = tuple[str, str | None]
"""(caption, None), or (what was said, why it is refused)."""


def answered(llm: LLM, prompts: Sequence[Prompt], config: CaptionsConfig) -> Iterator[list[Judged]]:
    """For each of a batch as many as it asks for, or more where the model said more."""
    texts, seeds, counts = requests(prompts, llm.continues)
    takes_counts = config.per_request > 1 and "counts" in inspect.signature(llm.generate).parameters
    said_all = llm.generate(texts, seeds, counts) if takes_counts else llm.generate(texts, seeds)
    for prompt, answer in zip(prompts, said_all, strict=True):
        judged = judge_answer(answer, prompt, config, llm.continues)
        missing = judged[-1][1] or "missing from the list"
        yield judged + [("", missing)] * (prompt.count - len(judged))


def judge_answer(
    answer: str | Refused, prompt: Prompt, config: CaptionsConfig, continues: bool = False
) -> list[Judged]:
    """As `judge`, of what a language model gives; one that `continues` leaves the prefill out."""
    if isinstance(answer, Refused):
        return [(answer.text, answer.reason)]
    said = (prompt.prefill if continues else "") + answer.encode("utf-8", "replace").decode()
    return judge(said, prompt, config, not isinstance(answer, Unfinished))


def requests(prompts: Sequence[Prompt], continues: bool) -> tuple[list[str], list[int], list[int]]:
    """The texts, seeds and counts of prompts, as a language model takes them."""
    texts = [prompt.sent(continues) for prompt in prompts]
    return texts, [prompt.seed for prompt in prompts], [prompt.count for prompt in prompts]


def judge(said: str, prompt: Prompt, config: CaptionsConfig, finished: bool = True) -> list[Judged]:
    """What an answer holds; the last says why there is no more, where there is less than was asked for."""
    answer = without_thinking(said)
    concept, template = prompt.concept, prompt.template
    partly = template.sentences is not None or prompt.count > 1
    if not finished and not (partly and answer):
        return [(said, "unfinished")]
    if said.strip() and not answer:
        return [(said, "thinking without an answer")]
    if prompt.count == 1:
        text = unwrapped(answer)
        return [(answer, "JSON") if text is None else clean(text, concept, config, template, finished)]
    texts = listed(answer)
    judged = [("", "JSON") if text is None else clean(text, concept, config, template) for text in texts]
    for at in range(prompt.count, len(judged)):
        judged[at] = judged[at][0], "more than asked for"
    if len(judged) < prompt.count:
        judged.append((answer, "missing from the list" if finished else "unfinished"))
    return judged


def clean(
    raw: str, concept: str, config: CaptionsConfig, template: Template, finished: bool = True
) -> Judged:
    """(caption, None), or (what is left of the text, reason)."""
    if len(raw) > _MAX_CHARS:
        return raw, "too long"
    text = _LEAD.sub("", unicodedata.normalize("NFC", raw).translate(_QUOTES).strip()).strip()
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[2].strip()
    if template.sentences is not None:
        text = _first_sentences(text, template.sentences)
    if not text:
        return text, "empty"
    if not finished and text[-1] not in ".!?":
        return text, "unfinished"
    if "\n" in text or "\r" in text:
        return text, "several lines"
    words = text.split()
    text = " ".join(words)
    if "�" in text or not printable(text):
        return text, "control characters"
    if _REFUSAL.search(text):
        return text, "refusal"
    if _MARKUP.search(text):
        return text, "markup"
    if unspaced(text):
        return text, "no spaces between words"
    if len(words) < (template.min_words or config.min_words):
        return text, "too short"
    if len(words) > (template.max_words or config.max_words):
        return text, "too long"
    if config.must_contain_concept and not contains(text, concept):
        return text, "concept missing"
    if config.language is not None and not _may_be(text, config.language):
        return text, "language"
    return text, None


def _first_sentences(text: str, count: int) -> str:
    """The first complete sentences of all lines, each ended by a mark, with a space between two.

    A last one that the model did not finish is left out, unless there is no other.
    """
    lines = [_LEAD.sub("", line.strip()).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    ended = [line if line[-1] in ".!?" else f"{line}." for line in lines[:-1]]
    sentences = _SENTENCE_ENDS.split(" ".join([*ended, *lines[-1:]]))
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


def check_language(language: str) -> None:
    """Raise SynthClipError where this language cannot be recognised."""
    if language not in _identifier().labels:
        raise SynthClipError(f"captions.language {language!r}: unknown: give an ISO 639 code such as 'en'")


def _may_be(text: str, language: str) -> bool:
    """Whether the text can be in the language, an ISO 639 code."""
    return float(dict(_identifier().rank(text)).get(language, 0.0)) >= _MIN_PROBABILITY


@cache
def _identifier() -> Any:
    """py3langid: a naive Bayes model of byte n-grams, 4 MB, in its wheel."""
    with needs_extra("language", "captions.language"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
