"""Cards: what a data set or a model is and what it was made of, derived from the run that made it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.imagegen.seeds import open_seeds
from synthclip.interop.origins import IMPORTED, Origins, made_with, read_origins
from synthclip.recipe.shareable import shareable
from synthclip.run.durable import rejected_by_reason
from synthclip.run.store import RunDirectory
from synthclip.schema import IMAGE_SPLITS

if TYPE_CHECKING:
    from synthclip.models.load import OpenedModel

_STAGES = ("concepts", "captions", "match", "balance", "images")
_PAPER = "https://arxiv.org/abs/2402.01832"
_UNRECORDED = "not recorded"


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
            "tags": [*synthetic_tag(origins), "clip", "webdataset", "synthclip"],
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
            *_provenance(origins),
            "## Files",
            "WebDataset tars with `{key}.jpg`, `{key}.txt` (caption) and `{key}.json` (everything needed "
            "to make the sample again); beside each a Parquet sidecar with checksum, size and the place of "
            "every image, and `sizes.json` with the number of samples of each tar.",
            *_recipe(directory, _STAGES),
        ]
        return _card(header, body)


def seeds_card(folder: Path, repo: str) -> str:
    """The card of seeds that `export_seeds` wrote. Raises SynthClipError as `open_seeds`."""
    seeds = open_seeds(folder)
    count, size_bytes = (sum(part[key] for part in seeds.parts) for key in ("rows", "size_bytes"))
    splits = dict.fromkeys(part["path"].split("/")[1] for part in seeds.parts)
    painters = [one for split in splits for one in seeds.painters(split)]
    licences = tuple(dict.fromkeys(one["licence"] for one in painters if one["licence"]))
    trained = all((one["digital_source_type"] or "").endswith("/trainedAlgorithmicMedia") for one in painters)
    written = [name for name in seeds.values["captions_by"] if name != IMPORTED]
    files = [{"split": split, "path": f"seeds/{split}/*.parquet"} for split in splits]
    header = {
        "pretty_name": repo.rsplit("/", 1)[-1],
        "license": _hub_licence(licences),
        "task_categories": ["zero-shot-image-classification", "text-to-image"],
        "tags": [*["synthetic"] * bool(trained and written), "clip", "synthclip"],
        "size_categories": [_size_category(count)],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    rows = ["| makes | model | licence |", "|---|---|---|"]
    rows += [_row("captions", name, "see the model's page") for name in written]
    named = dict.fromkeys((one["name"] or _UNRECORDED, one["licence"] or _UNRECORDED) for one in painters)
    rows += [_row("images", *one) for one in named]
    body = [
        f"# {repo.rsplit('/', 1)[-1]}",
        f"{count:,} images as what they are painted from: captions, seeds and models, "
        f"{size_bytes / 1e6:,.1f} MB in all. SynthCLIP paints them again, and says which are equal to the "
        "first, byte for byte, and which only look alike:",
        f"```\nsynthclip fetch seeds {repo} --out seeds\nsynthclip materialize seeds --out run\n```",
        "## Models and licences",
        "\n".join(rows),
        "## Files",
        "`seeds/<split>/<n>.parquet` has a row for each image: key, caption, concept ids, variant, attempt, "
        "seed, painter, SHA-256 of its JPEG, perceptual hash. `seeds.json` says which models, with which "
        "values, and what else a picture goes through; `concepts.json` names the concepts by their ids.",
    ]
    return _card(header, body)


def model_card(source: str | Path, opened: "OpenedModel", repo: str) -> str:
    """The model card: architecture, use, evaluation and recipe where the model comes from a run."""
    path = Path(source)
    run = RunDirectory(path.parent.parent if path.parts[-2:] == ("train", "model") else path)
    with run.cached_manifests():
        origins = read_origins(run)
        others = origins.init, origins.teacher
        from_synthetic = bool(origins.sources) and origins.own_images_only and others == (None, None)
        header: dict[str, Any] = {
            "library_name": "open_clip",
            "pipeline_tag": "zero-shot-image-classification",
            "tags": ["clip", "synthclip", *(synthetic_tag(origins) if from_synthetic else ())],
        }
        parameters = sum(value.numel() for value in opened.model.parameters())
        body = [
            f"# {repo.rsplit('/', 1)[-1]}",
            f"A CLIP model of {parameters / 1e6:.1f} million parameters. The method is that of "
            f"[SynthCLIP]({_PAPER}).",
            "## Trained on",
            origins.of_training() or "What it was trained on is not recorded in its files.",
            *_trained_on(origins),
            *_provenance(origins),
            "## Use",
            "```python\nimport open_clip\n\n"
            f'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo}")\n'
            f'tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")\n```',
            *_evaluation(run),
            *_recipe(run, (*_STAGES, "train")),
        ]
        return _card(header, body)


def _provenance(origins: Origins) -> list[str]:
    """Every generator with its licence, and what that says against training where it is known."""
    rows = ["| makes | model | licence | digital source type |", "|---|---|---|---|"]
    rows += [_row("captions", IMPORTED, _UNRECORDED, _UNRECORDED)] * origins.captions_imported
    for one in origins.generators:
        kind = (
            f"[{one.source_type.rpartition('/')[2]}]({one.source_type})" if one.source_type else _UNRECORDED
        )
        licence = one.licence or ("see the model's page" if one.makes == "captions" else _UNRECORDED)
        rows.append(_row(one.makes, one.name, licence, "text" if one.makes == "captions" else kind))
    if len(rows) == 2:
        return []
    notes = [f"- {one.name}: {one.terms}." for one in origins.generators if one.terms]
    return ["## Models and licences", "\n".join(rows), "\n".join(notes)]


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
            values |= made_with(run, stage)
    if not values:
        return []
    text = yaml.safe_dump(shareable(values), sort_keys=False, allow_unicode=True, width=100)
    return ["## Recipe", "Local paths, addresses and keys are left out.", f"```yaml\n{text.rstrip()}\n```"]


def _row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def synthetic_tag(origins: Origins) -> list[str]:
    """`synthetic` where models made all captions and images."""
    return ["synthetic"] if origins.captions_generated and origins.images_generated else []


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
