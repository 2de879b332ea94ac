"""The recipe's sections for models: each is read as the `Config` of the backend that it names.

A recipe may be a stranger's. By itself it runs no code and sends no key away: `what_needs_trust`.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, SerializeAsAny, ValidationInfo

from synthclip.errors import SynthClipError
from synthclip.recipe.section import Section, nearest

Kind = Literal["llm", "t2i"]

_KEY = "OPENAI_API_KEY"
_ITS_HOST = "api.openai.com"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

TRUST = "read it, then allow it by --trust, or trust=True in Python"

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

    def undrawable(self, concepts: Sequence[str]) -> list[str]:
        """Of a text-to-image backend: the concepts that it is known not to draw."""
        return []


class CustomCode(BackendConfig):
    """A backend that is somebody else's module, not imported: its keys as the recipe gives them.

    Asked for anything that its module decides, it raises SynthClipError.
    """

    model_config = ConfigDict(extra="allow")

    def inputs(self) -> dict[str, str]:
        self.refuse()

    def results(self) -> dict[str, Any]:
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise SynthClipError with the way to allow it."""
        raise SynthClipError(f"backend {self.backend!r} is code that comes with the recipe: {TRUST}")


def is_custom(name: object) -> bool:
    """Whether a backend is code from outside this distribution."""
    return "." in str(name)


def module(kind: Kind, name: str) -> ModuleType:
    """The backend's module. Raises ValueError where there is none of that name."""
    if name in _ALIASES or "." in name:
        try:
            return importlib.import_module(_ALIASES.get(name, name))
        except Exception as error:
            raise ValueError(f"backend {name!r} cannot be imported: {error!r}") from error
    folder = Path(__file__).parent.parent / "backends"
    here = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.py")}
    if name not in here:
        raise ValueError(
            f"unknown backend {name!r}{nearest(name, sorted({*here, *(_ALIASES if kind == 't2i' else ())}))}"
        )
    return importlib.import_module(f"synthclip.backends.{kind}_{name}")


def config_class(kind: Kind, name: str) -> type[BackendConfig]:
    """The `Config` of a backend. Raises ValueError where there is none of that name."""
    found = getattr(module(kind, name), "Config", None)
    if not (isinstance(found, type) and issubclass(found, BackendConfig)):
        raise ValueError(f"backend {name!r}: its module has no Config that is a BackendConfig")
    return found


def backend_config(kind: Kind, values: dict[str, Any], *, trust: bool) -> BackendConfig:
    """`{backend: NAME, …}` as the `Config` of that backend; not trusted, a dotted NAME stays `CustomCode`.

    Raises ValueError where there is no such backend, pydantic's error where the values are not its.
    """
    if "backend" not in values:
        raise ValueError("needs a key 'backend'")
    if is_custom(values["backend"]) and not trust:
        return CustomCode.model_validate(values)
    return config_class(kind, str(values["backend"])).model_validate(values)


def _typed(kind: Kind) -> BeforeValidator:
    def validate(value: Any, info: ValidationInfo) -> Any:
        trust = bool((info.context or {}).get("trust"))
        return backend_config(kind, value, trust=trust) if isinstance(value, dict) else value

    return BeforeValidator(validate)


LLMConfig = Annotated[SerializeAsAny[BackendConfig], _typed("llm")]
"""`{backend: NAME, …}`, read as the `Config` of the language-model backend NAME."""

TextToImageConfig = Annotated[SerializeAsAny[BackendConfig], _typed("t2i")]
"""`{backend: NAME, …}`, read as the `Config` of the text-to-image backend NAME."""


def what_needs_trust(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, why) for each value of an unchecked recipe that only the user may decide."""
    for section in ("llm", "text_to_image"):
        values = raw.get(section)
        if isinstance(values, dict):
            if is_custom(values.get("backend")):
                yield f"{section}.backend", f"{values['backend']!r} is code that comes with the recipe"
            yield from _keys_sent(section, values)
    engine = raw.get("engine")
    if isinstance(engine, dict) and engine.get("kind") == "ray" and isinstance(engine.get("ray"), dict):
        address = engine["ray"].get("address", "local")
        if address not in ("local", "auto"):
            yield "engine.ray.address", f"{address!r} is a cluster that may run code here"


def _keys_sent(section: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The secret in an environment variable, and where it would go."""
    variable = str(values.get("api_key_variable", _KEY))
    url = values.get("base_url", f"https://{_ITS_HOST}")
    try:
        host = urlsplit(str(url)).hostname
    except ValueError:
        host = None
    if not os.environ.get(variable) or host in _LOOPBACK:
        return
    if host != _ITS_HOST:
        yield f"{section}.base_url", f"{host} would receive the key in {variable}"
    if variable != _KEY:
        yield f"{section}.api_key_variable", f"{variable} would be sent to {host}"
