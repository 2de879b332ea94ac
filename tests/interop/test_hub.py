"""Fetching and pushing against a hub on loopback, through the command line as a user does."""

import json
import os
import re
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
from image_runs import CAPTIONS, make_images, recipe_of, selected
from safetensors.torch import load_file, save, save_file

from synthclip.errors import SynthClipError
from synthclip.imagegen.imported import import_synthci
from synthclip.imagegen.seeds import materialize
from synthclip.interop import hub as interop_hub
from synthclip.interop.seeds import export_seeds
from synthclip.models.build import build_model
from synthclip.models.load import load_model
from synthclip.models.weights import to_official
from synthclip.recipe.training import PAPER_MODEL, ModelConfig

pytestmark = pytest.mark.slow

_SYNTHCI = "datasets/hammh0a/SynthCLIP"
_CARDS = ("README.md", "croissant.json")
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


@pytest.fixture
def in_process(hub: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client in this process talks to the hub, for what is not about the command line."""
    file = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_x")


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
    assert {name: data for name, data in pushed.items() if name not in _CARDS} == {
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


def _official_state() -> dict[str, torch.Tensor]:
    """Small in bytes on disk only by being expanded: every weight of the paper's model, all of one value."""
    with torch.device("meta"):
        shapes = to_official(build_model(ModelConfig(name=PAPER_MODEL)).state_dict())
    return {name: torch.full(value.shape, 0.5, dtype=value.dtype) for name, value in shapes.items()}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("layout", ["official", "safetensors"])
def test_fetch_a_model_by_name_whatever_its_files_are_called(
    hub: fake_hub.FakeHub, tmp_path: Path, layout: str
) -> None:
    state = _official_state()
    path = tmp_path / "weights"
    if layout == "official":
        torch.save({"epoch": 1, "state_dict": {f"module.{key}": state[key] for key in state}}, path)
    else:
        save_file({f"_orig_mod.{key}": state[key] for key in state}, path)
    name = "run/synthci-30m.pt" if layout == "official" else "model.safetensors"
    hub.files["models/hammh0a/SynthCLIP-30M"] = {name: path.read_bytes(), "README.md": b"#"}
    hub.collection = ["hammh0a/SynthCLIP-10M", "hammh0a/SynthCLIP-30M"]
    fetched = interop_hub.fetch_model("synthclip_30m", tmp_path / "m")
    assert fetched == tmp_path / "m" / "checkpoint_best.pt"
    model = load_model(fetched).model
    assert float(model.token_embedding.weight.detach().mean()) == 0.5
    assert not (tmp_path / "m" / "README.md").exists()


@pytest.mark.usefixtures("in_process")
def test_a_model_that_is_not_known_is_one_line(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    hub.collection = ["hammh0a/SynthCLIP-10M"]
    hub.files["models/me/empty"] = {"config.json": b"{}"}
    hub.files["models/me/other"] = {"model.safetensors": save({"weight": torch.zeros(2)})}
    for name, reason in (
        ("SynthCLIP-99M", "not among the official models on the hub (SynthCLIP-10M)"),
        ("me/empty", "holds no weights that can be read"),
        ("me/absent", "not found on the hub"),
    ):
        with pytest.raises(SynthClipError, match=re.escape(reason)) as error:
            interop_hub.fetch_model(name, tmp_path / name)
        assert "\n" not in str(error.value)
    done = _synthclip(hub, tmp_path, "fetch", "model", "me/other", "--out", str(tmp_path / "other"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    # What comes before shows the download.
    assert "not the weights of synthclip-vitb16" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("in_process")
def test_many_tars_are_several_commits(
    hub: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interop_hub, "_FILES_A_COMMIT", 3)
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(7):
        (folder / f"{number}.tar").write_bytes(bytes([number]))
    interop_hub._push("me/many", "dataset", folder.parent, ["train/*.tar"], {"README.md": "#"}, private=False)
    assert [len(files) for files in hub.commits] == [1, 3, 3, 1]
    assert len(hub.files["datasets/me/many"]) == 8


@pytest.mark.usefixtures("in_process")
def test_seeds_go_to_the_hub_and_come_back_to_be_painted(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    run = selected(tmp_path / "run", CAPTIONS[:3])
    run.write_stage_values("images", make_images(run, recipe_of("engine.workers=0")).values)
    export_seeds(run.path, tmp_path / "seeds")
    interop_hub.push_seeds(tmp_path / "seeds", "me/seeds")
    pushed = hub.files["datasets/me/seeds"]
    assert pushed.keys() == {"README.md", "recipe.yaml", "seeds.json", "seeds/train/00000.parquet"}
    card = pushed["README.md"].decode()
    assert "6 images as what they are painted from" in card
    assert "CC-BY-SA-4.0 (OpenMoji) |" in card
    files = [{"split": "train", "path": "seeds/train/*.parquet"}]
    assert yaml.safe_load(card.split("---")[1])["configs"][0]["data_files"] == files

    fetched = tmp_path / "fetched"
    done = _synthclip(hub, tmp_path, "fetch", "seeds", "me/seeds", "--out", str(fetched))
    assert done.returncode == 0, done.stderr
    [train] = materialize(fetched, tmp_path / "again", ["engine.workers=0"]).splits
    assert (train.images, train.equal) == (6, 6)


@pytest.mark.parametrize(
    "command", [("fetch", "synthci"), ("fetch", "model", "SynthCLIP-30M"), ("push", "images", "RUN", "me/x")]
)
def test_without_a_network_it_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    official_data.write_plain(tmp_path / "in", zips=1, images=1)
    import_synthci(tmp_path / "in", tmp_path / "shards", workers=0)
    arguments = [str(tmp_path / "shards") if one == "RUN" else one for one in command]
    with fake_hub.running() as gone:
        pass
    done = _synthclip(gone, tmp_path, *arguments, token="hf_x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be reached" in done.stderr
