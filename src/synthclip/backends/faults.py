"""Whose fault a failure is: what a server says of one, in the words and codes of many.

A fault of the service (a quota, an outage, a wrong key or parameter) says nothing of a sample. Only what the
server refuses for its content is a refused sample.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from synthclip.backends import Refused

_MAX_SAID_PAUSE_SECONDS = 60.0
"""The longest `Retry-After` that is followed."""

_FILTER_CODES = {
    "contentfilter",
    "contentfiltered",
    "contentpolicyviolation",
    "datainspectionfailed",
    "moderationblocked",
    "responsibleaipolicyviolation",
}
_FILTER_WORDS = re.compile(
    r"content (?:management )?(?:policy|policies|filter|moderation)|safety system|was flagged", re.IGNORECASE
)
_ACCOUNT_CODES = {
    "accountdeactivated",
    "billinghardlimitreached",
    "billingnotactive",
    "insufficientcredits",
    "insufficientquota",
    "quotaexceeded",
}
_ACCOUNT_WORDS = re.compile(
    r"\b(?:billing|credits?|current quota|insufficient (?:quota|balance))\b", re.IGNORECASE
)
_PASSING_CODES = {
    "api",
    "internal",
    "internalserver",
    "overloaded",
    "ratelimit",
    "ratelimitexceeded",
    "server",
    "serviceunavailable",
    "timeout",
    "toomanyrequests",
    "unavailable",
}
_BROKEN_OFF = re.compile(r"error|abort|cancel|insufficient|timeout|overload")
"""In the reason for the end of a text: the service did not let the model finish it."""
_MINIMAX_CODES = {
    **dict.fromkeys((1000, 1001, 1013, 1024, 1033), "server_error"),
    **dict.fromkeys((1002, 1039), "rate_limit"),
    1008: "insufficient_quota",
    **dict.fromkeys((1026, 1027), "content_filter"),
}


@dataclass(eq=False)
class ServiceError(Exception):
    """A request that came to nothing through no fault of its sample."""

    what: str
    detail: str
    """What is known of the cause, in brackets."""
    remedy: str
    passing: bool
    """Whether it may be gone in a moment."""
    pause_seconds: float | None = None
    """How long the server says to wait."""


def error_in(answer: Any) -> Any:
    """The error that an answer holds, or is."""
    answer = answer[0] if isinstance(answer, list) and answer else answer
    return (failure(answer) or answer) if isinstance(answer, dict) else answer


def failure(answer: dict[str, Any]) -> Any:
    """The error that an answer of status 200 holds in the place of a text or picture; None where it holds
    none."""
    if answer.get("error") or answer.get("object") == "error":
        return answer.get("error") or answer
    minimax = answer.get("base_resp")
    if isinstance(minimax, dict) and minimax.get("status_code"):
        code = _MINIMAX_CODES.get(minimax["status_code"], "")
        return {"code": code, "message": f"{minimax.get('status_msg')} ({minimax['status_code']})"}
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        if choice.get("error"):
            return choice["error"]
        if _BROKEN_OFF.search(ended := how_ended(choice)):
            return {"code": "server_error", "message": f"the answer was broken off: {ended}"}
    return None


def how_ended(choice: dict[str, Any]) -> str:
    """The reason why a choice's text ends, in lower case; empty where none is given."""
    return str(choice.get("finish_reason") or "").lower()


def refusal(
    status: int, error: Any, words: str, retry_after: str | None, section: str, key_variable: str
) -> Refused:
    """The content filter's refusal. Raises ServiceError where the fault is the service's.

    `words` are what the server says, without secrets; `section` of the recipe and `key_variable` are what a
    remedy names.
    """
    fields = error if isinstance(error, dict) else {}
    codes = set(_codes(fields))
    if status == 200:
        numbers = [fields.get(name) for name in ("code", "status")]
        status = next((n for n in numbers if isinstance(n, int) and 400 <= n < 600), 200)
    metadata = fields.get("metadata")
    flagged = isinstance(metadata, dict) and bool(metadata.get("reasons"))
    if codes & _FILTER_CODES or (status in (400, 403) and flagged):
        return Refused("content filter", words)
    if status in (200, 400, 422, 451) and not fields.get("param") and _FILTER_WORDS.search(words):
        return Refused("content filter", words)
    what = f"answered {status}" if status != 200 else "answered with an error"
    detail = f" ({words})" if words else ""
    if (
        codes & _ACCOUNT_CODES
        or status == 402
        or (status == 429 and retry_after is None and _ACCOUNT_WORDS.search(words))
    ):
        raise ServiceError(what, detail, "look at the account's quota and billing", passing=False)
    if status in (408, 409, 425, 429) or status >= 500 or (status == 200 and codes & _PASSING_CODES):
        remedy = f"wait, or lower {section}.concurrency" if status == 429 else "look at the server"
        raise ServiceError(what, detail, remedy, passing=True, pause_seconds=_seconds(retry_after))
    remedies = {
        401: f"set {key_variable}",
        403: f"set {key_variable} to a key that may use the model",
        404: f"check {section}.base_url or {section}.model",
    }
    remedy = f"check {section}.base_url" if status < 400 else f"check the recipe's {section} section"
    if status in (200, 400, 422):
        what = f"refused a request: {what}"
    raise ServiceError(what, detail, remedies.get(status, remedy), passing=False)


def _codes(error: dict[str, Any]) -> Iterator[str]:
    """The error's code and type in one spelling: lower case, letters alone, without `error` at the end."""
    inner = error.get("innererror")
    for fields in (error, inner if isinstance(inner, dict) else {}):
        for name in ("code", "type", "status"):
            if isinstance(fields.get(name), str):
                yield re.sub(r"[^a-z]", "", fields[name].lower()).removesuffix("error")


def _seconds(retry_after: str | None) -> float | None:
    """A `Retry-After` in seconds; None for a date, or one that is too long to wait for."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _MAX_SAID_PAUSE_SECONDS else None
