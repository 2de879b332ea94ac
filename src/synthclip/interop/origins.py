"""What a run was made of: who wrote its captions, who painted its images, and what it was trained on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.compute as pc

from synthclip import schema
from synthclip.backends.painters import terms
from synthclip.imagegen.seeds import COMPARED_FILE
from synthclip.recipe.shareable import shareable
from synthclip.run.durable import Manifest
from synthclip.run.store import RunDirectory
from synthclip.samples import metadata
from synthclip.training import MADE_WITH

IMPORTED = "imported"
_OFFICIAL = "SynthCI-30M"
_OURS = {
    "run": "the images of this run",
    "exchanged": "the images of this run of captions of exchanged words",
}
"""The kinds of `training.sources` whose images the run made."""
_GENERATORS = ("diffusers", "openai", "sdcpp")
"""The backends that are generative models; the compositor puts drawn glyphs together."""
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""Of IPTC, as C2PA names them too."""


@dataclass(frozen=True)
class TrainedOn:
    """A source of training pairs."""

    name: str
    pairs: int | None
    weight: float
    licence: str | None


@dataclass(frozen=True)
class Generator:
    """What made captions or images."""

    makes: Literal["captions", "images"]
    name: str
    """The model and, where known, its revision."""
    licence: str | None
    terms: str | None = None
    """What the licence is known to say against training on its pictures."""
    source_type: str | None = None
    """The IPTC term for how the pictures came to be, where that is known."""


@dataclass(frozen=True)
class Origins:
    """What a run was made of, read off its files and the recipe values of its finished stages."""

    llms: tuple[str, ...]
    """The models that wrote captions."""
    captions_imported: bool
    painters: tuple[str, ...]
    """The models that made images, or what the images were imported as."""
    images_from: str | None
    """`imported`, or the name of the backend; None where it is not known."""
    licences: tuple[str, ...]
    """Of the images."""
    generators: tuple[Generator, ...]
    """Of captions and images."""
    sources: tuple[TrainedOn, ...]
    """What the model was trained on; empty where none was trained."""
    own_images_only: bool
    init: str | None
    """The weights that training started from; None for random ones."""
    teacher: str | None
    """The model whose similarities were learnt too, if any."""

    @property
    def composed(self) -> bool:
        """Whether glyphs were composed where a generative model would have painted."""
        return self.images_from is not None and "compositor" in self.images_from

    @property
    def captions_generated(self) -> bool:
        return bool(self.llms) and not self.captions_imported

    @property
    def images_generated(self) -> bool:
        return self.images_from in _GENERATORS

    def of_captions(self) -> str:
        """One or two sentences on who wrote the captions; empty where there are none."""
        said = [f"The captions were written by {joined(self.llms)}."] if self.llms else []
        if self.captions_imported:
            said.append("Captions were imported from files; who wrote them is not recorded.")
        return " ".join(said)

    def of_images(self) -> str:
        """A sentence on what made the images; empty where there are none."""
        made_by = joined(self.painters)
        if not made_by:
            return ""
        if self.images_from == IMPORTED:
            published = " That data set is published as synthetic." if self.painters == (_OFFICIAL,) else ""
            return f"The images were imported as {made_by}; this run did not make them.{published}"
        if self.composed:
            return f"The images were composed of drawn glyphs, without a generative model, by {made_by}."
        return f"The images were {'generated' if self.images_generated else 'made'} by {made_by}."

    def of_synthesis(self) -> str:
        """What can be said of all captions and images together; empty where nothing can."""
        if not self.captions_generated:
            return ""
        if self.images_generated:
            return "All of it is synthetic: no photograph and no text written by a person is in it."
        if self.composed:
            return "No photograph and no text written by a person is in it."
        return ""

    def of_training(self) -> str:
        """Sentences on what the model was trained on; empty where none was trained."""
        if not self.sources:
            return ""
        if self.own_images_only:
            kind = "synthetic " if self.captions_generated and self.images_generated else ""
            said = [f"The model was trained on the {kind}captions and images of this run alone."]
        else:
            said = [
                "The model was trained on the pairs listed below; those from outside this run may hold "
                "photographs and text written by people."
            ]
        if self.init is not None:
            said.append(
                f"Training started from the weights {self.init}; what those were trained on is not recorded."
            )
        if self.teacher is not None:
            said.append(
                f"It also learnt how similar {self.teacher} finds these captions and images; "
                "what that model was trained on is not recorded."
            )
        return " ".join(said)


