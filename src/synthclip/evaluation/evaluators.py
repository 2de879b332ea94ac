"""The tasks a model is judged by, found by name: each makes figures of one data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation import metrics
from synthclip.evaluation.data import Classification, DataSet, Retrieval
from synthclip.evaluation.encoder import Encoded, Features
from synthclip.evaluation.probes import EPISODES, Probe, few_shot, fit_probe, judge_probe
from synthclip.evaluation.results import Evaluation, class_rows
from synthclip.keys import digest
from synthclip.recipe.training import RECALL_AT

TEMPLATE_SETS = ("own", "imagenet-7", "imagenet-80")
"""The data set's own prompts ("a photo of a {}." where it brings none), or OpenAI's short or long list."""


@dataclass(frozen=True)
class Settings:
    templates: str | None = None
    """One of `TEMPLATE_SETS` for every set; None is the paper's choice, the short list for ImageNet and its
    kin, and the others' own."""
    episodes: int = EPISODES
    seed: int = 0


def evaluate_zero_shot(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Each test image is given the class whose prompts are nearest."""
    data = _classification(dataset)
    test_ND, labels, names, unreadable = _split(features, data, "test")
    classifier_CD = features.classifier(data.class_names, _templates(data, settings))
    figures, ranked = metrics.zero_shot(test_ND, labels, classifier_CD)
    classes = list(class_rows(data.name, data.class_names, labels, ranked))
    return Evaluation([(figure, names) for figure in figures], classes, unreadable)


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
    row = np.full(len(dataset.pictures), -1, np.int64)
    row[encoded.kept] = np.arange(len(encoded.kept))
    pairs = np.stack([dataset.pairs[:, 0], row[dataset.pairs[:, 1]]], axis=1)
    return pairs[pairs[:, 1] >= 0]


def evaluate_linear_probe(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """A logistic regression on the training split's features; fitted at last on validation images too."""
    import torch

    data = _classification(dataset)
    train_ND, labels, _, unreadable = _split(features, data, "train")
    validation = None
    if "val" in data.splits:
        held_VD, held_labels, _, more = _split(features, data, "val")
        validation = np.arange(len(labels), len(labels) + len(held_labels))
        train_ND, labels = torch.cat([train_ND, held_VD]), np.concatenate([labels, held_labels])
        unreadable += more
    test_MD, test_labels, names, more = _split(features, data, "test")
    classes = len(data.class_names)

    def fit() -> Probe:
        return fit_probe(train_ND, labels, classes=classes, validation=validation)

    figures = judge_probe(features.probe(_fitted_on(data, labels), fit), test_MD, test_labels)
    return Evaluation([(figure, names) for figure in figures], unreadable=unreadable + more)


def evaluate_few_shot(features: Features, dataset: DataSet, settings: Settings) -> Evaluation:
    """Episodes that learn from the training split and are judged on the test split."""
    data = _classification(dataset)
    support_ND, support_labels, _, unreadable = _split(features, data, "train")
    query_MD, query_labels, _, more = _split(features, data, "test")
    figure = few_shot(
        support_ND,
        support_labels,
        query_MD,
        query_labels,
        episodes=settings.episodes,
        seed=settings.seed,
    )
    names = [f"episode {episode} of seed {settings.seed}" for episode in range(settings.episodes)]
    return Evaluation([(figure, names)], unreadable=unreadable + more)


Evaluator = Callable[[Features, DataSet, Settings], Evaluation]

EVALUATORS: dict[str, Evaluator] = {
    "zero_shot": evaluate_zero_shot,
    "retrieval": evaluate_retrieval,
    "linear_probe": evaluate_linear_probe,
    "few_shot": evaluate_few_shot,
}


def able_evaluators(dataset: DataSet) -> tuple[str, ...]:
    """The evaluators that a data set has what it takes for."""
    if isinstance(dataset, Retrieval):
        return ("retrieval",)
    return ("zero_shot", "linear_probe", "few_shot") if "train" in dataset.splits else ("zero_shot",)


def _classification(dataset: DataSet) -> Classification:
    if isinstance(dataset, Classification):
        return dataset
    raise SynthClipError(f"{dataset.name}: has captions and no classes: only retrieval can be evaluated")


def _split(
    features: Features, data: Classification, split: str
) -> tuple[Any, Any, list[str], tuple[str, ...]]:
    """Features [N, D], labels [N] and names of the images that can be read, and the names of the others."""
    if split not in data.splits:
        raise SynthClipError(f"{data.name}: has no {split} split: only zero-shot can be evaluated")
    held = data.splits[split]
    encoded = features.images(held.pictures)
    names = [held.pictures.names[image] for image in encoded.kept]
    labels = held.labels[encoded.kept]
    return encoded.features, labels, names, _names(held.pictures.names, encoded.unreadable)


def _fitted_on(data: Classification, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """What a probe follows from: the images of each split it learns from, and their labels."""
    images = (
        f"{split} {data.splits[split].pictures.digest}" for split in ("train", "val") if split in data.splits
    )
    return (*images, str(len(data.class_names)), digest(labels.tobytes()))


def _names(names: Sequence[str], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(names[position] for position in positions)


def _templates(data: Classification, settings: Settings) -> tuple[str, ...]:
    kin = data.name.startswith("imagenet") or data.name == "objectnet"
    choice = settings.templates or ("imagenet-7" if kin else "own")
    if choice == "own":
        return data.templates or ("a photo of a {}.",)
    from synthclip.models import open_clip

    if choice == "imagenet-80":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)
