"""The explorer's pages: addresses in, HTML out."""

import re
import secrets
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from synthclip.errors import SynthClipError, first_line
from synthclip.recipe import RECIPE_FILE
from synthclip.report.page import environment
from synthclip.run.store import RunDirectory
from synthclip.view.filters import MAX_CHARS, Filter
from synthclip.view.gallery import MAX_PAGE, PAGE, Gallery, Tile
from synthclip.view.guard import LOOPBACK, Guard
from synthclip.view.index import Index
from synthclip.view.pictures import read_jpeg

_TABS = (("", "Live"), ("gallery", "Gallery"), ("concepts", "Concepts"), ("evaluation", "Evaluation"))
_SWEEP = "sweep.yaml"


class OpenRun:
    """One run that is shown, under its name in addresses."""

    def __init__(self, path: Path, name: str) -> None:
        self.directory, self.name = RunDirectory(path, read_only=True), name
        self.index = Index(self.directory)
        self.gallery = Gallery(self.index)

    @property
    def path(self) -> Path:
        return self.directory.path

    def command(self, *words: str) -> str:
        """A command about this run, to be copied into a shell."""
        return shlex.join(["synthclip", *words])


class Explorer:
    """The application over some runs."""

    def __init__(self, paths: Sequence[Path], token: str | None = None) -> None:
        self.runs: dict[str, OpenRun] = {}
        for path in paths:
            name = _free_name(path, {*self.runs, "static", "compare"})
            self.runs[name] = OpenRun(path, name)
        self.app = Starlette(
            routes=list(self._routes()),
            middleware=[Middleware(Guard, token=token)],
            exception_handlers={
                SynthClipError: self._unusable,
                OSError: self._unusable,
                HTTPException: self._not_there,
                Exception: self._failed,
            },
            lifespan=self._lifespan,
        )

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
        html = self._environment.get_template(f"pages/{template}.html.j2").render(
            runs=self.runs, run=run, tab=tab, tabs=_TABS, **values
        )
        return HTMLResponse(html, status)

    def run_of(self, request: Request) -> OpenRun:
        """The run that an address names."""
        try:
            return self.runs[request.path_params["run"]]
        except KeyError:
            raise HTTPException(404, "no such run is open") from None

    def _routes(self) -> Iterator[Route]:
        pages: dict[str, Callable[[Request], Response]] = {
            "/": self._start,
            "/static/{file}": self._static,
            "/{run}/gallery": self._gallery,
            "/{run}/jpeg/{image:int}/{sha}": self._jpeg,
            "/{run}/image/{split}/{key:path}": self._image,
            "/{run}/trace/{split}/{key:path}": self._trace,
        }
        return (Route(path, handler) for path, handler in pages.items())

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> Any:
        for run in self.runs.values():
            run.index.start()
        try:
            yield
        finally:
            for run in self.runs.values():
                run.index.close()

    @cached_property
    def _environment(self) -> Any:
        made = environment("synthclip.view")
        made.globals.update(image_address=_image_address, jpeg_address=_jpeg_address)
        made.filters["pairs"] = lambda values: [(value, value) for value in values]
        made.filters["quote"] = lambda text: quote(text, safe="")
        return made

    def _start(self, request: Request) -> Response:
        return RedirectResponse(f"/{next(iter(self.runs))}/gallery")

    def _static(self, request: Request) -> Response:
        file = request.path_params["file"]
        if file == "style.css":
            return Response(self._environment.get_template("pages/style.css").render(), media_type="text/css")
        if file == "explorer.js":
            script = resources.files("synthclip.view").joinpath("pages/explorer.js").read_bytes()
            return Response(script, media_type="text/javascript")
        raise HTTPException(404)

    def _gallery(self, request: Request) -> Response:
        run = self.run_of(request)
        where = Filter.of(request.query_params)
        size = request.query_params.get("size", "")
        page = run.gallery.page(
            where,
            request.query_params.get("after", "")[:MAX_CHARS],
            int(size) if size.isascii() and size.isdigit() and len(size) < 6 else PAGE,
        )
        facets = run.gallery.facets().values()
        return self.page(
            "gallery",
            run,
            tab="gallery",
            where=where,
            page=page,
            size=min(int(size), MAX_PAGE) if size.isdigit() and len(size) < 6 else None,
            total=run.gallery.count(where),
            cut=len(request.query_params.get("q", "")) > MAX_CHARS,
            splits=sorted({split for split, _, _, _ in facets}),
            painters=sorted({painter for _, painter, _, _ in facets if painter}),
            reasons=sorted({reason for _, _, reason, _ in facets if reason}),
            scores=run.gallery.scores(),
            progress=run.index.progress,
        )

    def _jpeg(self, request: Request) -> Response:
        run = self.run_of(request)
        image = request.path_params["image"]
        found = read_jpeg(run.directory, run.gallery, image) if image < 1 << 63 else None
        if found is None or found[1] != request.path_params["sha"]:
            raise HTTPException(404, "no such image")
        headers = {"etag": f'"{found[1]}"', "cache-control": "private, max-age=31536000, immutable"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(found[0], media_type="image/jpeg", headers=headers)

    def _image(self, request: Request) -> Response:
        run = self.run_of(request)
        split, key = request.path_params["split"], request.path_params["key"]
        attempt = request.query_params.get("attempt", "")
        found = run.gallery.find(split, key)
        shown = [one for one in found if attempt == _attempt(one)] or found
        if not shown:
            raise HTTPException(404, f"the run holds no image {split}/{key}")
        tile = shown[0]
        return self.page(
            "image",
            run,
            tab="gallery",
            tile=tile,
            concepts=run.gallery.concepts(tile.concepts),
            siblings=[one for one in run.gallery.siblings(tile) if one.id != tile.id],
            commands=[]
            if tile.reason
            else [run.command(word, str(run.path), key) for word in ("trace", "repaint")],
        )

    def _trace(self, request: Request) -> Response:
        """The part of an image's page that takes a moment to find out."""
        from synthclip.imagegen.provenance import trace

        run = self.run_of(request)
        split, key = request.path_params["split"], request.path_params["key"]
        return self.page("trace", run, trace=trace(run.path, key, split=split))

    def _unusable(self, request: Request, error: Exception) -> Response:
        """A run, or a file of it, that cannot be shown."""
        return self._message(request, "This cannot be shown", first_line(error), 503)

    def _not_there(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = error.detail if error.status_code == 404 else "this address takes no such request"
        return self._message(request, "Not found", said, error.status_code)

    def _failed(self, request: Request, error: Exception) -> Response:
        return self._message(request, "An error of the explorer", type(error).__name__, 500)

    def _message(self, request: Request, title: str, said: str, status: int) -> Response:
        if "/jpeg/" in request.url.path:
            return PlainTextResponse(said, status)
        run = self.runs.get(request.path_params.get("run", ""))
        return self.page("message", run, title=title, said=said, status=status)


def serve(paths: Sequence[Path], *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Show runs, and the runs of sweeps, until Ctrl-C; `say` gets the address.

    Raises SynthClipError where a path holds no run, or the port is taken.
    """
    import uvicorn

    local = host in LOOPBACK
    token = None if local else secrets.token_urlsafe(24)
    explorer = Explorer(runs_in(paths), token)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    say(f"http://{shown}:{listening.getsockname()[1]}/{query}")
    config = uvicorn.Config(explorer.app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def runs_in(paths: Sequence[Path]) -> list[Path]:
    """The runs among the paths, and those of the sweeps among them. Raises SynthClipError where one is
    neither."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(one for one in (path / "runs").glob("*") if _is_run(one))
        if _is_run(path):
            found.append(path)
        elif (path / _SWEEP).is_file() and inside:
            found += inside
        else:
            raise SynthClipError(f"{path}: neither a run directory nor a sweep's: name what --out was")
    return found


def _is_run(path: Path) -> bool:
    return (path / RECIPE_FILE).is_file() or any(path.glob("*/manifests"))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SynthClipError(
            f"--host {host} --port {port}: cannot listen there ({reason}): choose another port, or 0 for any "
            "that is free"
        ) from None
    return listening


def _free_name(path: Path, taken: set[str]) -> str:
    """A run's name in addresses."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-.") or "run"
    names = (plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _attempt(tile: Tile) -> str:
    """What tells an attempt from others of its key in an address; empty for the image that was kept."""
    return str(tile.attempt) if tile.reason else ""


def _image_address(run: OpenRun, tile: Tile) -> str:
    attempt = f"?attempt={_attempt(tile)}" if tile.reason else ""
    return f"/{run.name}/image/{tile.split}/{quote(tile.key)}{attempt}"


def _jpeg_address(run: OpenRun, tile: Tile) -> str:
    return f"/{run.name}/jpeg/{tile.id}/{tile.sha256}"
