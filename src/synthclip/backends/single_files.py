"""Weights by a path, or on the Hugging Face hub as OWNER/NAME and OWNER/NAME/FILE."""

from collections.abc import Mapping
from pathlib import Path

from synthclip.errors import SynthClipError, hub_errors
from synthclip.samples.remembered import quick_digests

SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")
"""Suffixes of weights in one file."""


def is_local(source: str) -> bool:
    """Whether it means a path on this machine, and no repository of the hub."""
    return Path(source).expanduser().exists() or source.startswith(("/", ".", "~"))


def repository_and_file(source: str) -> tuple[str, str | None]:
    """`OWNER/NAME/FILE` of the hub, or a path, as repository or folder and file."""
    path = Path(source).expanduser()
    if path.suffix not in SINGLE_FILES:
        return str(path) if is_local(source) else source, None
    if is_local(source):
        return str(path.parent), path.name
    owner, name, file = source.split("/", 2)
    return f"{owner}/{name}", file


def single_file(source: str) -> Path | None:
    """The file that a source names, downloaded where it is one of the hub; None where it names none."""
    folder, file = repository_and_file(source)
    if file is None:
        return None
    if is_local(source):
        return Path(folder) / file
    from huggingface_hub import hf_hub_download

    with hub_errors(folder, "text_to_image: "):
        return Path(hf_hub_download(folder, file))


def digests(key: str, source: str, *, needs_index: bool = False) -> dict[str, str]:
    """File -> digest of a local model, nothing of the hub's. Raises SynthClipError where it is neither."""
    path = Path(source).expanduser()
    is_file = path.suffix in SINGLE_FILES
    if path.is_file() and is_file:
        return dict(zip([path.name], quick_digests([path]), strict=True))
    if not path.is_dir():
        is_on_hub = source.count("/") == 1 or (source.count("/") > 1 and is_file)
        if path.is_absolute() or source.startswith((".", "~")) or not is_on_hub:
            raise SynthClipError(
                f"{key}: {source}: no such folder or file, and no repository of the hub (OWNER/NAME): "
                "give either"
            )
        return {}
    if needs_index and not (path / "model_index.json").is_file():
        raise SynthClipError(
            f"{key}: {path}: holds no model_index.json: give a folder that diffusers' save_pretrained wrote"
        )
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".json", ".safetensors", ".bin")]
    names = (file.relative_to(path).as_posix() for file in files)
    return dict(zip(names, quick_digests(files), strict=True))


def part_digests(parts: Mapping[str, str]) -> dict[str, str]:
    """PART/FILE -> digest of what is local of the parts of a model, each by its name."""
    return {
        f"{name}/{file}": known
        for name, source in parts.items()
        for file, known in digests(f"text_to_image.parts.{name}", source).items()
    }
