"""A vision model looks at paintings: does one show what its caption says, and what does it show?

The judge follows Davidsonian Scene Graphs (arXiv 2310.18235): the caption is taken apart into claims, each is
answered with yes or no, and the score is the share of yes. Here one request does both.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from synthclip import schema
from synthclip.backends import Refused, Sees, Unfinished, build_llm
from synthclip.errors import SynthClipError
from synthclip.imagegen.filters import Verdict
from synthclip.recipe.imagegen import VisionModelConfig
from synthclip.recipe.textgen import CaptionsConfig, Template
from synthclip.samples import OTHER_TEXTS
from synthclip.samples.pictures import encode
from synthclip.textgen.answers import json_items, without_thinking
from synthclip.textgen.prompts import Prompt, judge_answer
from synthclip.textgen.spending import CHARS_PER_TOKEN, TOKENS_PER_WORD

_OTHER = "other"
KINDS = ("object", "count", "colour", "relation", _OTHER)
"""Of claims; each kind that a caption makes has a score of its own, such as `judge_colour`."""
MAX_CLAIMS = 8
_CLAIMS: dict[str, Any] = {
    "title": "claims",
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_CLAIMS,
    "items": {
        "type": "object",
        "properties": {
            "claim": {"type": "string"},
            "kind": {"type": "string", "enum": list(KINDS)},
            "shown": {"type": "boolean"},
        },
        "required": ["claim", "kind", "shown"],
        "additionalProperties": False,
    },
}
JUDGE = f"""\
This picture should show: "{{}}"
Take that text apart into what it claims, at most {MAX_CLAIMS} claims: each object, how many there are, \
their colours, how they stand to each other, and anything else that can be seen (kinds: {", ".join(KINDS)}). \
Look at the picture and say of each claim whether the picture shows it. Answer with a JSON list alone:
[{{{{"claim": "there is a dog", "kind": "object", "shown": true}}}}, ...]"""
RECAPTION = (
    "Write a caption of this picture: one plain sentence of {} to {} words that says what can be seen in it, "
    "its objects, their number, colours and places, and nothing else. Answer with the caption alone."
)
_SHOWN = {"true": True, "yes": True, "false": False, "no": False}
_PROBE_PX = 64
_TOKEN_PX = 28
"""Side of the square that Qwen's vision models (arXiv 2502.13923, section 2.1) read as one token."""
_CLAIMS_EXPECTED, _CLAIM_TOKENS, _CAPTION_TOKENS = 5, 20, 15
Answered = tuple[Verdict, int, str | Refused]
"""A picture's verdict, its seed, and what was answered."""


class Vision:
    """The model of `images.vision`."""

    def __init__(self, config: VisionModelConfig) -> None:
        llm = build_llm(config.llm)
        if not isinstance(llm, Sees):
            raise SynthClipError(f"images.vision.llm: {llm.name} takes no pictures: choose another backend")
        self.llm, self.config = llm, config

    def check(self) -> None:
        """Raise SynthClipError where the model does not answer, or takes no pictures."""
        grey = np.full((_PROBE_PX, _PROBE_PX, 3), 128, np.uint8)
        self.ask(["What colour is this?"], [encode(grey, 95)], [0])

    def ask(
        self,
        prompts: Sequence[str],
        pictures: Sequence[bytes],
        seeds: Sequence[int],
        items: dict[str, Any] | None = None,
    ) -> Sequence[str | Refused]:
        """As `Sees.look`."""
        try:
            return self.llm.look(prompts, pictures, seeds, items) if prompts else []
        except SynthClipError as error:
            raise SynthClipError(f"images.vision: {error}") from None


