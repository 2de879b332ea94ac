"""Fetching and pushing against a hub on loopback, through the command line as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import numpy as np
import official_data
import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from synthclip.imagegen.imported import import_synthci

_SYNTHCI = "datasets/hammh0a/SynthCLIP"
_CSV = f"SynthCI-30/{official_data.CSV_NAME}"


@pytest.fixture
def hub() -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as running:
        yield running


@pytest.fixture
def official(hub: fake_hub.FakeHub, tmp_path: Path) -> dict[str, bytes]:
    """Three zips and the CSV on the hub; the third zip is several of the client's chunks of 10 MiB long."""
    root = tmp_path / "official"
    official_data.write_plain(root, zips=2, images=3)
    official_data.write_zip(root, 2, {"2/big": np.random.default_rng(0).bytes(24_000_000)})
    files = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    files["README.md"] = b"# The data"
    hub.files[_SYNTHCI] = files
    return files


def _synthclip(
    hub: fake_hub.FakeHub, home: Path, *arguments: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")}
    if token is not None:
        environment["HF_TOKEN"] = token
    command = Path(sys.executable).with_name("synthclip")
    return subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_fetch_some_parts_then_all_and_import(
    hub: fake_hub.FakeHub, official: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "fetched"
    done = _synthclip(hub, tmp_path, "fetch", "synthci", "--out", str(out), "--part", "1")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (out / "SynthCI-30").rglob("*.*")} == {"1.zip", official_data.CSV_NAME}
    assert (out / _CSV).read_bytes() == official[_CSV]
    assert import_synthci(out, tmp_path / "shards", workers=0).rows_without_zip == 3

    hub.served.clear()
    done = _synthclip(hub, tmp_path, "fetch", "synthci", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert sorted(path for path, _, _ in hub.served) == [f"SynthCI-30/data/{n}.zip" for n in (0, 2)]
    for name in (f"SynthCI-30/data/{n}.zip" for n in range(3)):
        assert (out / name).read_bytes() == official[name]


def test_fetch_goes_on_where_it_was_cut(
    hub: fake_hub.FakeHub, official: dict[str, bytes], tmp_path: Path
) -> None:
    name = "SynthCI-30/data/2.zip"
    hub.cut_after[name] = 15_000_000
    out = tmp_path / "fetched"
    for _ in range(2):  # the client may go on by itself, or only when it is called again
        done = _synthclip(hub, tmp_path, "fetch", "synthci", "--out", str(out), "--part", "2")
        assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert (out / name).read_bytes() == official[name]
    starts = [start for path, start, _ in hub.served if path == name]
    assert starts[0] == 0
    assert starts[1] > 0


def test_fetch_tells_what_is_wrong(hub: fake_hub.FakeHub, official: dict[str, bytes], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = _synthclip(hub, tmp_path, "fetch", "synthci", "--out", out, "--part", "99")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no 99.zip; its parts are 0, 1, 2" in done.stderr
    hub.files.clear()
    done = _synthclip(hub, tmp_path, "fetch", "synthci", "--out", out)
    assert done.returncode == 2
    assert "not found on the hub" in done.stderr


def test_push_images_with_a_card(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=2, images=3)
    shards = tmp_path / "shards"
    import_synthci(tmp_path / "in", shards, workers=0)
    done = _synthclip(hub, tmp_path, "push", "images", str(shards), "me/birds", token="hf_x")
    assert done.returncode == 0, done.stderr
    pushed = hub.files["datasets/me/birds"]
    train = shards / "images" / "train"
    assert {name: data for name, data in pushed.items() if name != "README.md"} == {
        f"train/{path.name}": path.read_bytes() for path in train.iterdir()
    }
    card = pushed["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "train/*.tar"}]
    assert header["size_categories"] == ["n<1K"]
    assert "synthetic" not in header["tags"], "what the zips hold is not known here"
    assert "The images were imported as SynthCI-30M; this run did not make them." in card
    assert "| images | 6 | none |" in card
    assert "SynthCI-30M" in card


def test_push_model_with_a_card(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "width": 64, "heads": 1, "layers": 1},
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    done = _synthclip(hub, tmp_path, "push", "model", str(folder), "me/small", token="hf_x")
    assert done.returncode == 0, done.stderr
    pushed = hub.files["models/me/small"]
    assert pushed.keys() == {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
    weights = tmp_path / "pushed.safetensors"
    weights.write_bytes(pushed["open_clip_model.safetensors"])
    theirs, ours = load_file(weights), load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    card = pushed["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "open_clip"
    assert 'create_model_and_transforms("hf-hub:me/small")' in card


def test_push_that_the_hub_refuses(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=1, images=1)
    import_synthci(tmp_path / "in", tmp_path / "shards", workers=0)
    hub.token = "hf_right"
    done = _synthclip(hub, tmp_path, "push", "images", str(tmp_path / "shards"), "me/birds", token="hf_wrong")
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.files
    done = _synthclip(hub, tmp_path, "push", "images", str(tmp_path), "me/birds", token="hf_right")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no images to push" in done.stderr
