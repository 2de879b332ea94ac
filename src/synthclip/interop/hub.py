"""To and from the Hugging Face hub. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to huggingface_hub."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError, hub_errors, needs_extra
from synthclip.imagegen.imported import CSV_NAME, SUBFOLDER
from synthclip.imagegen.seeds import SEEDS_FILES, open_seeds
from synthclip.interop.cards import model_card, seeds_card, splits_of
from synthclip.interop.croissant import data_set_files
from synthclip.models.load import open_model
from synthclip.models.weights import (
    CONFIG_FILE,
    from_official,
    read_checkpoint,
    refuse_other_architecture,
    write_checkpoint,
)
from synthclip.recipe.training import PAPER_MODEL, ModelConfig
from synthclip.run.store import RunDirectory

if TYPE_CHECKING:
    from torch import Tensor

SYNTHCI_REPO = "hammh0a/SynthCLIP"
OFFICIAL_MODELS = "hammh0a/synthclip-67cd946f99a9fb6582e39939"
"""The hub's collection of the official models."""
_OFFICIAL_PAGE = "https://github.com/hammoudhasan/SynthCLIP"
_WEIGHTS = ("*.safetensors", "*.pt", "*.pth", "*.bin", "*.ckpt", "*.tar")
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.|clip\.)+")
"""What wrappers of a model put before its keys."""
_FILES_A_COMMIT = 500
"""A commit of thousands of tars runs into the hub's limits."""


def fetch_synthci(folder: Path, parts: Sequence[int] = ()) -> int:
    """Download the official SynthCI-30M files into `folder`, ready for `import_synthci`.

    `parts` are numbers of zips; none means all. The CSV is always included. Called again, an interrupted
    download resumes, and finished files are skipped. Returns the number of zips asked for. Raises
    SynthClipError where a part does not exist or the hub cannot be reached.
    """
    with needs_extra("interop", "fetch"):
        from huggingface_hub import HfApi, snapshot_download
    with hub_errors(SYNTHCI_REPO):
        # Without a network this fails at once, where listing the files is tried again for half a minute.
        found = HfApi().dataset_info(SYNTHCI_REPO).siblings or ()
        files = [file.rfilename for file in found]
        zips = {
            name.removeprefix(f"{SUBFOLDER}/data/").removesuffix(".zip"): name
            for name in files
            if name.startswith(f"{SUBFOLDER}/data/") and name.endswith(".zip")
        }
        wanted = [str(part) for part in parts] or list(zips)
        if unknown := [part for part in wanted if part not in zips]:
            raise SynthClipError(
                f"{SYNTHCI_REPO}: has no {unknown[0]}.zip; its parts are "
                f"{', '.join(sorted(zips, key=lambda name: (len(name), name)))}"
            )
        snapshot_download(
            SYNTHCI_REPO,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=[f"{SUBFOLDER}/{CSV_NAME}", *(zips[part] for part in wanted)],
        )
    return len(wanted)


def fetch_model(name: str, folder: Path) -> Path:
    """Download a model into `folder`; returns what `load_model` takes.

    `name` is an official model by the name of its repository, such as `SynthCLIP-30M`, or any OWNER/REPO. The
    weights of the paper's architecture are recognised by their keys, whatever the file is called, and written
    as `checkpoint_best.pt`. Raises SynthClipError where there is no such model or nothing in it is known.
    """
    with needs_extra("interop", "fetch"):
        from huggingface_hub import snapshot_download
    repo = name if "/" in name else _official_repo(name)
    with hub_errors(repo):
        snapshot_download(repo, local_dir=folder, allow_patterns=[*_WEIGHTS, *_BESIDE_WEIGHTS])
    if any(folder.glob(CONFIG_FILE)):
        open_model(folder)
        return folder
    refused = []
    for path in sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern)):
        try:
            write_checkpoint(folder / "checkpoint_best.pt", _paper_weights(path))
            return folder / "checkpoint_best.pt"
        except SynthClipError as error:
            refused.append(str(error))
    raise SynthClipError(
        f"{repo}: holds no weights that can be read: "
        + (refused[0] if refused else f"no {', '.join(_WEIGHTS)}; see {_OFFICIAL_PAGE} for other places")
    )


