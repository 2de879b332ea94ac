"""The recipe's sections for models: each is read as the `Config` of the backend that it names."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, SerializeAsAny

from synthclip.recipe.section import Section, nearest

Kind = Literal["llm", "t2i"]

_ALIASES = {"compositor": "synthclip_compositor"}
"""Short names of backends that are packages of their own."""


class BackendConfig(Section):
    """What every backend's `Config` has: its own name."""

    backend: str
    gpus: ClassVar[int] = 0
    """GPUs that one worker is given, where the machine has any."""
    packages: ClassVar[dict[str, str]] = {}
    """What `build` imports beyond a plain installation: import name -> extra of this package."""

    def inputs(self) -> dict[str, str]:
        """Digests of the local files that the model consists of.

        Raises SynthClipError where one is missing or cannot be what it should be. Called before any worker
        starts, and for `synthclip status`: quick, and without the vendor.
        """
        return {}


def module(kind: Kind, name: str) -> ModuleType:
    """The backend's module. Raises ValueError where there is none of that name."""
    if name in _ALIASES or "." in name:
        try:
            return importlib.import_module(_ALIASES.get(name, name))
        except ImportError as error:
            raise ValueError(f"backend {name!r} cannot be imported: {error}") from error
    folder = Path(__file__).parent.parent / "backends"
    here = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.py")}
    if name not in here:
        raise ValueError(f"unknown backend {name!r}{nearest(name, sorted({*here, *_ALIASES}))}")
    return importlib.import_module(f"synthclip.backends.{kind}_{name}")


def config_class(kind: Kind, name: str) -> type[BackendConfig]:
    """The `Config` of a backend. Raises ValueError where there is none of that name."""
    found: type[BackendConfig] = module(kind, name).Config
    return found


def _typed(kind: Kind) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if isinstance(value, dict):
            if "backend" not in value:
                raise ValueError("needs a key 'backend'")
            return config_class(kind, str(value["backend"])).model_validate(value)
        return value

    return BeforeValidator(validate)


LLMConfig = Annotated[SerializeAsAny[BackendConfig], _typed("llm")]
"""`{backend: NAME, …}`, read as the `Config` of the language-model backend NAME."""

TextToImageConfig = Annotated[SerializeAsAny[BackendConfig], _typed("t2i")]
"""`{backend: NAME, …}`, read as the `Config` of the text-to-image backend NAME."""
