"""How often the 95 % intervals of evaluation hold the truth, in simulations where the truth is known.

    python benchmarks/evaluation_coverage.py [--trials 2000]

Of each case the share of trials whose interval covers it; a trial draws new classes, captions and answers.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from synthclip.evaluation.metrics import Interval, mean_per_class, proportion, wilson
from synthclip.evaluation.probes import episode_interval

Trial = Callable[[np.random.Generator], tuple[Interval, float]]
"""An interval, and the truth that it should cover."""

SPREADS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "equal": lambda random, n: np.full(n, random.uniform(0.2, 0.9)),
    "0.2 to 0.9": lambda random, n: random.uniform(0.2, 0.9, n),
    "around 0.5": lambda random, n: random.beta(2, 2, n),
    "mostly low": lambda random, n: random.beta(1, 4, n),
}
"""How the accuracies of classes, or of captions, are spread."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    for name, trial in cases():
        random = np.random.default_rng(0)
        inside = 0
        for _ in range(trials):
            (low, high), truth = trial(random)
            inside += low <= truth <= high
        print(f"{name:62} {inside / trials:6.1%}", flush=True)


def cases() -> Iterator[tuple[str, Trial]]:
    for spread in SPREADS:
        for classes, each in ((30, 1), (300, 1), (30, 2), (300, 2), (30, 5), (300, 5), (30, 15)):
            yield f"mean_per_class, {classes} x {each} images, {spread}", per_class(spread, classes, each)
    for spread in SPREADS:
        yield f"mean_per_class, 50 classes of 1 to 12 images, {spread}", uneven(spread, 50, 12)
        yield (
            f"held-out mean_per_class, 40 x 3 captions of 4, {spread}",
            per_class_of_captions(spread, 40, 3, 4),
        )
    for spread in list(SPREADS)[1:]:
        for captions, images in ((60, 2), (60, 4), (500, 2), (500, 4)):
            for wilsons in (False, True):
                how = ", as if independent" if wilsons else ""
                name = f"held-out recall, {captions} captions x {images} images, {spread}{how}"
                yield name, of_captions(spread, captions, images, wilsons)
    for classes in (20, 100):
        yield f"few-shot, {classes} classes, 2,000 episodes", few_shot(classes, 2000)


def per_class(spread: str, classes: int, each: int) -> Trial:
    """Over these classes."""

    def trial(random: np.random.Generator) -> tuple[Interval, float]:
        truth = SPREADS[spread](random, classes)
        labels = np.repeat(np.arange(classes), each)
        return mean_per_class("", random.random(len(labels)) < truth[labels], labels).interval, truth.mean()

    return trial


def uneven(spread: str, classes: int, most: int) -> Trial:
    def trial(random: np.random.Generator) -> tuple[Interval, float]:
        truth = SPREADS[spread](random, classes)
        labels = np.repeat(np.arange(classes), random.integers(1, most + 1, classes))
        return mean_per_class("", random.random(len(labels)) < truth[labels], labels).interval, truth.mean()

    return trial


def per_class_of_captions(spread: str, classes: int, captions: int, images: int) -> Trial:
    """Images of one caption tend to be right together: a caption's accuracy is drawn around its class's."""

    def trial(random: np.random.Generator) -> tuple[Interval, float]:
        truth = np.clip(SPREADS[spread](random, classes), 0.01, 0.99)
        of_caption = random.beta(2 * truth, 2 * (1 - truth), (captions, classes)).T.ravel()
        groups = np.repeat(np.arange(classes * captions), images)
        hits = random.random(len(groups)) < of_caption[groups]
        return mean_per_class("", hits, groups // captions, groups=groups).interval, truth.mean()

    return trial


def of_captions(spread: str, captions: int, images: int, wilsons: bool) -> Trial:
    """Recall over images, some of one caption; the truth is the mean of endlessly many captions."""
    truth = float(SPREADS[spread](np.random.default_rng(1), 10**6).mean())

    def trial(random: np.random.Generator) -> tuple[Interval, float]:
        groups = np.repeat(np.arange(captions), images)
        hits = random.random(len(groups)) < SPREADS[spread](random, captions)[groups]
        if wilsons:
            return wilson(int(hits.sum()), len(hits)), truth
        return proportion("", "", hits, 0.0, groups).interval, truth

    return trial


def few_shot(classes: int, episodes: int) -> Trial:
    """Each class makes its episodes easier or harder; the truth is the mean over endlessly many classes."""

    def trial(random: np.random.Generator) -> tuple[Interval, float]:
        adds = random.normal(0, 0.03, classes)
        drawn = random.random((episodes, classes)).argpartition(4, axis=1)[:, :5]
        right = np.clip(0.7 + adds[drawn].sum(axis=1), 0, 1)
        return episode_interval(random.binomial(30, right) / 30, drawn), 0.7

    return trial


if __name__ == "__main__":
    main()
