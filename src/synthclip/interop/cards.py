"""Cards: what a data set or a model is and what it was made of, derived from the run that made it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import yaml

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.recipe.shareable import shareable
from synthclip.run.durable import rejected_by_reason
from synthclip.run.store import RunDirectory
from synthclip.schema import IMAGE_SPLITS
from synthclip.training import MADE_WITH

if TYPE_CHECKING:
    from synthclip.models.load import OpenedModel

_STAGES = ("concepts", "captions", "match", "balance", "images")
_PAPER = "https://arxiv.org/abs/2402.01832"
_IMPORTED = "imported"
_OFFICIAL = "SynthCI-30M"
_GENERATORS = ("diffusers", "openai")
"""The backends that are generative models; the compositor puts drawn glyphs together."""
_UNRECORDED = "not recorded"


@dataclass(frozen=True)
class TrainedOn:
    """A source of training pairs."""

    name: str
    pairs: int | None
    weight: float
    licence: str | None


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
    sources: tuple[TrainedOn, ...]
    """What the model was trained on; empty where none was trained."""
    own_images_only: bool
    init: str | None
    """The weights that training started from; None for random ones."""

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
        said = [f"The captions were written by {_and(self.llms)}."] if self.llms else []
        if self.captions_imported:
            said.append("Captions were imported from files; who wrote them is not recorded.")
        return " ".join(said)

    def of_images(self) -> str:
        """A sentence on what made the images; empty where there are none."""
        made_by = _and(self.painters)
        if not made_by:
            return ""
        if self.images_from == _IMPORTED:
            published = " That data set is published as synthetic." if self.painters == (_OFFICIAL,) else ""
            return f"The images were imported as {made_by}; this run did not make them.{published}"
        if self.composed:
            return f"The images were composed of drawn glyphs by {made_by}, which is no generative model."
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
        return " ".join(said)


def read_origins(run: RunDirectory) -> Origins:
    """Read what a run was made of. Texts are safe to pass on."""
    llms: set[str] = set()
    for path in sorted(run.stage("captions").glob("*.parquet")):
        llms.update(pc.unique(schema.read_table(path, columns=["model"])["model"]).to_pylist())
    manifests = run.manifests("images")
    painters = _distinct(manifest.notes.get("backend") for manifest in manifests)
    licences = _distinct(manifest.notes.get("licence") for manifest in manifests)
    made = _made_with(run, "images")
    if (made.get("images") or {}).get("imported") or painters == (_OFFICIAL,):
        images_from: str | None = _IMPORTED
    elif any("compositor" in painter for painter in painters):
        images_from = "compositor"
    else:
        painted_by = made.get("text_to_image") or {}
        backends = {one["backend"] for one in painted_by.get("painters", [painted_by]) if "backend" in one}
        images_from = min(backends - {*_GENERATORS} or backends, default=None)
    training = _made_with(run, "train").get("training") or {}
    trained = run.manifests("train")
    sources = training.get("sources") or [{"kind": "run"}]
    pairs = trained[0].notes.get("pairs") if trained else None
    own_pairs = sum(one.rows for one in manifests if one.split == "train")
    used = [
        TrainedOn(
            "the images of this run" if own else f"{source['kind']}: {shareable(source['path'])}",
            pairs[number] if pairs else own_pairs if own else None,
            float(source.get("weight", 1.0)),
            _and(licences) or None if own else None,
        )
        for number, source in enumerate(sources)
        for own in [source.get("kind", "run") == "run"]
    ]
    return Origins(
        tuple(shareable(sorted(llms - {_IMPORTED}))),
        _IMPORTED in llms,
        painters,
        images_from,
        licences,
        tuple(used) if trained else (),
        all(source.get("kind", "run") == "run" for source in sources),
        shareable(training.get("init")),
    )


def splits_of(run: RunDirectory) -> list[str]:
    """The splits that a run has images of."""
    there = {manifest.split for manifest in run.manifests("images") if manifest.rows}
    return [split for split in IMAGE_SPLITS if split in there]


def data_card(run: Path, repo: str) -> str:
    """The data card of a run's images, Markdown with the hub's YAML header: counts, models and licences,
    recipe, and that all of it is synthetic. Raises SynthClipError where the run holds no images."""
    directory = RunDirectory(run)
    with directory.cached_manifests():
        images = directory.manifests("images")
        count = sum(manifest.rows for manifest in images)
        if not count:
            raise SynthClipError(f"{run}: holds no images to push: run `synthclip images` first")
        origins = read_origins(directory)
        header = {
            "pretty_name": repo.rsplit("/", 1)[-1],
            "license": _hub_licence(origins.licences),
            "task_categories": ["zero-shot-image-classification", "text-to-image"],
            "tags": [*_synthetic(origins), "clip", "webdataset", "synthclip"],
            "size_categories": [_size_category(count)],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [
                        {"split": split, "path": f"{split}/*.tar"} for split in splits_of(directory)
                    ],
                }
            ],
        }
        body = [
            f"# {repo.rsplit('/', 1)[-1]}",
            " ".join(filter(None, (origins.of_synthesis(), origins.of_captions(), origins.of_images()))),
            f"The method is that of [SynthCLIP]({_PAPER}).",
            "## Counts",
            _counts(directory),
            "## Models and licences",
            _bullets(
                [f"Captions: {model}" for model in origins.llms]
                + [f"Captions: {_IMPORTED}" for _ in range(origins.captions_imported)]
                + [f"Images: {painter}" for painter in origins.painters]
                + [f"Licence of the images: {licence}" for licence in origins.licences]
            ),
            "## Files",
            "WebDataset tars with `{key}.jpg`, `{key}.txt` (caption) and `{key}.json` (everything needed "
            "to make the sample again); beside each a Parquet sidecar with checksum, size and the place of "
            "every image, and `sizes.json` with the number of samples of each tar.",
            *_recipe(directory, _STAGES),
        ]
        return _card(header, body)


def model_card(source: str | Path, opened: "OpenedModel", repo: str) -> str:
    """The model card: architecture, use, evaluation and recipe where the model comes from a run."""
    path = Path(source)
    run = RunDirectory(path.parent.parent if path.parts[-2:] == ("train", "model") else path)
    with run.cached_manifests():
        origins = read_origins(run)
        from_synthetic = bool(origins.sources) and origins.own_images_only and origins.init is None
        header: dict[str, Any] = {
            "library_name": "open_clip",
            "pipeline_tag": "zero-shot-image-classification",
            "tags": ["clip", "synthclip", *(_synthetic(origins) if from_synthetic else ())],
        }
        parameters = sum(value.numel() for value in opened.model.parameters())
        body = [
            f"# {repo.rsplit('/', 1)[-1]}",
            f"A CLIP model of {parameters / 1e6:.1f} million parameters. The method is that of "
            f"[SynthCLIP]({_PAPER}).",
            "## Trained on",
            origins.of_training() or "What it was trained on is not recorded in its files.",
            *_trained_on(origins),
            "## Use",
            "```python\nimport open_clip\n\n"
            f'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo}")\n'
            f'tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")\n```',
            *_evaluation(run),
            *_recipe(run, (*_STAGES, "train")),
        ]
        return _card(header, body)


def _trained_on(origins: Origins) -> list[str]:
    if not origins.sources:
        return []
    rows = ["| source | pairs | weight | licence |", "|---|---|---|---|"]
    for source in origins.sources:
        pairs = _UNRECORDED if source.pairs is None else f"{source.pairs:,}"
        rows.append(_row(source.name, pairs, f"{source.weight:g}", source.licence or _UNRECORDED))
    return ["\n".join(rows), " ".join(filter(None, (origins.of_captions(), origins.of_images())))]


def _card(header: dict[str, Any], body: list[str]) -> str:
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def _counts(directory: RunDirectory) -> str:
    rows = ["| stage | rows | refused |", "|---|---|---|"]
    for stage in _STAGES:
        manifests = directory.manifests(stage)
        if manifests:
            refused = sorted(rejected_by_reason(manifests).items())
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused) or "none"
            rows.append(f"| {stage} | {sum(one.rows for one in manifests):,} | {shareable(reasons)} |")
    return "\n".join(rows)


def _evaluation(run: RunDirectory) -> list[str]:
    if not run.manifests("eval"):
        return []
    rows = ["| data set | task | metric | value | 95 % interval | chance |", "|---|---|---|---|---|---|"]
    for row in schema.read_table(run.file("eval", "results.parquet")).to_pylist():
        numbers = (
            f"{row['value']:.4f}",
            "" if row["ci95_low"] is None else f"{row['ci95_low']:.4f} to {row['ci95_high']:.4f}",
            "" if row["chance"] is None else f"{row['chance']:.4f}",
        )
        rows.append(_row(row["dataset"], row["task"], row["metric"], *numbers))
    return ["## Evaluation", "\n".join(rows)]


def _recipe(run: RunDirectory, stages: Iterable[str]) -> list[str]:
    """The values that the finished stages were made with, whatever the recipe has been changed to since."""
    values: dict[str, Any] = {}
    for stage in stages:
        if run.manifests(stage):
            values |= _made_with(run, stage)
    if not values:
        return []
    text = yaml.safe_dump(shareable(values), sort_keys=False, allow_unicode=True, width=100)
    return ["## Recipe", "Local paths, addresses and keys are left out.", f"```yaml\n{text.rstrip()}\n```"]


def _row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _made_with(run: RunDirectory, stage: str) -> dict[str, Any]:
    return dict(run.read_json(f"{stage}/{MADE_WITH}") or run.stage_values(stage))


def _synthetic(origins: Origins) -> list[str]:
    return ["synthetic"] if origins.captions_generated and origins.images_generated else []


def _distinct(noted: Iterable[Any]) -> tuple[str, ...]:
    """The texts of notes that hold one, or a list of them."""
    texts = {str(text) for note in noted for text in (note if isinstance(note, list) else [note]) if text}
    return tuple(shareable(sorted(texts)))


def _and(names: Iterable[str]) -> str:
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _hub_licence(licences: tuple[str, ...]) -> str:
    """The hub's identifier: an SPDX name in lower case, where there is one licence and it is one."""
    if len(licences) == 1 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]*", licences[0]):
        return licences[0].lower()
    return "other"


def _size_category(count: int) -> str:
    """The hub's name for the range that a number of rows falls into."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    bounds += [(10**7, "1M<n<10M"), (10**8, "10M<n<100M")]
    return next((name for bound, name in bounds if count < bound), "100M<n<1B")
