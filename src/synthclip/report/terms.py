"""What the words of a report mean, for readers who were not there."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

_TASKS = {
    "zero_shot": "each image goes to the class whose prompts it is nearest to; nothing is trained for it",
    "image_retrieval": "each caption looks for its image among all of the set",
    "text_retrieval": "each image looks for its caption among all of the set",
    "linear_probe": "a linear classifier is trained on the frozen features of the images",
    "few_shot": "several classes (the ways) are told apart by a few labelled images of each (the shots); the "
    "mean over many draws",
    "composition": "two captions of the same words in another order are told apart by their images",
}
_METRICS = {
    "top1": "the share of images whose right class comes first",
    "top5": "the share of images whose right class is among the first five",
    "mean per class": "the mean of the classes' own shares, so that a class of few images counts as much",
    "R@K": "the share of queries that have a right answer among the first K",
    "text score": "the share of images that are nearer to their own caption than to the exchanged one",
    "image score": "the share of captions that are nearer to their own image",
    "group score": "the share of pairs where both are so",
}
_COLUMNS = {
    "95 % interval": "where the value lies with 95 % confidence, for other items of the same kind",
    "chance": "what guessing reaches",
    "untrained": "what the same architecture reaches with random weights",
    "n": "how many images or captions the value is taken over",
}


def plain(name: str) -> str:
    """A task, metric or data set as it is shown."""
    return name.replace("_", " ")


def explained(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(word, meaning) of the tasks, metrics and columns of these rows of `schema.EVAL_RESULT`."""
    shown = " ".join(plain(str(row["metric"])) for row in results)
    tasks = dict.fromkeys(row["task"] for row in results)
    columns = [name for name in _COLUMNS if name != "untrained" or results[0].get("untrained") is not None]
    return [
        *((plain(task), _TASKS[task]) for task in tasks if task in _TASKS),
        *((metric, said) for metric, said in _METRICS.items() if metric.rstrip("K") in shown),
        *((name, _COLUMNS[name]) for name in columns),
    ]


def by_task(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(data set, task, rows) of neighbouring rows of one task."""
    grouped = groupby(results, key=lambda row: (row["dataset"], row["task"]))
    return [(dataset, task, list(rows)) for (dataset, task), rows in grouped]
