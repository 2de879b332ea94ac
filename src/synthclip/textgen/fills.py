"""What the coverage loop asked for beyond `captions.per_concept`, on record in the run.

A record belongs to the recipe values it was worked out under. Under other values the captions are others, and
so is what they lack: it is passed over then, and counts again where the values come back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from synthclip.keys import digest
from synthclip.run.store import RunDirectory

_FOLDER = "captions/fills/"


@dataclass(frozen=True)
class Fill:
    """One round, by the text of the concepts."""

    goal: str
    """What the round was to reach; the rounds of one goal follow each other."""
    asked: Mapping[str, int]
    """Captions to generate in addition."""


def read(run: RunDirectory, values: Mapping[str, object]) -> list[Fill]:
    """The rounds recorded under these recipe values, in order."""
    return [Fill(**raw) for raw in run.read_json(_FOLDER + _name(values)) or ()]


def write(run: RunDirectory, values: Mapping[str, object], fills: Sequence[Fill]) -> None:
    run.write_json(_FOLDER + _name(values), [asdict(fill) for fill in fills])


def elsewhere(run: RunDirectory, values: Mapping[str, object]) -> bool:
    """Whether rounds are on record, but under other recipe values only."""
    recorded = {path.name for path in (run.path / _FOLDER).glob("*.json")}
    return bool(recorded) and _name(values) not in recorded


def _name(values: Mapping[str, object]) -> str:
    return f"{digest(json.dumps(values, sort_keys=True, ensure_ascii=False))[:16]}.json"