def read_origins(run: RunDirectory) -> Origins:
    """Read what a run was made of. Texts are safe to pass on."""
    llms: set[str] = set()
    for path in sorted(run.stage("captions").glob("*.parquet")):
        llms.update(pc.unique(schema.read_table(path, columns=["model"])["model"]).to_pylist())
    again = run.read_json(COMPARED_FILE)
    if isinstance(again, dict) and not llms:
        llms.update(again.get("captions_by", ()))
    manifests = run.manifests("images")
    looked = [one.notes.get("vision", {}) for one in manifests]
    llms.update(one["model"] for one in looked if one.get("recaptioned"))
    painters = _distinct(manifest.notes.get("backend") for manifest in manifests)
    licences = _distinct(manifest.notes.get("licence") for manifest in manifests)
    made = made_with(run, "images")
    if (made.get("images") or {}).get("imported") or painters == (_OFFICIAL,):
        images_from: str | None = IMPORTED
    elif any("compositor" in painter for painter in painters):
        images_from = "compositor"
    else:
        painted_by = made.get("text_to_image") or {}
        backends = {one["backend"] for one in painted_by.get("painters", [painted_by]) if "backend" in one}
        images_from = min(backends - {*_GENERATORS} or backends, default=None)
    training = made_with(run, "train").get("training") or {}
    trained = run.manifests("train")
    sources = training.get("sources") or [{"kind": "run"}]
    pairs = trained[0].notes.get("pairs") if trained else None
    own = [one for one in manifests if one.split == "train"]
    own_pairs = sum(one.rows for one in own)
    own_licences = _distinct(one.notes.get("licence") for one in own)
    used = [
        TrainedOn(
            _OURS.get(kind) or f"{kind}: {shareable(source['path'])}",
            pairs[number] if pairs else own_pairs if kind == "run" else None,
            float(source.get("weight", 1.0)),
            joined(own_licences) or None if kind in _OURS else None,
        )
        for number, source in enumerate(sources)
        for kind in [source.get("kind", "run")]
    ]
    writers = tuple(shareable(sorted(llms - {IMPORTED})))
    source_type = None
    if images_from in _GENERATORS or images_from == "compositor":
        kind = "composite" if images_from == "compositor" else "trainedAlgorithmicMedia"
        source_type = _SOURCE_TYPES + kind
    known = dict(_licences(run, manifests)) if len(licences) > 1 else dict.fromkeys(painters, licences[:1])
    painted = [
        Generator("images", name, joined(known.get(name, ())) or None, terms(name), source_type)
        for name in painters
    ]
    return Origins(
        writers,
        IMPORTED in llms,
        painters,
        images_from,
        licences,
        (*(Generator("captions", name, None) for name in writers), *painted),
        tuple(used) if trained else (),
        all(source.get("kind", "run") in _OURS for source in sources),
        shareable(training.get("init")),
        shareable((training.get("teacher") or {}).get("model")),
    )


def _licences(run: RunDirectory, manifests: Sequence[Manifest]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The licence of each painter, by what stands beside the images."""
    for one in manifests:
        left = set(_distinct([one.notes.get("backend")]))
        for _, about in metadata(run.file("images", f"{one.shard}.tar")) if len(left) > 1 else ():
            if (name := shareable(about["backend"])) in left:
                left.remove(name)
                yield name, (shareable(about["licence"]),)
            if not left:
                break
        if len(left) == 1:
            yield left.pop(), _distinct([one.notes.get("licence")])


def _distinct(noted: Iterable[Any]) -> tuple[str, ...]:
    """The texts of notes that hold one, or a list of them."""
    texts = {str(text) for note in noted for text in (note if isinstance(note, list) else [note]) if text}
    return tuple(shareable(sorted(texts)))


def joined(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def made_with(run: RunDirectory, stage: str) -> dict[str, Any]:
    """The recipe values that a stage was made with."""
    return dict(run.read_json(f"{stage}/{MADE_WITH}") or run.stage_values(stage))
