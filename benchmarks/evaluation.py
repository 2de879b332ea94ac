"""Evaluation beside CLIP_benchmark and scikit-learn: equal figures, and how long each takes.

    python benchmarks/evaluation.py [--images 2000] [--train 10000] [--encode 128]

Needs CIFAR-10 as `shared/cifar10/{train,test}.parquet` (see SYNTHCLIP_SHARED) and `clip-benchmark`. Weights
are random but fixed: equality and speed do not depend on what a model knows. Times are CPU seconds of one
thread, ours and theirs alike, so that whatever else runs on the machine does not change them.
"""

import argparse
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from synthclip import torchvision_ops

torchvision_ops.ensure()

import open_clip  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from synthclip.evaluation.encoder import Encoder  # noqa: E402
from synthclip.evaluation.few_shot import draw_episodes, episode_accuracy  # noqa: E402
from synthclip.evaluation.linear_probe import LogisticRegression, choose_strength, linear_probe  # noqa: E402
from synthclip.evaluation.suites import evaluate  # noqa: E402
from synthclip.interop.load import load_model  # noqa: E402

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[2] / "shared")) / "data"

SMALL = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 384, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
}
"""The image tower of open_clip's ViT-S-32 at 64 px and three layers of text, so that thousands of images take
seconds and not minutes on one core."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--train", type=int, default=10_000, help="training images of the probe")
    parser.add_argument("--encode", type=int, default=128, help="images through ViT-B/16")
    parser.add_argument("--only", choices=["equal", "probe", "few-shot", "encode"], help="one part alone")
    chosen = parser.parse_args()
    console = Console(width=120)
    parts: dict[str, Callable[[], Table]] = {
        "equal": lambda: equal_and_battery(chosen.images, chosen.train),
        "probe": lambda: probe(chosen.train),
        "few-shot": few_shot_speed,
        "encode": lambda: encode(chosen.encode),
    }
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for name, part in parts.items():
            if chosen.only in (None, name):
                console.print(part())


def equal_and_battery(images: int, train: int) -> Table:
    """Zero-shot and retrieval of both on the same model and data; then the time of zero-shot with a probe."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification as theirs
    from clip_benchmark.metrics import zeroshot_retrieval

    table = _table("Zero-shot and retrieval", "ours", "CLIP_benchmark", "equal or ratio")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = write_model(root / "model", SMALL)
        write_cifar_tars(root / "data" / "cifar", images, train)
        write_retrieval_tars(root / "data" / "caps", images=400)
        loaded, preprocess, tokenizer = load_model(model)

        def read(name: str, split: str, task: str = "zeroshot_classification") -> Any:
            folder = str(root / "data" / name)
            data = build_dataset(f"wds/{name}", root=folder, transform=preprocess, split=split, task=task)
            loader = torch.utils.data.DataLoader(data.batched(64), batch_size=None, num_workers=0)
            return data, loader

        started = time.process_time()
        data, loader = read("cifar", "test")
        classifier = theirs.zero_shot_classifier(
            loaded, tokenizer, data.classes, data.templates, "cpu", amp=False
        )
        logits, target = theirs.run_classification(loaded, classifier, loader, "cpu", amp=False)
        theirs_top1 = float((logits.argmax(dim=1) == target).double().mean())
        theirs_top5 = float((logits.topk(5)[1] == target[:, None]).any(dim=1).double().mean())
        train_ND, train_labels = clip_benchmark_features(loaded, read("cifar", "train")[1])
        test_MD, _ = clip_benchmark_features(loaded, read("cifar", "test")[1])
        clip_benchmark_probe(train_ND, train_labels)(test_MD)
        battery_theirs = time.process_time() - started
        _, loader = read("caps", "test", "zeroshot_retrieval")
        recall = zeroshot_retrieval.evaluate(
            loaded, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5]
        )

        where: dict[str, Any] = {"data": root / "data", "out": root / "out", "cache": root / "cache"}
        started = time.process_time()
        ours = evaluate(model, "cifar", **where)
        battery_ours = time.process_time() - started
        started = time.process_time()
        evaluate(model, "cifar", **where)
        cached = time.process_time() - started
        caps = evaluate(model, "caps", **where)
        figures = {(row["task"], row["metric"]): row["value"] for row in (*ours.results, *caps.results)}
        for name, mine, other in (
            (f"zero-shot top-1, {images} images", figures["zero_shot", "top1"], theirs_top1),
            (f"zero-shot top-5, {images} images", figures["zero_shot", "top5"], theirs_top5),
            ("image retrieval R@1", figures["image_retrieval", "R@1"], recall["image_retrieval_recall@1"]),
            ("image retrieval R@5", figures["image_retrieval", "R@5"], recall["image_retrieval_recall@5"]),
            ("text retrieval R@1", figures["text_retrieval", "R@1"], recall["text_retrieval_recall@1"]),
            ("text retrieval R@5", figures["text_retrieval", "R@5"], recall["text_retrieval_recall@5"]),
        ):
            same = "equal" if abs(mine - other) < 1e-6 else f"differ by {mine - other:+.6f}"
            table.add_row(name, f"{mine:.5f}", f"{other:.5f}", same)
        table.add_row(
            "battery: zero-shot and probe (ours: few-shot too)",
            f"{battery_ours:.1f} s",
            f"{battery_theirs:.1f} s",
            f"{battery_theirs / battery_ours:.1f}x",
        )
        table.add_row("the same again, from the cache", f"{cached:.1f} s", "-", "")
    return table


