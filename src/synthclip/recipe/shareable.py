"""Recipe values as they may be passed on: without local paths, hosts, accounts, credentials and keys."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
CUT = "…/"
"""Stands for what a path or an address began with."""

_PRIVATE_KEYS = re.compile(
    r"(?:^|[_-])(?:key|token|secret|password|passwd|credentials?|authorization|cookie|account|user|username"
    r"|login|email|host|hostname|address|partition|qos)$",
    re.IGNORECASE,
)
_URL = re.compile(r"(\w[\w+.-]*)://\S+")
_SECRET = re.compile(
    r"\b(?:(?:sk|pk|hf|gsk|xai|ghp|gho|ghs|ghu|github_pat|glpat|xox[a-z]|r8|nvapi)[-_][\w-]{8,}"
    r"|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)|(?<=Bearer )\S+"
)
_EMAIL = re.compile(
    # Not ORG/NAME@REVISION, nor NAME@ and the digest of a file.
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?<![\w.+/-])[\w.+-]+@(?![0-9a-f]{12,}\b)[\w-]+"
)
_HOST = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\b[A-Za-z][\w-]*(?:\.[\w-]+)*:\d{4,5}\b")
_WHOLE_PATH = re.compile(r"(?:file://|[\w-]+:(?!//))?(?:~|[A-Za-z]:[\\/]|[\\/]|\.\.[\\/]).*", re.DOTALL)
_PART = r"[\\/]+[^…\\/\s'\",;:()\[\]]+"
_PATH_INSIDE = re.compile(
    rf"(?<![\w<.…/\\}})\]])(?:(?:~[\w.-]*|[A-Za-z]:|\.\.)(?:{_PART})+|(?:{_PART}){{2,}})"
)


def shareable(value: Any) -> Any:
    """The same value in plain types, with whatever tells of a machine or a person cut out of its texts.

    Of local paths and addresses the last part stays (`…/captions.csv`). Names of packages, models and hub
    repositories stay as they are.
    """
    if isinstance(value, Mapping):
        return {
            shareable(key): HIDDEN if _is_private(str(key), entry) else shareable(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [shareable(entry) for entry in value]
    return _shareable_text(value) if isinstance(value, str) else value


def _is_private(key: str, value: Any) -> bool:
    return value not in (None, "", {}, []) and _PRIVATE_KEYS.search(key) is not None


def _shareable_text(text: str) -> str:
    if _WHOLE_PATH.fullmatch(text) and not text.isspace() and re.search(r"[\\/]\S", text):
        text = _last_part(text)
    text = _URL.sub(lambda found: f"{found[1]}://{_last_part(re.split('[?#]', found[0])[0])}", text)
    text = _SECRET.sub(HIDDEN, text)
    text = _EMAIL.sub(HIDDEN, text)
    text = _PATH_INSIDE.sub(lambda found: _last_part(found[0]), text)
    return _HOST.sub(HIDDEN, text)


def _last_part(path: str) -> str:
    """`…/NAME`; of an address without a path, or of a home folder, `…`."""
    scheme, _, rest = path.rpartition("://")
    parts = [part for part in re.split(r"[\\/]+", rest) if part not in ("", "~", "..")]
    nameless = len(parts) < 2 if scheme else len(parts) == 2 and parts[0].lower() in ("home", "users")
    return "…" if nameless or not parts else CUT + parts[-1]
