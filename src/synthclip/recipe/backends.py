"""The recipe's sections for models: each is read as the `Config` of the backend that it names.

A recipe may be a stranger's. By itself it runs no code and sends no key away: `what_needs_trust`.
"""

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

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
    """The name of a backend of this package, or the dotted path of a module of your own."""
    gpus: ClassVar[int] = 0
    """GPUs that one worker is given, where the machine has any."""
    packages: ClassVar[dict[str, str]] = {}
    """What `build` imports beyond a plain installation: import name -> extra of this package."""
    sees: ClassVar[bool] = False
    """Of a language model: whether it looks at pictures, too."""

    @property
    def needs(self) -> dict[str, str]:
        """What `build` imports with these values: import name -> extra of this package."""
        return self.packages

    def inputs(self) -> dict[str, str]:
        """Digests of the local files that the model consists of.

        Raises SynthClipError where one is missing or cannot be what it should be. Called before any worker
        starts, and for `synthclip status`: quick, and without the vendor.
        """
        return {}

    def notes(self) -> list[str]:
        """What the user should know before a run begins, a line each: terms of a licence, say."""
        return []

    def check(self) -> None:
        """Raise SynthClipError where this machine can be known not to hold the model. May ask the hub."""

    def undrawable(self, texts: Sequence[str]) -> list[str]:
        """Of a text-to-image backend: the concepts or captions that it is known not to draw."""
        return []

    @property
    def members(self) -> tuple["BackendConfig", ...]:
        """The models that this stands for: itself, unless it is a list of several."""
        return (self,)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the images that each of `members` paints."""
        return (1.0,)


class Painters(BackendConfig):
    """Several text-to-image models: a list in the recipe, each with its backend's keys and a `weight`."""

    backend: Literal["several"] = "several"
    """Stands for a list of painters."""
    painters: tuple[SerializeAsAny[BackendConfig], ...]
    """The models."""
    weights: tuple[float, ...]
    """How often each paints, compared with the others."""

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        seen: list[dict[str, Any]] = []
        for at, painter in enumerate(self.painters):
            if not isinstance(painter, CustomCode):
                if painter.results() in seen:
                    raise ValueError(f"painter {at} is an earlier one again: give that one a larger weight")
                seen.append(painter.results())
        return self

    @property
    def members(self) -> tuple[BackendConfig, ...]:
        return self.painters

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(weight / sum(self.weights) for weight in self.weights)

    @model_serializer
    def _as_list(self) -> list[dict[str, Any]]:
        pairs = zip(self.painters, self.weights, strict=True)
        return [{**painter.model_dump(mode="json"), "weight": weight} for painter, weight in pairs]

    def results(self) -> dict[str, Any]:
        painters = [painter.results() for painter in self.painters]
        return {"backend": self.backend, "painters": painters, "weights": list(self.weights)}

    def inputs(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for at, painter in enumerate(self.painters):
            try:
                found |= {f"{at}/{name}": known for name, known in painter.inputs().items()}
            except SynthClipError as error:
                raise SynthClipError(f"text_to_image.{at}: {error}") from None
        return found

    def notes(self) -> list[str]:
        return [note for painter in self.painters for note in painter.notes()]

    def check(self) -> None:
        for painter in self.painters:
            painter.check()

    def undrawable(self, texts: Sequence[str]) -> list[str]:
        """What none of them draws."""
        left = list(texts)
        for painter in self.painters:
            left = painter.undrawable(left)
        return left


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


def backend_names(kind: Kind) -> list[str]:
    """The backends that come with this package, sorted."""
    folder = Path(__file__).parent.parent / "backends"
    here = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.py")}
    return sorted({*here, *(_ALIASES if kind == "t2i" else ())})


def module(kind: Kind, name: str) -> ModuleType:
    """The backend's module. Raises ValueError where there is none of that name."""
    if name in _ALIASES or "." in name:
        try:
            return importlib.import_module(_ALIASES.get(name, name))
        except Exception as error:
            raise ValueError(f"backend {name!r} cannot be imported: {error!r}") from error
    if name not in (here := backend_names(kind)):
        raise ValueError(f"unknown backend {name!r}{nearest(name, here)}")
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
        if isinstance(value, list) and kind == "t2i":
            return _painters(value, trust=trust)
        return backend_config(kind, value, trust=trust) if isinstance(value, dict) else value

    return BeforeValidator(validate)


def _painters(values: list[Any], *, trust: bool) -> BackendConfig:
    """A list of painters; of a single one, that one itself."""
    if not values or not all(isinstance(value, dict) for value in values):
        raise ValueError("must be a section of keys, or a list of one or more such sections")
    painters = []
    for at, value in enumerate(values):
        try:
            painters.append(
                backend_config("t2i", {k: v for k, v in value.items() if k != "weight"}, trust=trust)
            )
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, (at, *problem["loc"])))
            said = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
            raise ValueError(f"{where}: {said}") from None
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None
    weights = tuple(value.get("weight", 1.0) for value in values)
    for at, weight in enumerate(weights):
        if not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise ValueError(f"{at}.weight must be a number greater than 0, not {weight!r}")
    return painters[0] if len(painters) == 1 else Painters(painters=tuple(painters), weights=weights)


LLMConfig = Annotated[SerializeAsAny[BackendConfig], _typed("llm")]
"""`{backend: NAME, …}`, read as the `Config` of the language-model backend NAME."""

TextToImageConfig = Annotated[SerializeAsAny[BackendConfig], _typed("t2i")]
"""`{backend: NAME, …}`, read as the `Config` of the text-to-image backend NAME; or a list of such, each with
a `weight` (1 unless given), of which every image is painted by one."""


def what_needs_trust(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, why) for each value of an unchecked recipe that only the user may decide."""
    for section, values in _backends_in(raw):
        if is_custom(values.get("backend")):
            yield f"{section}.backend", f"{values['backend']!r} is code that comes with the recipe"
        yield from _keys_sent(section, values)
    engine = raw.get("engine")
    if isinstance(engine, dict) and engine.get("kind") == "ray" and isinstance(engine.get("ray"), dict):
        address = engine["ray"].get("address", "local")
        if address not in ("local", "auto"):
            yield "engine.ray.address", f"{address!r} is a cluster that may run code here"


def _backends_in(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of an unchecked recipe that are read as backends, with their dotted keys."""
    images = raw.get("images")
    images = images if isinstance(images, dict) else {}
    vision = images.get("vision")
    found = {
        "llm": raw.get("llm"),
        "text_to_image": raw.get("text_to_image"),
        "images.heldout_painter": images.get("heldout_painter"),
        "images.vision.llm": vision.get("llm") if isinstance(vision, dict) else None,
    }
    for key, value in found.items():
        if isinstance(value, list):
            yield from ((f"{key}.{at}", part) for at, part in enumerate(value) if isinstance(part, dict))
        elif isinstance(value, dict):
            yield key, value


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
