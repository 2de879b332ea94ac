"""The pages of search: results, and uploaded pictures."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from synthclip.errors import first_line
from synthclip.view.explorer import Explorer, OpenRun
from synthclip.view.filters import MAX_CHARS, plain, whole
from synthclip.view.gallery import PAGE, Tile
from synthclip.view.pictures import read_jpeg

MAX_UPLOAD_MIB = 10
SIMILARITY = "similarity"
_MOST_RESULTS = 1000
_CONCEPTS = 10


@dataclass(frozen=True)
class Query:
    """What is searched for; its fields are the parameters of the address. The first that is given counts."""

    text: str = ""
    picture: str = ""
    """The name of an upload."""
    like: str = ""
    """`SPLIT/KEY` of an image of the run."""

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Query":
        """What is too long is cut."""
        return cls(**{name: plain(parameters.get(name, "")) for name in cls.__dataclass_fields__})

    def address(self, **more: int) -> str:
        """The query of an address."""
        return urlencode({name: value for name, value in {**asdict(self), **more}.items() if value})


@dataclass(frozen=True)
class _Subject:
    """The picture that is searched for."""

    content: bytes
    shown: str
    tile: Tile | None = None


def search(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    asked = request.query_params
    query, begin = Query.of(asked), min(whole(asked.get("start", ""), 5), _MOST_RESULTS)
    subject = _subject(explorer, run, query)
    run.search.open()
    state = run.search.state
    tiles: tuple[Tile, ...] = ()
    concepts, following = None, None
    if state.ready and (query.text or subject):
        feature = run.search.of_picture(subject.content) if subject else run.search.of_text(query.text)
        found = run.search.nearest(feature, begin + PAGE + 2)
        own = subject.tile.id if subject and subject.tile else None
        found = [one for one in found if one[0] != own]
        scores = dict(found[begin : begin + PAGE])
        alike = run.gallery.tiles(list(scores))
        tiles = tuple(replace(tile, scores={SIMILARITY: scores[tile.id]}) for tile in alike)
        following = begin + PAGE if len(found) > begin + PAGE < _MOST_RESULTS else None
        concepts = run.search.concepts(feature, _CONCEPTS) if subject and not begin else None
    return explorer.page(
        "search",
        run,
        tab="gallery",
        query=query,
        cut=len(asked.get("text", "")) > MAX_CHARS,
        subject=subject,
        state=state,
        tiles_found=tiles,
        following=following,
        concepts=concepts,
    )


async def upload(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    content = await _file_of(request)
    try:
        name = await run_in_threadpool(run.search.keep, content)
    except ValueError as error:
        raise HTTPException(415, f"{first_line(error)}: choose a JPEG, PNG, WebP or GIF") from None
    return RedirectResponse(f"/{run.name}/search?{Query(picture=name).address()}", 303)


async def encode(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    await run_in_threadpool(run.search.encode)
    return RedirectResponse(f"/{run.name}/search?{Query.of(request.query_params).address()}", 303)


def _subject(explorer: Explorer, run: OpenRun, query: Query) -> _Subject | None:
    if query.text:
        return None
    if query.picture:
        upload = run.search.uploaded(query.picture)
        if upload is None:
            raise HTTPException(404, "this picture is no longer held: upload it again")
        return _Subject(upload.content, upload.shown)
    if query.like:
        split, _, key = query.like.partition("/")
        tile = next((one for one in run.gallery.find(split, key) if not one.reason), None)
        found = read_jpeg(run.directory, run.gallery, tile.id) if tile else None
        if tile is None or found is None:
            raise HTTPException(404, f"the run holds no image {query.like}")
        return _Subject(found[0], f"/{run.name}/jpeg/{tile.id}/{tile.sha256}", tile)
    return None


async def _file_of(request: Request) -> bytes:
    """The file of an uploaded form."""
    body = bytearray()
    size = 0
    async for chunk in request.stream():  # to its end: a browser shows no answer before
        size += len(chunk)
        if size <= MAX_UPLOAD_MIB << 20:
            body += chunk
    if size > MAX_UPLOAD_MIB << 20:
        raise HTTPException(413, f"the file has more than {MAX_UPLOAD_MIB} MiB: choose a smaller one")

    async def parts() -> AsyncIterator[bytes]:
        yield bytes(body)

    refused = HTTPException(400, "no picture was sent: choose a file first")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refused
    try:
        form = await MultiPartParser(request.headers, parts(), max_files=1, max_fields=1).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError):
        raise refused from None
    file = form.get("picture")
    content = b"" if file is None or isinstance(file, str) else await file.read()
    await form.close()
    if not content:
        raise refused
    return content


POSTS: dict[str, Callable[[Explorer, Request], Awaitable[Response]]] = {
    "/{run}/search": upload,
    "/{run}/search/encode": encode,
}
"""What is sent to the explorer, by address; only its own pages may."""
