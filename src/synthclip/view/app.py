"""The explorer as a server: its application, and where it listens."""

import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from synthclip.errors import SynthClipError, first_line
from synthclip.recipe import RECIPE_FILE
from synthclip.view.explorer import Explorer
from synthclip.view.guard import LOOPBACK, Guard
from synthclip.view.handlers import HANDLERS
from synthclip.view.search_pages import POSTS

_SWEEP = "sweep.yaml"


def application(explorer: Explorer, token: str | None = None) -> Starlette:
    """The web application; `token` is what a browser has to know."""

    @asynccontextmanager
    async def indexed(_: Starlette) -> AsyncIterator[None]:
        for run in explorer.runs.values():
            run.index.start()
        try:
            yield
        finally:
            for run in explorer.runs.values():
                run.index.close()
                run.search.close()

    def message(request: Request, title: str, said: str, status: int) -> Response:
        if "/jpeg/" in request.url.path:
            return PlainTextResponse(said, status)
        run = explorer.runs.get(request.path_params.get("run", ""))
        return explorer.page("message", run, title=title, said=said, status=status)

    def unusable(request: Request, error: Exception) -> Response:
        """A run, or a file of it, that cannot be shown."""
        return message(request, "This cannot be shown", first_line(error), 503)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = "the explorer has no such page" if error.detail == "Not Found" else error.detail
        return message(
            request, "Not found" if error.status_code == 404 else "Refused", said, error.status_code
        )

    def failed(request: Request, error: Exception) -> Response:
        return message(request, "An error of the explorer", type(error).__name__, 500)

    return Starlette(
        routes=[
            *(Route(address, partial(handler, explorer)) for address, handler in HANDLERS.items()),
            *(Route(address, partial(post, explorer), methods=["POST"]) for address, post in POSTS.items()),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={
            SynthClipError: unusable,
            OSError: unusable,
            HTTPException: refused,
            Exception: failed,
        },
        lifespan=indexed,
    )


def serve(
    paths: Sequence[Path], *, host: str, port: int, model: str | None = None, say: Callable[[str], None]
) -> None:
    """Show runs, and the runs of sweeps, until Ctrl-C; `say` gets the address. `model` is what images are
    searched with, None for each run's own.

    Raises SynthClipError where a path holds no run, or the port is taken.
    """
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    app = application(Explorer(runs_in(paths), model), token)
    listening = _listen(host, port)
    everywhere = host in ("0.0.0.0", "::")
    shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    say(f"http://{shown}:{listening.getsockname()[1]}/{query}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
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
        listening.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SynthClipError(
            f"--host {host} --port {port}: cannot listen there ({reason}): choose another port, or 0 for any "
            "that is free"
        ) from None
    return listening
