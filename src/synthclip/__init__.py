"""SynthCLIP: train CLIP on captions and images that models made.

>>> import synthclip
>>> recipe = synthclip.load_recipe("demo", ["captions.per_concept=4"])
>>> run = synthclip.run(recipe, "runs/demo")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthclip.errors import SynthClipError as SynthClipError
    from synthclip.evaluation.suites import evaluate as evaluate
    from synthclip.imagegen.provenance import repaint as repaint
    from synthclip.imagegen.provenance import trace as trace
    from synthclip.models.load import load_model as load_model
    from synthclip.recipe import Recipe as Recipe
    from synthclip.recipe import load_recipe as load_recipe
    from synthclip.run.pipeline import run as run
    from synthclip.run.pipeline import status as status
    from synthclip.run.store import RunDirectory as RunDirectory
    from synthclip.sweeps.runs import sweep as sweep
    from synthclip.sweeps.variants import Sweep as Sweep
    from synthclip.textgen.matcher import ConceptMatcher as ConceptMatcher

    __version__: str

_HOME = {
    "ConceptMatcher": "synthclip.textgen.matcher",
    "Recipe": "synthclip.recipe",
    "RunDirectory": "synthclip.run.store",
    "Sweep": "synthclip.sweeps.variants",
    "SynthClipError": "synthclip.errors",
    "evaluate": "synthclip.evaluation.suites",
    "load_model": "synthclip.models.load",
    "load_recipe": "synthclip.recipe",
    "repaint": "synthclip.imagegen.provenance",
    "run": "synthclip.run.pipeline",
    "status": "synthclip.run.pipeline",
    "sweep": "synthclip.sweeps.runs",
    "trace": "synthclip.imagegen.provenance",
}

__all__ = [
    "ConceptMatcher",
    "Recipe",
    "RunDirectory",
    "Sweep",
    "SynthClipError",
    "evaluate",
    "load_model",
    "load_recipe",
    "repaint",
    "run",
    "status",
    "sweep",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import synthclip` is quick."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version(__name__)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
