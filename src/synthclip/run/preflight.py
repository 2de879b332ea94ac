"""What cannot work is refused before anything is spent."""

import importlib.util
from collections.abc import Iterable, Iterator

from synthclip.errors import SynthClipError, install_command
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig, CustomCode

_TRAIN = {"torch": "train", "torchvision": "train", "open_clip": "train", "timm": "train"}


def refuse_untrusted(recipe: Recipe) -> None:
    """Raise SynthClipError where the recipe was only loaded to be looked at, and names code of its own."""
    vision = recipe.images.vision
    for config in (recipe.llm, *_painters(recipe), *([vision.llm] if vision else [])):
        if isinstance(config, CustomCode):
            config.refuse()


def refuse_missing_packages(recipe: Recipe, stages: Iterable[str]) -> None:
    """Raise SynthClipError with all packages that these stages import and that are not installed."""
    needed = {package: extra for stage in stages for package, extra in _needed(recipe, stage)}
    missing = [package for package in needed if not _installed(package)]
    if missing:
        extras = sorted({needed[package] for package in missing})
        raise SynthClipError(
            f"this recipe needs {', '.join(missing)}, not installed here: {install_command(*extras)}"
        )


def _painters(recipe: Recipe) -> Iterator[BackendConfig]:
    """Every text-to-image model of a recipe."""
    for part in (recipe.text_to_image, recipe.images.heldout_painter):
        if part is not None:
            yield from part.members


def _needed(recipe: Recipe, stage: str) -> Iterator[tuple[str, str]]:
    """(import name, extra of this package that installs it)."""
    if stage == "concepts":
        if any(source.kind == "wordfreq" for source in recipe.concepts.sources):
            yield "wordfreq", "concepts"
        if "nsfw" in recipe.concepts.block:
            yield "better_profanity", "concepts"
    elif stage == "captions":
        if recipe.captions.imported is None:
            yield from recipe.llm.needs.items()
        if recipe.captions.language is not None:
            yield "py3langid", "language"
    elif stage == "balance" and recipe.balance.near_duplicates is not None:
        yield "rensa", "dedup"
    elif stage == "images" and recipe.images.imported is None:
        for painter in _painters(recipe):
            yield from painter.needs.items()
        if recipe.images.filters.clip_model is not None:
            yield from _TRAIN.items()
        if recipe.images.vision is not None:
            yield from recipe.images.vision.llm.needs.items()
    elif stage in ("teacher", "train", "eval"):
        yield from _TRAIN.items()
        if stage == "train":
            for logger in recipe.training.loggers:
                yield logger, "train" if logger == "tensorboard" else logger
    if stage != "report" and recipe.engine.kind != "local":
        yield ("ray", "ray") if recipe.engine.kind == "ray" else ("submitit", "slurm")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that says nothing of where it comes from
        return False
