"""Whether a model of the hub fits this machine, before it is downloaded."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from synthclip.backends.single_files import is_local, repository_and_file
from synthclip.errors import SynthClipError


def refuse_too_large(
    key: str, model: str, revision: str | None, variant: str | None, *, share: float, device: str, remedy: str
) -> None:
    """Raise SynthClipError where the disk does not hold the download of a pipeline or single file of the hub,
    or `device` not `share` of the bytes of its weights. `key` names the value of the recipe.

    What is not known is not refused: where the hub cannot be reached, say, the download will tell.
    """
    if is_local(model):
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    sizes = list(_weights(model, revision, variant))
    missing = sum(size for size, is_here in sizes if not is_here)
    cache = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    free = shutil.disk_usage(cache).free
    if missing > free:
        raise SynthClipError(
            f"{key}: {model}: {missing / 1e9:.1f} GB to download, and {free / 1e9:.1f} GB free in {cache}: "
            "free space, or point HF_HOME elsewhere"
        )
    least = share * sum(size for size, _ in sizes)
    room, where = _memory(device)
    if least > room:
        raise SynthClipError(
            f"{key}: {model}: its weights take {least / 1e9:.1f} GB at least, and {room / 1e9:.1f} GB are "
            f"{where}: {remedy}"
        )


def _memory(device: str) -> tuple[float, str]:
    """Bytes, and what they are."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return float(torch.cuda.mem_get_info(device)[0]), "free on the GPU"
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "this machine's memory"


def _weights(model: str, revision: str | None, variant: str | None) -> Iterator[tuple[int, bool]]:
    """(bytes, whether it is here) of each file of weights that a model of the hub consists of."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        repository, name = repository_and_file(model)
        found = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=10)
    except Exception:
        return
    for file in found.siblings or ():
        if file.size and (file.rfilename == name if name else _is_component(file.rfilename, variant)):
            cached = try_to_load_from_cache(repository, file.rfilename, revision=found.sha)
            yield file.size, isinstance(cached, str)


def _is_component(name: str, variant: str | None) -> bool:
    folder, _, file = name.rpartition("/")
    if folder.count("/") or not folder or folder == "safety_checker" or not file.endswith(".safetensors"):
        return False
    has_variant = re.search(r"\.(fp16|bf16|ema|non_ema)\b", file)
    return has_variant is None if variant is None else bool(has_variant and has_variant[1] == variant)
