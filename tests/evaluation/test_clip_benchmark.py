"""A model folder of ours judged by CLIP_benchmark's own command, beside our figures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from heldout_run import picture
from test_datasets import tar_of

from synthclip.evaluation.suites import evaluate

pytestmark = pytest.mark.slow

pytest.importorskip("clip_benchmark", reason="needs the extra `bench`")

# Once for all data sets: it starts with many imports. Its `accuracy` turns one-element arrays into floats,
# which NumPy 2.4 refuses; this one means the same.
COMMAND = """
import json, sys
from synthclip.models import torchvision
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification

def accuracy(output, target, topk=(1,)):
    best = output.topk(max(topk), dim=1)[1] == target[:, None]
    return [float(best[:, :k].any(dim=1).double().mean()) for k in topk]

zeroshot_classification.accuracy = accuracy
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    cli.main()
"""


def clip_benchmark(model: Path, tasks: dict[Path, str]) -> list[dict[str, Any]]:
    """Its metrics of each data set's task."""
    arguments = []
    for data, task in tasks.items():
        one = ["eval", "--model_type", "open_clip", "--model", f"local-dir:{model}", "--pretrained", ""]
        one += ["--dataset", f"wds/{data.name}", "--dataset_root", str(data), "--task", task, "--no_amp"]
        one += ["--num_workers", "0", "--recall_k", "1", "5", "--output", f"{data}.json"]
        arguments.append(one)
    command = [sys.executable, "-c", COMMAND, json.dumps(arguments)]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads(Path(f"{data}.json").read_text())["metrics"] for data in tasks]


def test_figures_are_equal(model_folder: Path, tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(8)]
    things = tmp_path / "things"
    members: dict[str, bytes] = {}
    for number in range(64):
        members[f"{number:02d}.cls"] = str(number * 5 % 8).encode()
        members[f"{number:02d}.jpg"] = picture(number)
    tar_of(things / "test" / "0.tar", members)
    (things / "test" / "nshards.txt").write_text("1")
    (things / "classnames.txt").write_text("\n".join(names))
    (things / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    caps = tmp_path / "caps"
    members = {}
    for number in range(64):
        members[f"{number:02d}.jpg"] = picture(number)
        members[f"{number:02d}.txt"] = "\n".join(f"text {number} {n}" for n in range(number % 3 + 1)).encode()
    tar_of(caps / "test" / "0.tar", members)
    (caps / "test" / "nshards.txt").write_text("1")
    (caps / "dataset_type.txt").write_text("retrieval")

    found = evaluate(model_folder, "things,caps", data=tmp_path, out=tmp_path, cache=tmp_path / "cache")
    ours = {(row["task"], row["metric"]): row["value"] for row in found.results}
    classes, recall = clip_benchmark(
        model_folder, {things: "zeroshot_classification", caps: "zeroshot_retrieval"}
    )
    assert ours["zero_shot", "top1"] == pytest.approx(classes["acc1"], abs=1e-6)
    assert ours["zero_shot", "top5"] == pytest.approx(classes["acc5"], abs=1e-6)
    assert ours["zero_shot", "mean_per_class"] == pytest.approx(classes["mean_per_class_recall"], abs=1e-6)
    for task in ("image_retrieval", "text_retrieval"):
        for k in (1, 5):
            assert ours[task, f"R@{k}"] == pytest.approx(recall[f"{task}_recall@{k}"], abs=1e-6)
