"""What a gallery is asked for: the address of a page as a value, and words as a query of the index."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlencode

MAX_WORDS = 32
MAX_CHARS = 500


@dataclass(frozen=True)
class Filter:
    """What a gallery shows; its fields are the parameters of the address."""

    q: str = ""
    """Words of the caption, all of them; `"two words"` stand together, `bird*` also finds birds."""
    concept: str = ""
    painter: str = ""
    split: str = ""
    variants: str = ""
    """`all`; else of each caption one image by each painter."""
    show: str = "kept"
    """`kept`, `refused` or `all`."""
    reason: str = ""
    """Why images were refused; then only these are shown."""
    sort: str = ""
    """A score, the highest first; `-NAME` the lowest first. Empty: in the order of the shards."""

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Filter":
        """Unknown parameters are left alone; what is too long is cut."""
        known = {name: parameters[name].strip() for name in cls.__dataclass_fields__ if name in parameters}
        chosen = cls(**{name: value[:MAX_CHARS] for name, value in known.items()})
        return chosen if chosen.show in ("kept", "refused", "all") else replace(chosen, show="kept")

    def address(self, **changes: str) -> str:
        """The query of an address with these fields changed."""
        values = {**asdict(self), **changes}
        defaults = asdict(Filter())
        return urlencode({name: value for name, value in values.items() if value != defaults.get(name, "")})

    @property
    def is_narrow(self) -> bool:
        """Whether captions are searched, by words or by a concept."""
        return bool(self.q or self.concept)


def plain(text: str) -> str:
    """What somebody wrote, cut where it is too long, without control characters."""
    return "".join(" " if unicodedata.category(one)[0] == "C" else one for one in text[:MAX_CHARS]).strip()


def whole(text: str, digits: int = 18) -> int:
    """A number in an address; 0 where it is none, or has more digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else 0


def match_of(words: str) -> str:
    """A query of FTS5 for all of the words; empty where there is none to search for."""
    found = re.findall(r'"([^"]*)"|(\S+)', plain(words))
    terms = []
    for phrase, word in found[:MAX_WORDS]:
        text = (phrase or word).replace('"', " ")
        if any(one.isalnum() for one in text):
            terms.append(f'"{text.rstrip("*")}"' + "*" * text.endswith("*"))
    return " AND ".join(terms)
