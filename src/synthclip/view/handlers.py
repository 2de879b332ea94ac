"""The explorer's pages: what each address answers."""

import shlex
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from synthclip.evaluation.paper import run_differences
from synthclip.evaluation.results import PAIRED
from synthclip.report.contents import read_own_results
from synthclip.report.page import headlines, of_suites
from synthclip.report.suites import read_suites
from synthclip.run.progress import said
from synthclip.view import concepts, evaluation
from synthclip.view.explorer import Explorer, Handler, attempt_of
from synthclip.view.filters import MAX_CHARS, Filter, whole
from synthclip.view.gallery import MAX_PAGE, PAGE
from synthclip.view.pictures import read_jpeg
from synthclip.view.search_pages import search

_LATEST = 16
_CONFUSIONS = 12
_SIDE_BY_SIDE = 4
_MORE_CAPTIONS = 2
"""By this factor the command for a weak concept asks for more captions than it has."""


def start(explorer: Explorer, request: Request) -> Response:
    several = len(explorer.runs) > 1
    return RedirectResponse("/compare" if several else f"/{next(iter(explorer.runs))}/")


def static(explorer: Explorer, request: Request) -> Response:
    file = request.path_params["file"]
    if file == "style.css":
        return Response(explorer.template(file).render(), media_type="text/css")
    if file == "explorer.js":
        script = resources.files("synthclip.view").joinpath("pages", file).read_bytes()
        return Response(script, media_type="text/javascript")
    raise HTTPException(404, "no such file")


def live(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    now = run.watch.read()
    return explorer.page(
        "live",
        run,
        tab="",
        live=now,
        headlines=headlines(now.results),
        said=[line for line in said(now.status) if not line.startswith("evaluated")],
        latest=run.gallery.latest(_LATEST),
        progress=run.index.progress,
    )


def gallery(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    asked = request.query_params
    where, asked_size = Filter.of(asked), min(whole(asked.get("size", ""), 5), MAX_PAGE) or None
    facets = run.gallery.facets().values()
    return explorer.page(
        "gallery",
        run,
        tab="gallery",
        where=where,
        page=run.gallery.page(where, asked.get("after", "")[:MAX_CHARS], asked_size or PAGE),
        size=asked_size,
        total=run.gallery.count(where),
        cut=len(asked.get("q", "")) > MAX_CHARS,
        splits=sorted({facet.split for facet in facets}),
        painters=sorted({facet.painter for facet in facets if facet.painter}),
        reasons=sorted({facet.reason for facet in facets if facet.reason}),
        has_variants=any(not facet.leads and not facet.reason for facet in facets),
        scores=run.gallery.scores(),
        names=concepts.names(run.index),
        progress=run.index.progress,
    )


def jpeg(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    image = request.path_params["image"]
    found = read_jpeg(run.directory, run.gallery, image) if image < 1 << 63 else None
    if found is None or found[1] != request.path_params["sha"]:
        raise HTTPException(404, "no such image")
    headers = {"etag": f'"{found[1]}"', "cache-control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(found[0], media_type="image/jpeg", headers=headers)


def image(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    split, key = request.path_params["split"], request.path_params["key"]
    attempt = request.query_params.get("attempt", "")
    found = run.gallery.find(split, key)
    shown = [one for one in found if attempt == attempt_of(one)] or found
    if not shown:
        raise HTTPException(404, f"the run holds no image {split}/{key}")
    tile = shown[0]
    words = () if tile.reason else ("trace", "repaint")
    return explorer.page(
        "image",
        run,
        tab="gallery",
        tile=tile,
        concepts=run.gallery.concepts(tile.concepts),
        siblings=[one for one in run.gallery.siblings(tile) if one.id != tile.id],
        commands=[run.command(word, str(run.path), key) for word in words],
    )


def trace(explorer: Explorer, request: Request) -> Response:
    """The part of an image's page that takes a moment to find out."""
    from synthclip.imagegen.provenance import trace

    run = explorer.run_of(request)
    split, key = request.path_params["split"], request.path_params["key"]
    return explorer.page("trace", run, trace=trace(run.path, key, split=split))


def concept_table(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    order = concepts.Order.of(request.query_params)
    rows, total = concepts.table(run.index, order)
    return explorer.page(
        "concepts",
        run,
        tab="concepts",
        order=order,
        rows=rows,
        total=total,
        columns=concepts.COLUMNS,
        pictures=run.gallery.picture_of([row["id"] for row in rows]),
        following=order.start + len(rows) if order.start + len(rows) < total else None,
        progress=run.index.progress,
    )


def concept(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    row = concepts.find(run.index, request.path_params["concept"]) if _fits(request) else None
    if row is None:
        raise HTTPException(404, "the run has no such concept")
    name = row["text"]
    wanted = _MORE_CAPTIONS * max(row["matched"] or 0, row["written"] or 0, 1)
    file = "more.txt"
    return explorer.page(
        "concept",
        run,
        tab="concepts",
        concept=row,
        confusion=concepts.confusion(run.directory, run.index, run.gallery, row),
        mistaken=concepts.mistaken_for(run.index, name),
        pictures=run.gallery.page(Filter(concept=name, split="train"), size=_LATEST).tiles,
        captions=concepts.captions(run.index, row["id"]),
        commands=[
            f"printf '%s\\n' {shlex.quote(name)} > {file}",
            run.command("captions", str(run.path), "--fill", "--concepts", file, "--at-least", str(wanted)),
            run.command("run", str(run.path)),
        ],
    )


def evaluated(explorer: Explorer, request: Request) -> Response:
    run = explorer.run_of(request)
    weak = concepts.weakest(run.index, _CONFUSIONS)
    return explorer.page(
        "evaluation",
        run,
        tab="evaluation",
        results=read_own_results(run.directory),
        confusions=[
            concepts.confusion(run.directory, run.index, run.gallery, row, _SIDE_BY_SIDE) for row in weak
        ],
        nearest=evaluation.nearest(run.directory, run.gallery),
        **of_suites(read_suites(run.directory)),
    )


def compare(explorer: Explorer, request: Request) -> Response:
    runs = list(explorer.runs.values())
    paths = tuple(run.path for run in runs)
    return explorer.page(
        "compare",
        shown=runs,
        figures=evaluation.compare(paths, evaluation.state_of(paths)),
        differs=run_differences(paths) if len(runs) > 1 else {},
        pictures=evaluation.same_captions([(run.index, run.gallery) for run in runs]),
        paired=PAIRED,
    )


def _fits(request: Request) -> bool:
    return int(request.path_params["concept"]) < 1 << 31


HANDLERS: dict[str, Handler] = {
    "/": start,
    "/compare": compare,
    "/static/{file}": static,
    "/{run}/": live,
    "/{run}/gallery": gallery,
    "/{run}/search": search,
    "/{run}/jpeg/{image:int}/{sha}": jpeg,
    "/{run}/image/{split}/{key:path}": image,
    "/{run}/trace/{split}/{key:path}": trace,
    "/{run}/concepts": concept_table,
    "/{run}/concepts/{concept:int}": concept,
    "/{run}/evaluation": evaluated,
}
"""By address; a page of another module is added to them."""
