"""Who may ask the explorer, and what a browser may do with its answers."""

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synthclip.keys import digest

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HEADERS = {
    # Charts and bars carry their sizes and colours in style attributes; scripts and sheets are files.
    "content-security-policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; "
    "style-src-attr 'unsafe-inline'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Middleware. Without a token only a browser of this machine is answered, and only under a name of this
    machine, so that no page from elsewhere can reach the explorer by renaming its own host. With one, whoever
    knows it: first in the address, then in a cookie."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token
        self._cookie = f"synthclip-{digest(token or '')[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._refusal(scope) or _from_elsewhere(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._token is None:
            host = headers.get("host", "").lower()
            name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            if name in LOOPBACK:
                return None
            return PlainTextResponse("This explorer answers under the name localhost only.\n", 421)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == "token"), None)
        if given is not None and self._is_token(given):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            path = "/" + scope["raw_path"].decode("latin-1").lstrip("/")
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if self._cookie in cookies and self._is_token(cookies[self._cookie].value):
            return None
        return PlainTextResponse("Open the address that `synthclip view` printed: it holds a token.\n", 401)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self._token or "").encode())


def _from_elsewhere(scope: Scope) -> Response | None:
    """The refusal of what a page of another site sends."""
    headers = Headers(scope=scope)
    sent_by = headers.get("origin", "").partition("://")[2]
    if scope["method"] in ("GET", "HEAD") or (sent_by and sent_by == headers.get("host")):
        return None
    return PlainTextResponse("Only the explorer's own pages may send something to it.\n", 403)