class Looks:
    """Looks at the pictures of one shard, and counts what comes of it. Several threads may look at once."""

    def __init__(self, vision: Vision, *, train: bool) -> None:
        config = self._config = vision.config
        self._vision = vision
        self.recaption = config.recaption and train
        """Further captions are for training alone."""
        limits = {"min_words": config.min_words, "max_words": config.max_words}
        self._template = Template(name="recaption", text=RECAPTION.format(*limits.values()), **limits)
        self._cleaning = CaptionsConfig(templates=(self._template,), must_contain_concept=False)
        self._pictures = self._recaptioned = 0
        self._scores: list[float] = []
        self._unusable: Counter[str] = Counter()

    @property
    def pictures_at_once(self) -> int:
        return self._vision.llm.pictures_at_once

    def judge(
        self,
        jpegs: Sequence[bytes],
        captions: Sequence[str],
        seeds: Sequence[int],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Add to the verdicts of pictures that are not refused, as a filter does.

        Raises SynthClipError where the service is at fault; an answer that cannot be used refuses nothing.
        """

        def ask(prompt: Callable[[int], str], items: dict[str, Any] | None = None) -> Iterator[Answered]:
            at = [number for number, verdict in enumerate(verdicts) if verdict.reason is None]
            prompts, pictures = [prompt(number) for number in at], [jpegs[number] for number in at]
            own = [seeds[number] for number in at]
            answers = self._vision.ask(prompts, pictures, own, items)
            return zip((verdicts[number] for number in at), own, answers, strict=True)

        if self._config.judge:
            for verdict, _, answer in ask(lambda number: JUDGE.format(captions[number]), _CLAIMS):
                self._score(verdict, answer)
        if self.recaption:
            for verdict, seed, answer in ask(lambda _: self._template.text):
                prompt = Prompt("", self._template.text, "", self._template, seed)
                [(caption, reason)] = judge_answer(answer, prompt, self._cleaning)
                if reason is None:
                    verdict.other_texts = (caption,)
                else:
                    verdict.unusable.append(f"caption: {reason}")

    def _score(self, verdict: Verdict, answer: str | Refused) -> None:
        try:
            verdict.scores |= judge_scores(answer)
        except ValueError as error:
            verdict.unusable.append(f"judge: {error}")
            return
        if verdict.scores["judge_score"] < self._config.min_judge_score:
            verdict.reason = "judge score"

    def count(self, scores: Mapping[str, float], other_texts: Sequence[str], unusable: Sequence[str]) -> None:
        """Count a picture that is kept, by what its `Verdict` held."""
        self._pictures += 1
        self._recaptioned += bool(other_texts)
        self._unusable.update(unusable)
        if "judge_score" in scores:
            self._scores.append(scores["judge_score"])

    def metadata(self, other_texts: Sequence[str]) -> dict[str, Any]:
        """For the JSON of a sample in its tar."""
        # Never an empty list: readers infer the type of what it holds from the first samples.
        return {OTHER_TEXTS: other_texts or ("",)} if self.recaption else {}

    def notes(self, shard: str) -> dict[str, Any]:
        """For the manifest. Raises SynthClipError where too many answers were of no use; a single one may be
        chance."""
        config, bad = self._config, self._unusable.total()
        asked = self._pictures * (config.judge + self.recaption)
        if bad > max(1, config.max_unusable * asked):
            [(reason, count)] = self._unusable.most_common(1)
            raise SynthClipError(
                f"images shard {shard}: {bad} of {asked} answers of images.vision cannot be used, most often "
                f"{reason!r} ({count} times): check images.vision.llm, or raise images.vision.max_unusable"
            )
        found: dict[str, Any] = {"model": self._vision.llm.name, "unusable": dict(self._unusable)}
        if config.judge:
            mean = round(float(np.mean(self._scores)), 4) if self._scores else None
            found |= {"judged": len(self._scores), "judge_score": mean}
        if self.recaption:
            found["recaptioned"] = self._recaptioned
        return {"vision": found}


def columns(looks: Looks | None) -> pa.Schema:
    """Of the sidecar of a shard."""
    return schema.CAPTIONED_IMAGE if looks is not None and looks.recaption else schema.IMAGE


@dataclass(frozen=True)
class Expected:
    """What looking at pictures may take."""

    requests: float
    tokens: Mapping[str, float]
    """`read` and `written`, of a model that does not think."""


def expected(config: VisionModelConfig, side_px: int, pictures: float, to_train: float) -> Expected:
    """For `pictures` of that side of which `to_train` are for training, none of them painted again."""
    judged, captioned = pictures * config.judge, to_train * config.recaption
    read = (judged + captioned) * (side_px / _TOKEN_PX) ** 2
    read += judged * (len(JUDGE) / CHARS_PER_TOKEN + _CAPTION_TOKENS)
    read += captioned * len(RECAPTION) / CHARS_PER_TOKEN
    written = judged * _CLAIMS_EXPECTED * _CLAIM_TOKENS
    written += captioned * (config.min_words + config.max_words) / 2 * TOKENS_PER_WORD
    return Expected(judged + captioned, {"read": read, "written": written})


def judge_scores(answer: str | Refused) -> dict[str, float]:
    """`judge_score`, the share of an answer's claims that are shown, and the same for each kind of claim.

    Raises ValueError, with the reason in a few words, where the answer makes no claim that can be read.
    """
    if isinstance(answer, Refused):
        raise ValueError(answer.reason)
    if isinstance(answer, Unfinished):
        raise ValueError("unfinished")
    items = json_items(without_thinking(answer))
    if items is None:
        raise ValueError("no JSON")
    shown: dict[str, list[bool]] = defaultdict(list)
    for item in items:
        said = _SHOWN.get(str(item.get("shown")).strip().lower()) if isinstance(item, dict) else None
        if said is None:
            raise ValueError("other JSON than asked for")
        kind = item.get("kind")
        shown[kind if kind in KINDS else _OTHER].append(said)
    if not shown:
        raise ValueError("no claims")
    every = [said for some in shown.values() for said in some]
    return {"judge_score": float(np.mean(every))} | {
        f"judge_{kind}": float(np.mean(shown[kind])) for kind in KINDS if kind in shown
    }
