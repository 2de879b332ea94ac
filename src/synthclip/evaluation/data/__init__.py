"""Evaluation data, from whatever layout it lies in.

A layout is a module here with `fits(folder)` and `read(folder, name)`.
"""

from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import captions, folders, parquet, torchvision_sets, webdataset
from synthclip.evaluation.data.known import KNOWN, hub_repository
from synthclip.evaluation.data.types import Classification, Pictures, Retrieval, Split, loose_files
from synthclip.recipe.section import did_you_mean

__all__ = ["Classification", "MissingDataError", "Pictures", "Retrieval", "Split", "identity", "open_dataset"]

_LAYOUTS = (webdataset, parquet, captions, folders)


class MissingDataError(SynthClipError):
    """There is no data set of that name below the data root."""


def open_dataset(name: str, root: Path, *, download: bool = False) -> Classification | Retrieval:
    """Open the data set `name` below `root`: nothing is decoded yet.

    `name` is one of `known.KNOWN`, `wds/…` for a set that CLIP_benchmark publishes, or a folder's path. It is
    in `root/name`, or in the folder of the hub's repository (`root/wds_vtab-dtd`), or where torchvision puts
    it; with `download` it is fetched from the hub into `root` where it is missing, resuming what was begun.

    Raises MissingDataError where there is none, SynthClipError where it is there and not as it should be.
    """
    if torchvision_sets.fits(name, root):
        return torchvision_sets.read(name, root)
    folder = _folder(name, root)
    if folder is None and download:
        folder = _download(name, root)
    if folder is None:
        raise _missing(name, root)
    for layout in _LAYOUTS:
        if layout.fits(folder):
            dataset: Classification | Retrieval = layout.read(folder, name)
            return dataset
    raise SynthClipError(
        f"{folder}: no data in any known layout: class folders, Parquet, WebDataset tars, or captions beside "
        "their images"
    )


def identity(name: str, root: Path) -> str:
    """A digest that changes when the data set's files do, by their names, sizes and times; opens none.

    Raises MissingDataError where there is no such set.
    """
    if torchvision_sets.fits(name, root):
        folder: Path | None = root / torchvision_sets.SETS[name].folder
    else:
        folder = _folder(name, root)
    if folder is None:
        raise _missing(name, root)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return loose_files(folder, files).digest


def _missing(name: str, root: Path) -> MissingDataError:
    told = ": --download fetches it from the hub" if hub_repository(name) else did_you_mean(name, KNOWN)
    return MissingDataError(f"{root / name}: no data set {name!r} there{told}")


def _folder(name: str, root: Path) -> Path | None:
    repository = hub_repository(name)
    places = [root / name, Path(name)]
    if repository is not None:
        places.insert(1, root / repository.rpartition("/")[2])
    return next((place for place in places if place.is_dir()), None)


def _download(name: str, root: Path) -> Path | None:
    repository = hub_repository(name)
    if repository is None:
        return None
    from huggingface_hub import snapshot_download

    folder = root / repository.rpartition("/")[2]
    wanted = ["*.txt", "*.tar", "*.parquet"]
    try:
        snapshot_download(repository, repo_type="dataset", local_dir=folder, allow_patterns=wanted)
    except Exception as error:  # the hub client and its transport share no base class
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SynthClipError(
            f"{name}: cannot be fetched from {repository} ({first}): run again to resume, or put the data "
            f"into {folder}"
        ) from error
    return folder