def _official_repo(name: str) -> str:
    from huggingface_hub import HfApi

    with hub_errors(OFFICIAL_MODELS):
        items = HfApi().get_collection(OFFICIAL_MODELS).items
    repos = {item.item_id.rpartition("/")[2]: item.item_id for item in items if item.item_type == "model"}
    plain = {re.sub(r"\W|_", "", known).lower(): repo for known, repo in repos.items()}
    found = plain.get(re.sub(r"\W|_", "", name).lower())
    if found is None:
        known = ", ".join(sorted(repos)) or "none"
        raise SynthClipError(
            f"{name}: not among the official models on the hub ({known}): choose one of them, "
            f"give OWNER/REPO, or see {_OFFICIAL_PAGE} for models on other servers"
        )
    return found


def _paper_weights(path: Path) -> "dict[str, Tensor]":
    """The weights of the paper's architecture in a file, under open_clip's names. Raises SynthClipError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from synthclip.models.build import build_model

    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    except SafetensorError as error:
        raise SynthClipError(f"{path}: damaged: {error}: download it again") from None
    for key in ("state_dict", "model_state_dict", "model"):
        held = held[key] if isinstance(held.get(key), Mapping) else held
    state = {
        _WRAPPERS.sub("", str(key)): value for key, value in held.items() if isinstance(value, torch.Tensor)
    }
    with torch.device("meta"):
        expected = build_model(ModelConfig(name=PAPER_MODEL)).state_dict()
    if "image_projection" in state:
        state = from_official(state)
    refuse_other_architecture(path, state, expected, PAPER_MODEL)
    return state


def push_images(run: Path, repo: str, *, private: bool = False) -> str:
    """Upload a run's shards, sidecars and a data card written from the run; returns the address.

    Called again, an interrupted upload resumes. Raises SynthClipError where the run holds no images or
    the hub refuses.
    """
    beside = data_set_files(run, repo)
    splits = splits_of(RunDirectory(run))
    patterns = [f"{split}/{name}" for split in splits for name in ("*.tar", "*.parquet", "sizes.json")]
    return _push(repo, "dataset", run / "images", patterns, beside, private=private)


def push_seeds(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload the seeds that `export_seeds` wrote, with a card; returns the address.

    Raises SynthClipError where they are not complete, or the hub refuses.
    """
    beside = {"README.md": seeds_card(folder, repo)}
    return _push(repo, "dataset", folder, [*SEEDS_FILES], beside, private=private)


def fetch_seeds(repo: str, folder: Path) -> Path:
    """Download seeds for `materialize`; called again, an interrupted download resumes.

    Raises SynthClipError where the repository holds none, or the hub cannot be reached.
    """
    with needs_extra("interop", "fetch"):
        from huggingface_hub import snapshot_download
    with hub_errors(repo):
        snapshot_download(repo, repo_type="dataset", local_dir=folder, allow_patterns=[*SEEDS_FILES])
    return open_seeds(folder).folder


def push_model(source: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a model as an open_clip folder, which `hf-hub:REPO` loads, with a model card.

    `source` is what `load_model` takes. Returns the address.
    """
    from synthclip.interop.export import write_open_clip

    opened = open_model(source)
    with tempfile.TemporaryDirectory() as scratch:
        write_open_clip(opened, Path(scratch))
        beside = {"README.md": model_card(source, opened, repo)}
        return _push(repo, "model", Path(scratch), None, beside, private=private)


def _push(
    repo: str,
    kind: str,
    folder: Path,
    patterns: list[str] | None,
    beside: Mapping[str, str],
    *,
    private: bool,
) -> str:
    """Upload the files of a folder that match, after those of `beside`, by name."""
    with needs_extra("interop", "push"):
        from huggingface_hub import HfApi
    api = HfApi()
    with hub_errors(repo):
        address = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
        for name, text in beside.items():
            api.upload_file(
                path_or_fileobj=text.encode(),
                path_in_repo=name,
                repo_id=repo,
                repo_type=kind,
                commit_message="Card",
            )
        files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        names = [name for name in files if patterns is None or any(fnmatch(name, one) for one in patterns)]
        for start in range(0, len(names), _FILES_A_COMMIT):
            api.upload_folder(
                folder_path=folder,
                repo_id=repo,
                repo_type=kind,
                allow_patterns=names[start : start + _FILES_A_COMMIT],
                commit_message="Upload with synthclip",
            )
    return address
