"""The recipe's sections for TextGen."""

import re
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from synthclip.recipe.section import Section, later, nearest, runtime
from synthclip.recipe.variety import named

UNSPACED_LANGUAGES = ("bo", "dz", "ja", "km", "lo", "my", "th", "zh")
"""ISO 639 codes of languages that are written without spaces between words."""


class ConceptSource(Section):
    """One list of concepts. Sources are merged in order; the first to name a concept keeps it."""

    kind: Literal["builtin", "csv", "json", "text", "wikipedia", "wordfreq", "wordnet"] = "builtin"
    """`builtin`: the bundled bank. `text`: a line each. `csv`, `json`: MetaCLIP's `metadata.json` too.
    `wordnet`, `wikipedia`, `wordfreq`: nouns, frequent words and titles."""
    path: str | None = None
    """File of the source. `builtin` (the bundled bank of concrete nouns) and `wordfreq` take none; `wordnet`
    wants a WNDB `dict` folder, Debian's unless given; `wikipedia` a `pages-articles.xml.bz2`."""
    column: str = "text"
    """For `csv`: the column that holds the concept."""
    include: tuple[str, ...] = ()
    """For `wordnet`: only the nouns below one of these, such as `[food, animal]`, by their first sense."""
    named_people: bool = False
    """For `wordnet`: whether to take the names of people too."""
    language: str = "en"
    """For `wordfreq`."""
    top: int = Field(50_000, ge=1)
    """For `wordfreq`: how many words, the most frequent first."""
    min_count: int = Field(100, ge=1)
    """For `wikipedia`: the least count of a word."""
    min_pmi: float = 30.0
    """For `wikipedia`: the least pointwise mutual information of a pair of words, in bits."""
    views: str | None = None
    """For `wikipedia`: one of Wikimedia's page-view files; without it no titles are taken."""
    min_views: int = Field(70, ge=1)
    """For `wikipedia`: the least page views of a title."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> "ConceptSource":
        if self.kind in ("builtin", "wordfreq") and self.path is not None:
            raise ValueError(f"kind {self.kind!r} takes no path")
        if self.kind in ("csv", "json", "text", "wikipedia") and self.path is None:
            raise ValueError(f"kind {self.kind!r} needs a path")
        return self


class ConceptsConfig(Section):
    sources: tuple[ConceptSource, ...] = Field((ConceptSource(),), min_length=1)
    """Lists of concepts, merged in order."""
    min_chars: int = Field(1, ge=1)
    """Shorter entries are refused; in characters."""
    max_chars: int = Field(80, ge=1)
    """Longer entries are refused; in characters."""
    pattern: str | None = None
    """A regular expression that an entry must match as a whole, such as `[A-Za-z' -]+`."""
    block: tuple[str, ...] = ()
    """Entries that are, or hold as whole words in any case, a line of one of these text files are refused;
    `nsfw` is the list of the package better-profanity."""
    limit: int | None = Field(None, ge=1)
    """Keep only this many, the first: for a trial run."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class Template(Section):
    """A prompt; Jinja, with `concept`, the names of `captions.axes` and `count` in scope: how many captions
    the request is for (`captions.per_request`)."""

    name: str
    """Stands beside every caption that was asked for by it."""
    text: str
    """The prompt."""
    prefill: str = ""
    """How the caption begins, Jinja too: it is put behind the prompt, with a space where none is there, for
    the model to go on from. For models that continue a text; a chat model answers anew instead."""
    weight: float = Field(1.0, gt=0)
    """How often it is drawn, compared with the other templates."""
    min_words: int | None = Field(None, ge=1)
    """Instead of the recipe's, for captions by this template."""
    max_words: int | None = Field(None, ge=1)
    """Instead of the recipe's, for captions by this template."""
    sentences: int | None = Field(None, ge=1)
    """Take an answer of several lines as one text, and keep at most this many sentences, the first: for long
    captions, of which training can draw parts. None takes an answer of one line as it is."""

    def compile(self, axes: Collection[str] = ()) -> tuple[Any, Any]:
        """The two as `jinja2.Template`. Raises ValueError where one is none, or names what is not there."""
        from jinja2 import StrictUndefined, TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # A recipe may be a stranger's: its templates reach nothing but the names that they are given.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            parsed = [environment.parse(text) for text in (self.text, self.prefill)]
        except TemplateSyntaxError as error:
            raise ValueError(f"template {self.name!r}, line {error.lineno}: {error.message}") from None
        known = {"concept", "count", *axes}
        names = set().union(*(meta.find_undeclared_variables(tree) for tree in parsed))
        if unknown := sorted(names - known):
            raise ValueError(
                f"template {self.name!r}: unknown name {unknown[0]!r}{nearest(unknown[0], sorted(known))}"
            )
        return environment.from_string(self.text), environment.from_string(self.prefill)


