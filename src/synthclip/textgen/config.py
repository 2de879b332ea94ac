"""The recipe's sections for TextGen."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, model_validator

from synthclip.config import Section, nearest


class ConceptSource(Section):
    """One list of concepts. Sources are merged in order; the first to name a concept keeps it."""

    kind: Literal["builtin", "text", "csv", "json"] = "builtin"
    path: str | None = None
    """File of the source; `builtin` is the bundled bank of concrete nouns and takes none."""
    column: str = "text"
    """For `csv`: the column that holds the concept."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> "ConceptSource":
        if (self.kind == "builtin") != (self.path is None):
            raise ValueError(
                "kind 'builtin' takes no path" if self.path else f"kind {self.kind!r} needs a path"
            )
        return self


class ConceptsConfig(Section):
    sources: tuple[ConceptSource, ...] = Field((ConceptSource(),), min_length=1)
    max_chars: int = Field(80, ge=1)
    limit: int | None = Field(None, ge=1)
    """Keep only the first so many: for a trial run."""


class Template(Section):
    """A prompt; Jinja, with `concept` and the names of `captions.axes` in scope."""

    name: str
    text: str
    prefill: str = ""
    """How the caption begins, Jinja too: it is put behind the prompt, with a space where none is there, for
    the model to go on from. For models that continue a text; a chat model answers anew instead."""
    weight: float = Field(1.0, gt=0)

    def compile(self, axes: Collection[str] = ()) -> tuple[Any, Any]:
        """The two as `jinja2.Template`. Raises ValueError where one is none, or names what is not there."""
        from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, meta

        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            parsed = [environment.parse(text) for text in (self.text, self.prefill)]
        except TemplateSyntaxError as error:
            raise ValueError(f"template {self.name!r}, line {error.lineno}: {error.message}") from None
        known = {"concept", *axes}
        names = set().union(*(meta.find_undeclared_variables(tree) for tree in parsed))
        if unknown := sorted(names - known):
            raise ValueError(
                f"template {self.name!r}: unknown name {unknown[0]!r}{nearest(unknown[0], sorted(known))}"
            )
        return environment.from_string(self.text), environment.from_string(self.prefill)


class CaptionsConfig(Section):
    per_concept: int = Field(8, ge=1)
    templates: tuple[Template, ...] = Field(min_length=1)
    axes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What captions shall differ in (style, viewpoint, setting, attribute): for each a list of values, of
    which every caption draws one. A value listed twice is drawn twice as often; "" leaves it open."""
    min_words: int = Field(3, ge=1)
    max_words: int = Field(20, ge=1)
    must_contain_concept: bool = True
    concepts_per_shard: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _templates_render(self) -> "CaptionsConfig":
        for axis, values in self.axes.items():
            if not axis.isidentifier() or axis == "concept" or not values:
                raise ValueError(f"axis {axis!r}: needs a name that is a word, not 'concept', and values")
        for template in self.templates:
            template.compile(self.axes)
        return self


class MatchConfig(Section):
    lowercase: bool = False
    """False is the official, case-sensitive matching."""


class BalanceConfig(Section):
    t: float | None = Field(10, gt=0)
    """A concept with more than t captions has its captions thinned out (paper, section 3.1); None keeps all
    captions that match anything."""
    heldout: float = Field(0.05, ge=0, lt=1)
    """Share of the selected captions kept from training, for evaluation; drawn by content."""
    captions_per_shard: int = Field(10_000, ge=1)
