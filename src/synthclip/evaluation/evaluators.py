"""The tasks a model is judged by, found by name: each makes figures of one data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation import metrics
from synthclip.evaluation.data import KNOWN, Classification, Composition, DataSet, Retrieval, read_lines
from synthclip.evaluation.encoder import Encoded
from synthclip.evaluation.features import Features
from synthclip.evaluation.probes import EPISODES, Probe, few_shot, fit_probe, judge_probe
from synthclip.evaluation.results import Evaluation, class_rows
from synthclip.keys import digest
from synthclip.recipe.training import RECALL_AT

TEMPLATE_SETS = ("own", "imagenet-7", "imagenet-80")
"""The data set's own prompts ("a photo of a {}." where it brings none), or OpenAI's short or long list."""


_IMAGENETS = frozenset(name for name in KNOWN if name.startswith("imagenet") or name == "objectnet")


@dataclass(frozen=True)
class Settings:
    templates: str | tuple[str, ...] | None = None
    """One of `TEMPLATE_SETS`, or prompts, for every set; None is the paper's choice, the short list for
    ImageNet and the sets of its classes, and the others' own."""
    episodes: int = EPISODES
    seed: int = 0


def evaluate_zero_shot(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Each test image is given the class whose prompts are nearest."""
    data = _classification(dataset)
    test = _readable(features, data, "test")
    templates, prompts = _templates(data, settings)
    classifier_CD = features.classifier(data.class_names, templates)
    figures, ranked = metrics.zero_shot(test.features_ND, test.labels, classifier_CD, test.groups)
    classes = list(class_rows(data.name, data.class_names, test.labels, ranked))
    notes: tuple[str, ...] = ()
    if data.templates and settings.templates is None and prompts == "imagenet-7":
        notes = (f"prompts are the paper's, {prompts}, not the set's own: --templates own takes those",)
    return Evaluation([(figure, test.names) for figure in figures], classes, test.unreadable, prompts, notes)


def evaluate_retrieval(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Images for each text, and texts for each image."""
    if not isinstance(dataset, Retrieval):
        raise SynthClipError(f"{dataset.name}: has no captions: retrieval needs a set with captions")
    encoded = features.images(dataset.pictures)
    pairs = readable_pairs(dataset, encoded)
    shown, of_text = np.unique(pairs[:, 0], return_inverse=True)
    pairs = np.stack([of_text, pairs[:, 1]], axis=1)
    texts_TD = features.texts(dataset.texts)[shown]
    texts = [f"{text}: {dataset.texts[text]}" for text in shown]
    images = [dataset.pictures.names[image] for image in encoded.kept]
    by_text = metrics.retrieval("image_retrieval", texts_TD, encoded.features, pairs, RECALL_AT)
    captioned, of_image = np.unique(pairs[:, 1], return_inverse=True)
    asked = np.stack([of_image, pairs[:, 0]], axis=1)
    by_image = metrics.retrieval("text_retrieval", encoded.features[captioned], texts_TD, asked, RECALL_AT)
    return Evaluation(
        [
            *((figure, texts) for figure in by_text),
            *((figure, [images[image] for image in captioned]) for figure in by_image),
        ],
        unreadable=_names(dataset.pictures.names, encoded.unreadable),
    )


def readable_pairs(dataset: Retrieval, encoded: Encoded) -> NDArray[np.int64]:
    """The pairs whose image could be read, as (text, row of the features), int64 [P, 2]."""
    pairs = np.stack([dataset.pairs[:, 0], encoded.row[dataset.pairs[:, 1]]], axis=1)
    return pairs[pairs[:, 1] >= 0]


def evaluate_linear_probe(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """A logistic regression on the training split's features; fitted at last on validation images too."""
    import torch

    data = _classification(dataset)
    train, test = (_readable(features, data, split) for split in ("train", "test"))
    features_ND, labels, unreadable = train.features_ND, train.labels, train.unreadable + test.unreadable
    validation = None
    if "val" in data.splits:
        held = _readable(features, data, "val")
        validation = np.arange(len(labels), len(labels) + len(held.labels))
        features_ND = torch.cat([features_ND, held.features_ND])
        labels = np.concatenate([labels, held.labels])
        unreadable += held.unreadable
    classes = len(data.class_names)

    def fit() -> Probe:
        return fit_probe(features_ND, labels, classes=classes, validation=validation)

    probe = features.probe(_fitted_on(data, labels), fit)
    figures = judge_probe(probe, test.features_ND, test.labels)
    return Evaluation([(figure, test.names) for figure in figures], unreadable=unreadable)


def evaluate_few_shot(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Episodes that learn from the training split and are judged on the test split."""
    data = _classification(dataset)
    support, query = (_readable(features, data, split) for split in ("train", "test"))
    figure = few_shot(
        support.features_ND,
        support.labels,
        query.features_ND,
        query.labels,
        episodes=settings.episodes,
        seed=settings.seed,
    )
    names = [f"episode {episode} of seed {settings.seed}" for episode in range(settings.episodes)]
    return Evaluation([(figure, names)], unreadable=support.unreadable + query.unreadable)


def evaluate_composition(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Which caption belongs to which image, where both have nearly the same words: over all items, and by
    kind.

    Scores are Winoground's (arXiv 2204.03162, Section 4.1): text, image and group. With one image an item
    the text score asks that each right caption is nearer than the wrong one; with two right captions the
    text-only score asks the same of texts alone (SugarCrepe++, arXiv 2406.11171, Section 4).
    """
    if not isinstance(dataset, Composition):
        raise SynthClipError(
            f"{dataset.name}: has no captions of exchanged words: composition needs such a set"
        )
    encoded, texts_TD = features.images(dataset.pictures), features.texts(dataset.texts)
    row_NI = encoded.row[dataset.image_NI]
    there = (row_NI >= 0).all(axis=1)
    image_NI, caption_NT = row_NI[there], dataset.caption_NT[there]
    kinds = np.array(dataset.kinds)[there]
    image_NID, text_NTD = encoded.features[image_NI].numpy(), texts_TD[caption_NT].numpy()
    hits = metrics.composition(np.einsum("nid,ntd->nit", image_NID, text_NTD))
    if caption_NT.shape[1] == 3:
        right = np.einsum("nd,nd->n", text_NTD[:, 0], text_NTD[:, 1])
        wrong = np.einsum("nd,ntd->nt", text_NTD[:, 2], text_NTD[:, :2]).max(axis=1)
        hits["text_only_score"] = right > wrong, 1 / 3
    items = zip(np.flatnonzero(there).tolist(), caption_NT[:, 0].tolist(), strict=True)
    names = np.array([f"{item}: {dataset.texts[caption]}" for item, caption in items])
    parts = {"": np.full(len(names), True)}
    if len(set(kinds)) > 1:
        parts |= {f" of {kind}": kinds == kind for kind in sorted(set(kinds) - {""})}
    figures = [
        (metrics.proportion("composition", f"{metric}{said}", found[part], chance), names[part].tolist())
        for said, part in parts.items()
        for metric, (found, chance) in hits.items()
    ]
    return Evaluation(figures, unreadable=_names(dataset.pictures.names, encoded.unreadable))


Evaluator = Callable[[Features, DataSet, Settings], Evaluation]

EVALUATORS: dict[str, Evaluator] = {
    "zero_shot": evaluate_zero_shot,
    "retrieval": evaluate_retrieval,
    "linear_probe": evaluate_linear_probe,
    "few_shot": evaluate_few_shot,
    "composition": evaluate_composition,
}


def able_evaluators(dataset: DataSet) -> tuple[str, ...]:
    """The evaluators that a data set has what it takes for."""
    if isinstance(dataset, Retrieval):
        return ("retrieval",)
    if isinstance(dataset, Composition):
        return ("composition",)
    return ("zero_shot", "linear_probe", "few_shot") if "train" in dataset.splits else ("zero_shot",)


def _classification(dataset: DataSet) -> Classification:
    if isinstance(dataset, Classification):
        return dataset
    raise SynthClipError(
        f"{dataset.name}: has captions and no classes: only {able_evaluators(dataset)[0]} can be evaluated"
    )


class _Readable(NamedTuple):
    """The N images of a split that can be read."""

    features_ND: Any
    labels: NDArray[np.int64]
    names: list[str]
    groups: NDArray[np.int64] | None
    unreadable: tuple[str, ...]
    """The names of the others."""


def _readable(features: Features, data: Classification, split: str) -> _Readable:
    if split not in data.splits:
        raise SynthClipError(f"{data.name}: has no {split} split: only zero-shot can be evaluated")
    held = data.splits[split]
    encoded = features.images(held.pictures)
    names = [held.pictures.names[image] for image in encoded.kept]
    groups = None if held.groups is None else held.groups[encoded.kept]
    unreadable = _names(held.pictures.names, encoded.unreadable)
    return _Readable(encoded.features, held.labels[encoded.kept], names, groups, unreadable)


def _fitted_on(data: Classification, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """What a probe follows from: the images of each split it learns from, and their labels."""
    images = (
        f"{split} {data.splits[split].pictures.digest}" for split in ("train", "val") if split in data.splits
    )
    return (*images, str(len(data.class_names)), digest(labels.tobytes()))


def _names(names: Sequence[str], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(names[position] for position in positions)


def parse_templates(value: str) -> str | tuple[str, ...]:
    """What `--templates` names: one of `TEMPLATE_SETS`, a file with a prompt a line, or prompts with `;`
    between them.
    """
    if value in TEMPLATE_SETS:
        return value
    path = Path(value)
    prompts = read_lines(path) if path.is_file() else tuple(part.strip() for part in value.split(";"))
    if not prompts or any("{}" not in prompt and "{c}" not in prompt for prompt in prompts):
        raise SynthClipError(
            f"--templates {value}: choose one of {', '.join(TEMPLATE_SETS)}, a file with a prompt a line, or "
            "prompts with ; between them, each with {} for the class"
        )
    return prompts


def _templates(data: Classification, settings: Settings) -> tuple[tuple[str, ...], str]:
    """The prompts, and what results call them."""
    choice = settings.templates or ("imagenet-7" if data.name in _IMAGENETS else "own")
    if not isinstance(choice, str):
        return choice, _named(choice)
    if choice == "own":
        own = data.templates or ("a photo of a {}.",)
        return own, _named(own)
    from synthclip.models import open_clip

    long = choice == "imagenet-80"
    made = open_clip.OPENAI_IMAGENET_TEMPLATES if long else open_clip.SIMPLE_IMAGENET_TEMPLATES
    return tuple(template("{}") for template in made), choice


def _named(prompts: Sequence[str]) -> str:
    """A few prompts in full; of many the first, their number and a digest."""
    if len(prompts) <= 3:
        return "; ".join(prompts)
    return f"{prompts[0]}; … ({len(prompts)}, {digest(*prompts)[:8]})"