class CaptionsConfig(Section):
    imported: str | None = None
    """Take the captions from the official files in this folder, or this file, and ask no language model:
    lists of captions, matched captions, or a selection."""
    per_concept: int = Field(8, ge=1)
    """Captions asked for, for each concept."""
    per_request: int = later(1, ge=1, le=100)
    """How many captions the model is asked for at once, as a JSON list: the prompt is paid once for all. The
    request for a list is added to a chat model's prompt where its template does not name `count`."""
    templates: tuple[Template, ...] = Field(min_length=1)
    """Prompts, of which every caption draws one by weight; or names of those that come with the package
    (docs/language-models.md)."""
    axes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What captions shall differ in (style, viewpoint, setting, attribute): for each a list of values, of
    which every caption draws one, or the name of a list that comes with the package. A value listed twice is
    drawn twice as often; "" leaves it open."""
    min_words: int = Field(3, ge=1)
    """Captions of fewer words are refused."""
    max_words: int = Field(20, ge=1)
    """Captions of more words are refused."""
    must_contain_concept: bool = True
    """Refuse captions that do not name their concept."""
    language: str | None = None
    """Refuse captions that are hardly in this language, an ISO 639 code such as `en`."""
    concepts_per_shard: int = Field(32, ge=1)
    """Concepts whose captions make up one shard, the unit of work and of retry."""
    max_refused: float = runtime(0.9, ge=0, le=1)
    """The stage stops where a larger share of its captions, or of a shard of 100 or more, is refused. What
    the coverage loop asks for in addition does not count."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return named(values) if isinstance(values, dict) else values

    @field_validator("language")
    @classmethod
    def _has_spaces(cls, language: str | None) -> str | None:
        if language in UNSPACED_LANGUAGES:
            raise ValueError(
                "is written without spaces between words, and a concept is found as words between spaces: "
                "choose another language"
            )
        return language

    @model_validator(mode="after")
    def _templates_render(self) -> "CaptionsConfig":
        for axis, values in self.axes.items():
            if not axis.isidentifier() or axis == "concept" or not values:
                raise ValueError(f"axis {axis!r}: needs a name that is a word, not 'concept', and values")
        names = {axis: values[0] for axis, values in self.axes.items()}
        for template in self.templates:
            for compiled in template.compile(self.axes):
                try:
                    compiled.render(**{"concept": "concept", "count": self.per_request, **names})
                except Exception as error:
                    raise ValueError(f"template {template.name!r}: {type(error).__name__}: {error}") from None
        return self


class MatchConfig(Section):
    imported: bool = False
    """Take the ids that stand in the matched captions of `captions.imported`."""
    lowercase: bool = False
    """False is the official, case-sensitive matching."""


class BalanceConfig(Section):
    t: float | None = Field(10, gt=0)
    """A concept with more than t captions has its captions thinned out; None keeps all
    captions that match anything."""
    target: int | None = Field(None, ge=1)
    """Instead of `t`: how many captions to select; t is solved for it."""
    sample: Literal["balanced", "random"] = later("balanced")
    """`random` draws as many captions as `t` or `target` would select, each with the same probability
    whatever it names: what balancing is compared with."""
    near_duplicates: float | None = Field(None, gt=0, le=1)
    """Of captions whose sets of lower-cased words have at least this Jaccard similarity one is counted
    and selected; None keeps all but exact duplicates. Few such pairs are missed, the nearer the fewer."""
    heldout: float = Field(0.05, ge=0, lt=1)
    """Share of the selected captions kept from training, for evaluation; drawn by content."""
    heldout_seed: int | None = later(None)
    """Of the draw of held-out captions; null: the recipe's seed. Runs with one draw may share a held-out set:
    none trains on a caption of it."""
    captions_per_shard: int = Field(10_000, ge=1)
    """Captions of a shard, the unit of work and of retry."""
