"""Cards that say what a data set or a model is, written from the run that made it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from synthclip.errors import SynthClipError
from synthclip.recipe import RECIPE_FILE, inspect_recipe
from synthclip.run.store import RunDirectory

if TYPE_CHECKING:
    from synthclip.models.load import OpenedModel

_STAGES = ("concepts", "captions", "match", "balance", "images")
_PAPER = "https://arxiv.org/abs/2402.01832"


def data_card(run: Path, repo: str) -> str:
    """The data card of a run's images, Markdown with the hub's YAML header: counts, models and licences,
    recipe, and that all of it is synthetic. Raises SynthClipError where the run holds no images."""
    directory = RunDirectory(run)
    images = directory.manifests("images")
    count = sum(manifest.rows for manifest in images)
    if not count:
        raise SynthClipError(f"{run}: holds no images to push: run `synthclip images` first")
    painters = sorted({str(one.notes["backend"]) for one in images if "backend" in one.notes})
    licences = sorted({str(one.notes["licence"]) for one in images if "licence" in one.notes})
    splits = [split for split in ("train", "heldout") if (run / "images" / split).is_dir()]
    header = {
        "pretty_name": repo.rsplit("/", 1)[-1],
        "license": _hub_licence(licences),
        "task_categories": ["zero-shot-image-classification", "text-to-image"],
        "tags": ["synthetic", "clip", "webdataset", "synthclip"],
        "size_categories": [_size_category(count)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/*.tar"} for split in splits],
            }
        ],
    }
    body = [
        f"# {repo.rsplit('/', 1)[-1]}",
        "**All of it is synthetic.** A language model wrote the captions and a text-to-image model painted "
        "the images; no photograph and no text of a person is in it. It carries the mistakes and the biases "
        f"of those models. Made in the manner of [SynthCLIP]({_PAPER}).",
        "## Counts",
        _counts(directory),
        "## Models and licences",
        _bullets(
            [f"Captions: {model}" for model in _caption_models(run)]
            + [f"Images: {painter}" for painter in painters]
            + [f"Licence of the images: {licence}" for licence in licences]
        ),
        "## Files",
        "WebDataset tars with `{key}.jpg`, `{key}.txt` (caption) and `{key}.json` (all it takes to make the "
        "sample again); beside each a Parquet sidecar with checksum, size and the place of every image, and "
        "`sizes.json` with the number of samples of each tar.",
        *_recipe(run),
    ]
    return _card(header, body)


def model_card(source: str | Path, opened: "OpenedModel", repo: str) -> str:
    """The model card: architecture, use, evaluation and recipe where the model comes from a run."""
    run = Path(source)
    from_run = (run / RECIPE_FILE).is_file()
    header: dict[str, Any] = {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "synthclip", *(["synthetic"] if from_run else [])],
    }
    parameters = sum(value.numel() for value in opened.model.parameters())
    trained_on = (
        "Trained on synthetic captions and images alone, as the recipe below says."
        if from_run
        else "What it was trained on is not recorded in its files."
    )
    body = [
        f"# {repo.rsplit('/', 1)[-1]}",
        f"A CLIP model of {parameters / 1e6:.1f} million parameters. {trained_on} The method is that of "
        f"[SynthCLIP]({_PAPER}).",
        "## Use",
        "```python\nimport open_clip\n\n"
        f'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo}")\n'
        f'tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")\n```',
        *_evaluation(run),
        *(_recipe(run) if from_run else ()),
    ]
    return _card(header, body)


def _card(header: dict[str, Any], body: list[str]) -> str:
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def _counts(directory: RunDirectory) -> str:
    rows = ["| stage | rows | refused |", "|---|---|---|"]
    for stage in _STAGES:
        manifests = directory.manifests(stage)
        if manifests:
            refused: dict[str, int] = {}
            for manifest in manifests:
                for reason, count in manifest.rejected.items():
                    refused[reason] = refused.get(reason, 0) + count
            told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items())) or "none"
            rows.append(f"| {stage} | {sum(one.rows for one in manifests):,} | {told} |")
    return "\n".join(rows)


def _caption_models(run: Path) -> list[str]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    models: set[str] = set()
    for path in sorted((run / "captions").glob("*.parquet")):
        models.update(pc.unique(pq.read_table(path, columns=["model"])["model"]).to_pylist())
    return sorted(models)


def _evaluation(run: Path) -> list[str]:
    import pyarrow.parquet as pq

    path = run / "eval" / "results.parquet"
    if not path.is_file():
        return []
    rows = ["| data set | task | metric | value | 95 % interval | chance |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {row['dataset']} | {row['task']} | {row['metric']} | {row['value']:.4f} | "
        f"{row['ci95_low']:.4f} to {row['ci95_high']:.4f} | {row['chance']:.4f} |"
        for row in pq.read_table(path).to_pylist()
    ]
    return ["## Evaluation", "\n".join(rows)]


def _recipe(run: Path) -> list[str]:
    if not (run / RECIPE_FILE).is_file():
        return []
    return ["## Recipe", f"```yaml\n{inspect_recipe(run).to_yaml().rstrip()}\n```"]


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _hub_licence(licences: list[str]) -> str:
    """The hub's identifier: an SPDX name in lower case, where there is one licence and it is one."""
    if len(licences) == 1 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]*", licences[0]):
        return licences[0].lower()
    return "other"


def _size_category(count: int) -> str:
    """The hub's name for the range that a number of rows falls into."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    bounds += [(10**7, "1M<n<10M"), (10**8, "10M<n<100M")]
    return next((name for bound, name in bounds if count < bound), "100M<n<1B")
