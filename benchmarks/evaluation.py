"""Evaluation beside CLIP_benchmark, scikit-learn and plain loops: equal figures, and how long each takes.

    python benchmarks/evaluation.py [equal] [probe] [few-shot] [--images 2000] [--train 10000]

Needs CIFAR-10 (see evaluation_inputs.py) and `clip-benchmark`. Weights are random but fixed: whether two
programs agree does not depend on what a model knows. Times are CPU seconds of one thread, ours and theirs
alike, so that whatever else runs on the machine hardly changes them. Speed of the whole: evaluation_speed.py.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from synthclip.models import torchvision  # noqa: F401  makes it importable

# isort: split
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from sklearn.linear_model import LogisticRegression as Sklearn
from threadpoolctl import threadpool_limits

import evaluation_clip_benchmark as theirs
from evaluation_inputs import (
    SMALL,
    cifar,
    new_table,
    write_cifar_tars,
    write_model,
    write_retrieval_tars,
)
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.probes import (
    LogisticRegression,
    choose_strength,
    draw_episodes,
    episode_accuracy,
    fit_probe,
)
from synthclip.evaluation.suites import evaluate
from synthclip.models.load import load_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parts: dict[str, Callable[[], Table]] = {
        "equal": lambda: equal(chosen.images),
        "probe": lambda: probe(chosen.train),
        "few-shot": few_shot_speed,
    }
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--images", type=int, default=2000, help="test images of `equal`")
    parser.add_argument("--train", type=int, default=10_000, help="training images of `probe`")
    chosen = parser.parse_args()
    theirs.allow_cpu()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for name in chosen.parts or parts:
            Console(width=120).print(parts[name]())


def equal(images: int) -> Table:
    """Zero-shot and retrieval of both on the same model and data."""
    table = new_table("Zero-shot and retrieval", "ours", "CLIP_benchmark", "")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = write_model(root / "model", SMALL)
        write_cifar_tars(root / "data" / "cifar", test=images)
        write_retrieval_tars(root / "data" / "caps", images=400)
        found = evaluate(model, "cifar,caps", data=root / "data", out=root / "out", cache=root / "cache")
        ours = {(row["task"], row["metric"]): row["value"] for row in found.results}
        loaded, preprocess, tokenizer = load_model(model)

        def read(name: str, task: str) -> Any:
            folder = str(root / "data" / name)
            data = build_dataset(f"wds/{name}", root=folder, transform=preprocess, split="test", task=task)
            return data, torch.utils.data.DataLoader(data.batched(64), batch_size=None)

        data, loader = read("cifar", "zeroshot_classification")
        classes = zeroshot_classification.evaluate(
            loaded, loader, tokenizer, data.classes, data.templates, "cpu", amp=False
        )
        _, loader = read("caps", "zeroshot_retrieval")
        recall = zeroshot_retrieval.evaluate(
            loaded, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5]
        )
    for task, metric, other in (
        ("zero_shot", "top1", classes["acc1"]),
        ("zero_shot", "top5", classes["acc5"]),
        ("zero_shot", "mean_per_class", classes["mean_per_class_recall"]),
        *(
            (f"{kind}_retrieval", f"R@{k}", recall[f"{kind}_retrieval_recall@{k}"])
            for kind in ("image", "text")
            for k in (1, 5)
        ),
    ):
        mine = ours[task, metric]
        same = "equal" if abs(mine - other) < 1e-6 else f"differ by {mine - other:+.6f}"
        of = f"{images} images" if task == "zero_shot" else "400 images, 2000 captions"
        table.add_row(f"{task} {metric}, {of}", f"{mine:.5f}", f"{other:.5f}", same)
    return table


def probe(train: int) -> Table:
    """The probe on the same features as scikit-learn's and CLIP_benchmark's."""
    table = new_table(f"Linear probe on {train} x 384 features", "CPU s", "test top-1", "ratio of time")
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Encoder(*load_model(write_model(Path(scratch), SMALL)), batch_size=64)
        train_pictures, labels = cifar("train", train)
        test_pictures, test_labels = cifar("test", 5000)
        train_ND, test_MD = encoder.images(train_pictures).features, encoder.images(test_pictures).features
    validation = np.arange(0, train, 5, dtype=np.int64)

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        started = time.process_time()
        made = work()
        return made, time.process_time() - started

    fitted, ours = timed(lambda: fit_probe(train_ND, labels, classes=10, validation=validation))
    accuracy = float((fitted.predict(test_MD) == test_labels).mean())
    table.add_row("ours: sweep and fit", f"{ours:.1f}", f"{accuracy:.4f}", "1")

    def clip_benchmark() -> Any:
        held = np.zeros(train, bool)
        held[validation] = True
        rows = {"train": ~held, "val": held}
        splits = {name: (train_ND[mask], torch.from_numpy(labels[mask])) for name, mask in rows.items()}
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            return theirs.probe({**splits, "test": (test_MD, torch.from_numpy(test_labels))})

    found, seconds = timed(clip_benchmark)
    table.add_row(
        "CLIP_benchmark: sweep and fit", f"{seconds:.1f}", f"{found['lp_acc1']:.4f}", f"{seconds / ours:.1f}x"
    )

    scaled_ND, scaled_MD = (features * train_ND.var(dim=0).mean().rsqrt() for features in (train_ND, test_MD))
    l2 = choose_strength(scaled_ND, labels, validation, 10)
    fitted, once = timed(lambda: LogisticRegression(scaled_ND, labels, 10).fit(l2))
    accuracy = float((fitted.predict(scaled_MD) == test_labels).mean())
    table.add_row(f"ours: one fit, l2 {l2:.2g}", f"{once:.2f}", f"{accuracy:.4f}", "1")
    sklearn = Sklearn(C=1 / (l2 * train), tol=1e-6, max_iter=10_000)
    _, seconds = timed(lambda: sklearn.fit(scaled_ND.double().numpy(), labels))
    accuracy = sklearn.score(scaled_MD.double().numpy(), test_labels)
    table.add_row(
        "scikit-learn: one fit, converged", f"{seconds:.2f}", f"{accuracy:.4f}", f"{seconds / once:.1f}x"
    )
    return table


def few_shot_speed() -> Table:
    """All episodes at once beside a loop over episodes."""
    table = new_table("Few-shot, 100 classes, 512 features", "episodes", "CPU s", "mean accuracy")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 60)
    centres = random.normal(size=(100, 512))
    support_ND, query_MD = (
        torch.from_numpy(centres[labels] + 4 * random.normal(size=(6000, 512))).float() for _ in range(2)
    )
    for episodes in (500, 5000):
        started = time.process_time()
        support, query = draw_episodes(labels, labels, episodes=episodes, seed=0)
        fast = episode_accuracy(support_ND, query_MD, support, query)
        table.add_row("ours", str(episodes), f"{time.process_time() - started:.2f}", f"{fast.mean():.6f}")
        started = time.process_time()
        slow = []
        for chosen, asked in zip(support, query, strict=True):
            shots, queries = support_ND[chosen], query_MD[asked]
            centre = shots.mean(dim=(0, 1))
            means = torch.nn.functional.normalize(shots - centre, dim=-1).mean(dim=1)
            unit = torch.nn.functional.normalize(queries - centre, dim=-1)
            distance = (unit[:, :, None] - means).norm(dim=-1)
            slow.append(float((distance.argmin(dim=-1) == torch.arange(5)[:, None]).double().mean()))
        same = "equal" if np.allclose(slow, fast, atol=1e-12) else "differs"
        seconds = time.process_time() - started
        table.add_row("a loop", str(episodes), f"{seconds:.2f}", f"{np.mean(slow):.6f}, {same}")
    return table


if __name__ == "__main__":
    main()
