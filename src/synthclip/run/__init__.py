"""A run: its directory, its stages, the order in which they are brought up to date."""

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """`synthclip.run` is a function of the public API and the name of this package: so it can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from synthclip.run.pipeline import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = _CallableRoom
