"""Evaluation sets fetched by name from a hub on loopback."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import numpy as np
import pytest

pytestmark = pytest.mark.slow

_REPOSITORY = "datasets/clip-benchmark/wds_vtab-fruit"
_SCRIPT = """
import sys
from pathlib import Path
from synthclip.errors import SynthClipError
from synthclip.evaluation.data import open_dataset
try:
    dataset = open_dataset(sys.argv[1], Path(sys.argv[2]), download=True)
except SynthClipError as error:
    sys.exit(str(error))
print(dataset.class_names, dataset.splits["test"].labels.tolist(), dataset.splits["train"].labels.tolist())
"""


@pytest.fixture
def hub() -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as running:
        yield running


def tar(labels: list[int], image_bytes: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for number, label in enumerate(labels):
            image = np.random.default_rng(number).bytes(image_bytes)
            for name, data in ((f"{number}.cls", str(label).encode()), (f"{number}.jpg", image)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fetch(hub: fake_hub.FakeHub, tmp_path: Path, name: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", _SCRIPT, name, str(tmp_path / "data")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_set_is_fetched_by_name_once(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    large = tar([2, 0], 15_000_000)
    hub.files[_REPOSITORY] = {
        "classnames.txt": b"apple\nbus\nhot dog\n",
        "zeroshot_classification_templates.txt": b"a photo of {c}.\n",
        "train/0.tar": tar([0, 1], 100),
        "test/nshards.txt": b"1",
        "test/0.tar": large,
        "README.md": b"# Fruit",
    }
    hub.cut_after["test/0.tar"] = 12_000_000
    first = fetch(hub, tmp_path, "wds/vtab/fruit")
    if first.returncode:
        assert "run again to resume" in first.stderr
        first = fetch(hub, tmp_path, "wds/vtab/fruit")
    assert first.stdout.strip() == "('apple', 'bus', 'hot dog') [2, 0] [0, 1]", first.stderr
    starts = [start for path, start, _ in hub.served if path == "test/0.tar"]
    assert starts[0] == 0
    assert starts[-1] > 0, "the second try went on where the first broke off"
    assert (tmp_path / "data" / "wds_vtab-fruit" / "test" / "0.tar").read_bytes() == large
    assert not (tmp_path / "data" / "wds_vtab-fruit" / "README.md").exists()
    before = len(hub.served)
    assert fetch(hub, tmp_path, "wds/vtab/fruit").stdout == first.stdout
    assert len(hub.served) == before


def test_a_set_that_the_hub_lacks_is_one_line(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    result = fetch(hub, tmp_path, "wds/vtab/cheese")
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("wds/vtab/cheese: cannot be fetched from clip-benchmark/wds_vtab-cheese")
    assert "put the data into" in lines[-1]
