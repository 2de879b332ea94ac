"""The runs that are open, and pages made of templates."""

import re
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from synthclip.report.page import environment
from synthclip.run.progress import duration
from synthclip.run.store import RunDirectory
from synthclip.view.gallery import Gallery, Tile
from synthclip.view.index import Index
from synthclip.view.live import Watch
from synthclip.view.search import Search

_TABS = (("", "Live"), ("gallery", "Gallery"), ("concepts", "Concepts"), ("evaluation", "Evaluation"))


class OpenRun:
    """One run that is shown, under its name in addresses."""

    def __init__(self, path: Path, name: str, model: str | None = None) -> None:
        self.directory, self.name = RunDirectory(path, read_only=True), name
        self.index = Index(RunDirectory(path, read_only=True))  # each its own: they work at the same time
        self.gallery = Gallery(self.index)
        self.search = Search(RunDirectory(path, read_only=True), self.index, self.gallery, model)
        self.watch = Watch(RunDirectory(path, read_only=True))

    @property
    def path(self) -> Path:
        return self.directory.path

    def command(self, *words: str) -> str:
        """A command about this run, to be copied into a shell."""
        return shlex.join(["synthclip", *words])


class Explorer:
    """What every page is made with."""

    def __init__(self, paths: Sequence[Path], model: str | None = None) -> None:
        self.runs: dict[str, OpenRun] = {}
        for path in paths:
            name = _free_name(path, {*self.runs, "static", "compare"})
            self.runs[name] = OpenRun(path, name, model)

    def page(
        self,
        template: str,
        run: OpenRun | None = None,
        *,
        tab: str | None = None,
        status: int = 200,
        **values: Any,
    ) -> HTMLResponse:
        """A page by its template in `pages`; `tab` is the one that is open."""
        html = self.template(f"{template}.html.j2").render(
            runs=self.runs, run=run, tab=tab, tabs=_TABS, **values
        )
        return HTMLResponse(html, status)

    def template(self, name: str) -> Any:
        """A template of `pages`."""
        return self._environment.get_template(f"pages/{name}")

    def run_of(self, request: Request) -> OpenRun:
        """The run that an address names."""
        try:
            return self.runs[request.path_params["run"]]
        except KeyError:
            raise HTTPException(404, "no such run is open") from None

    @cached_property
    def _environment(self) -> Any:
        made = environment("synthclip.view")
        made.globals.update(image_address=_image_address, jpeg_address=_jpeg_address)
        made.filters["pairs"] = lambda values: [(value, value) for value in values]
        made.filters["in_units"] = duration
        made.filters["quote"] = lambda text: quote(text, safe="")
        return made


Handler = Callable[[Explorer, Request], Response]
"""Answers one address. Handlers run in threads."""


def attempt_of(tile: Tile) -> str:
    """The number of a refused attempt, in addresses; empty for the image that was kept."""
    return str(tile.attempt) if tile.reason else ""


def _free_name(path: Path, taken: set[str]) -> str:
    """A run's name in addresses."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-.") or "run"
    names = (plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _image_address(run: OpenRun, tile: Tile) -> str:
    attempt = f"?attempt={attempt_of(tile)}" if tile.reason else ""
    return f"/{run.name}/image/{tile.split}/{quote(tile.key)}{attempt}"


def _jpeg_address(run: OpenRun, tile: Tile) -> str:
    return f"/{run.name}/jpeg/{tile.id}/{tile.sha256}"