def probe(train: int) -> Table:
    """The probe on the same features as scikit-learn's and CLIP_benchmark's."""
    from sklearn.linear_model import LogisticRegression as Sklearn

    table = _table(f"Linear probe on {train} x 384 features", "CPU s", "test top-1", "ratio of time")
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Encoder(*load_model(write_model(Path(scratch), SMALL)), batch_size=64)
        train_pictures, labels = cifar("train", train)
        test_pictures, test_labels = cifar("test", 5000)
        train_ND, test_MD = encoder.images(train_pictures).features, encoder.images(test_pictures).features
    started = time.process_time()
    top1, _ = linear_probe(train_ND, labels, test_MD, test_labels, classes=10)
    ours = time.process_time() - started
    table.add_row("ours: sweep and fit", f"{ours:.1f}", f"{top1.value:.4f}", "1")

    scale = train_ND.var(dim=0).mean().rsqrt()
    validation = np.arange(0, train, 5, dtype=np.int64)
    l2 = choose_strength(train_ND * scale, labels, validation, 10)
    started = time.process_time()
    fitted = LogisticRegression(train_ND * scale, labels, 10).fit(l2)
    once = time.process_time() - started
    accuracy = float((fitted.predict(test_MD * scale) == test_labels).mean())
    table.add_row(f"ours: one fit, l2 {l2:.2g}", f"{once:.2f}", f"{accuracy:.4f}", "")
    started = time.process_time()
    sklearn = Sklearn(C=1 / (l2 * train), tol=1e-6, max_iter=10_000)
    sklearn.fit((train_ND * scale).double().numpy(), labels)
    seconds = time.process_time() - started
    theirs = sklearn.score((test_MD * scale).double().numpy(), test_labels)
    table.add_row(
        "scikit-learn: one fit, converged", f"{seconds:.2f}", f"{theirs:.4f}", f"{seconds / once:.1f}x"
    )

    started = time.process_time()
    predict = clip_benchmark_probe(train_ND, torch.from_numpy(labels))
    seconds = time.process_time() - started
    theirs = float((predict(test_MD) == test_labels).mean())
    table.add_row(
        "CLIP_benchmark: sweep and fit", f"{seconds:.1f}", f"{theirs:.4f}", f"{seconds / ours:.1f}x"
    )
    return table


def few_shot_speed() -> Table:
    """All episodes at once beside a loop over episodes."""
    table = _table("Few-shot, 100 classes, 512 features", "episodes", "CPU s", "mean accuracy")
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


def encode(images: int) -> Table:
    """ViT-B/16 from JPEG bytes to features beside the bare forward, then the command with all cached."""
    table = _table(f"ViT-B/16, {images} CIFAR-10 images", "images/CPU s", "of the bare forward", "CPU s")
    batch = 32
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = write_model(root / "model", open_clip.get_model_config("ViT-B-16"))
        model, preprocess, tokenizer = load_model(folder)
        pictures, _ = cifar("test", images)
        pixels_N3HW = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures])
        with torch.inference_mode():
            model.encode_image(pixels_N3HW[:batch], normalize=True)
            started = time.process_time()
            for chunk in pixels_N3HW.split(batch):
                model.encode_image(chunk, normalize=True)
        bare = images / (time.process_time() - started)
        encoder = Encoder(model, preprocess, tokenizer, batch_size=batch)
        started = time.process_time()
        encoder.images(pictures)
        ours = images / (time.process_time() - started)
        table.add_row("bare forward, pixels at hand", f"{bare:.2f}", "100 %", "")
        table.add_row("ours, from JPEG bytes", f"{ours:.2f}", f"{ours / bare:.1%}", "")
        write_cifar_tars(root / "data" / "cifar", images, 0)
        command = [sys.executable, "-c", "from synthclip.cli import main; main()", "eval", str(folder)]
        command += ["--suite", "cifar", "--data", str(root / "data"), "--cache", str(root / "cache")]
        command += ["--out", str(root / "out")]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        for told in ("the command, first time", "the command, features cached"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True, env=one_thread)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            table.add_row(told, "", "", f"{spent:.1f} s")
    return table


