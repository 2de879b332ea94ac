"""The recipe's sections for TextGen."""

from typing import Any, Literal

from pydantic import Field, model_validator

from synthclip.config import Section


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
    """A prompt; Jinja, with `concept` in scope."""

    name: str
    text: str
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _can_be_rendered(self) -> "Template":
        self.compile()
        return self

    def compile(self) -> Any:
        """The `jinja2.Template`. Raises ValueError where the text is none, or names what is not there."""
        from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, meta

        environment = Environment(undefined=StrictUndefined)
        try:
            names = meta.find_undeclared_variables(environment.parse(self.text))
        except TemplateSyntaxError as error:
            raise ValueError(f"template {self.name!r}, line {error.lineno}: {error.message}") from None
        if unknown := sorted(names - {"concept"}):
            raise ValueError(
                f"template {self.name!r}: {unknown[0]!r} is not known there: use {{{{ concept }}}}"
            )
        return environment.from_string(self.text)


class CaptionsConfig(Section):
    per_concept: int = Field(8, ge=1)
    templates: tuple[Template, ...] = Field(min_length=1)
    min_words: int = Field(3, ge=1)
    max_words: int = Field(20, ge=1)
    must_contain_concept: bool = True
    concepts_per_shard: int = Field(32, ge=1)


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
