"""The coverage loop: more captions for concepts that too few captions match."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from synthclip import keys
from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.textgen import ConceptSource
from synthclip.run.pipeline import run
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory
from synthclip.textgen.captions import Captions, Fill, other_fills, read_fills, write_fills
from synthclip.textgen.concepts import entries, read_bank
from synthclip.textgen.match import captions_by_concept

STAGES = ("concepts", "captions", "match")
_MAX_ATTEMPTS = 16  # for one matched caption


@dataclass(frozen=True)
class Coverage:
    """How the concepts of a run stand."""

    concepts: int
    """How many were looked at."""
    lacking: Mapping[str, int]
    """Concept -> matched captions that it lacks."""
    unknown: tuple[str, ...]
    """Concepts asked for that are not in the bank."""
    asked: int
    """Captions asked for in addition, in all rounds."""


def fill(
    recipe: Recipe,
    out: Path | str,
    *,
    at_least: int | None = None,
    concepts: Path | None = None,
    rounds: int = 5,
    console: Console | None = None,
) -> Coverage:
    """Generate captions until at least `at_least` different ones match each concept.

    `at_least` is the recipe's `captions.per_concept` unless given; `concepts` a text file of the only
    concepts to look at, one a line. A round asks for what is lacking, and for more where few of a concept's
    captions came to a match; a concept where less than one in 16 does is given up. A round is recorded before
    it begins: after a kill the same call goes on with it. Ends when there is nothing left to ask for, or
    after `rounds` rounds for this goal. Brings the concepts, captions and matches up to date first.
    """
    if recipe.captions.imported is not None:
        raise SynthClipError("captions.imported is set, so no language model is asked: --fill cannot add any")
    console = console or Console()
    wanted = at_least or recipe.captions.per_concept
    listed = _listed(concepts) if concepts else None
    goal = keys.digest(str(wanted), *(listed or ()))
    while True:
        directory = run(recipe, out, stages=STAGES, console=console)
        values = Captions(recipe, directory).values
        recorded = read_fills(directory, values)
        counts = _counts(directory)
        looked_at = [text for text in (counts if listed is None else listed) if text in counts]
        if not looked_at:
            raise SynthClipError(f"{concepts}: none of its concepts is in the bank: see concepts.sources")
        lacking = {text: wanted - counts[text] for text in looked_at if counts[text] < wanted}
        asked = Counter(dict.fromkeys(lacking, recipe.captions.per_concept))
        for one in recorded:
            asked.update({text: count for text, count in one.asked.items() if text in lacking})
        ask = {text: _attempts(lack, counts[text], asked[text]) for text, lack in lacking.items()}
        ask = {text: attempts for text, attempts in ask.items() if attempts > 0}
        mine = [one for one in recorded if one.goal == goal]
        if not ask or len(mine) >= rounds:
            unknown = tuple(text for text in listed or () if text not in counts)
            return Coverage(len(looked_at), lacking, unknown, sum(sum(one.asked.values()) for one in mine))
        if other_fills(directory, values):
            console.line("fill: rounds made under other values of seed, llm or captions are left out")
        console.line(
            f"fill: round {len(mine) + 1}: {len(lacking)} of {len(looked_at)} concepts have less than "
            f"{wanted} matched captions: asking for {sum(ask.values())} more"
        )
        with directory.lock():
            write_fills(directory, values, [*recorded, Fill(goal, ask)])


def _attempts(lacking: int, matched: int, asked: int) -> int:
    """How many captions to ask for where `matched` of those `asked` for so far came to a match."""
    found = max(matched, 1)
    return min(lacking * -(-asked // found), _MAX_ATTEMPTS * found - asked)


def _listed(path: Path) -> list[str]:
    lines = entries(ConceptSource(kind="text", path=str(path)))
    found = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not found:
        raise SynthClipError(f"{path}: holds no concepts: expected one a line")
    return sorted(found)


def _counts(directory: RunDirectory) -> dict[str, int]:
    """How many different captions match each concept, in the order of the bank."""
    bank = read_bank(directory)
    return dict(zip(bank, captions_by_concept(directory, len(bank)).tolist(), strict=True))