def clip_benchmark_features(model: Any, loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Its `Featurizer` over a loader, as its probe does it."""
    from clip_benchmark.metrics.linear_probe import Featurizer

    featurizer = Featurizer(model)
    with torch.no_grad():
        rows = [(featurizer(images), target) for images, target in loader]
    return torch.cat([features for features, _ in rows]), torch.cat([target for _, target in rows])


def clip_benchmark_probe(
    train_ND: torch.Tensor, labels: torch.Tensor
) -> Callable[[torch.Tensor], np.ndarray]:
    """Its sweep and final fit, on the CPU: its code asks for CUDA in words, which are made to do nothing."""
    import contextlib
    import io as text_io

    from clip_benchmark.metrics import linear_probe as theirs

    def here(self: Any, *_: Any, **__: Any) -> Any:
        return self

    torch.nn.Module.cuda = torch.Tensor.cuda = here  # type: ignore[method-assign]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[::5] = True

    def loader(rows: torch.Tensor) -> Any:
        return torch.utils.data.DataLoader(
            theirs.FeatureDataset(train_ND[rows], labels[rows]), batch_size=64, shuffle=True
        )

    strengths = np.logspace(-6, 2, num=97).tolist()
    first = [index for index, value in enumerate(strengths) if value in np.logspace(-6, 2, num=7).tolist()]
    given = (train_ND.shape[1], 10, 0.1, 10, False, "cpu", False, 0)

    def accuracy(output: torch.Tensor, target: torch.Tensor, topk: Any = (1,)) -> list[float]:
        return [float((output.argmax(dim=1) == target).double().mean())]

    theirs.accuracy = accuracy  # its own does not run on NumPy 2.4
    quiet = text_io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        fit, held_out = loader(~held), loader(held)
        peak = theirs.find_peak(strengths, first, fit, held_out, *given)
        step = 8
        while step > 0:
            around = [max(peak - step, 0), peak, min(peak + step, len(strengths) - 1)]
            peak = theirs.find_peak(strengths, around, fit, held_out, *given)
            step //= 2
        everything = loader(torch.ones_like(held))
        model = theirs.train(everything, given[0], 10, strengths[peak], 0.1, 10, False, "cpu", 0)
    return lambda features: model(features).argmax(dim=1).detach().numpy()


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """An open_clip folder with random weights of a fixed seed."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**config)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    return folder


WEIGHTS = "open_clip_model.safetensors"


def cifar(split: str, images: int) -> tuple[list[bytes], np.ndarray]:
    path = SHARED / "cifar10" / f"{split}.parquet"
    if not path.is_file():
        sys.exit(f"{path} is not there: set SYNTHCLIP_SHARED")
    table = pq.read_table(path).slice(0, images)
    return [row["bytes"] for row in table["image"].to_pylist()], table["label"].to_numpy().astype(np.int64)


def write_cifar_tars(folder: Path, test: int, train: int) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    folder.mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na bad photo of a {c}.")
    for split, images in (("test", test), ("train", train)):
        if images:
            pictures, labels = cifar(split, images)
            members: dict[str, bytes] = {}
            for row, (data, label) in enumerate(zip(pictures, labels, strict=True)):
                members |= {f"{row:05d}.cls": str(label).encode(), f"{row:05d}.jpg": data}
            write_tar(folder / split, members)


def write_retrieval_tars(folder: Path, images: int) -> None:
    """CIFAR-10 images with five real captions each, which have nothing to do with them."""
    with gzip.open(SHARED / "captions" / "flickr8k-captions.txt.gz", "rt", encoding="utf-8") as handle:
        lines = handle.read().splitlines()[: 5 * images]
    members: dict[str, bytes] = {}
    for row, data in enumerate(cifar("test", images)[0]):
        members |= {
            f"{row:05d}.jpg": data,
            f"{row:05d}.txt": "\n".join(lines[5 * row : 5 * row + 5]).encode(),
        }
    write_tar(folder / "test", members)
    (folder / "dataset_type.txt").write_text("retrieval")


def write_tar(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text("1")
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _table(title: str, *columns: str) -> Table:
    table = Table("", title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    main()
