"""Captions: a language model writes several for each concept; what is refused is kept with its reason.

The coverage loop (`fill`) then asks for more where too few captions match a concept.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synthclip import keys
from synthclip.backends import LLM, Deferred, build_llm
from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.textgen import ConceptSource
from synthclip.run.durable import rejected_by_reason
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.schema import CAPTION, REJECTED_CAPTION
from synthclip.textgen import official
from synthclip.textgen.concepts import entries, read_bank
from synthclip.textgen.match import captions_by_concept
from synthclip.textgen.prompts import Prompt, Prompts, answered, check_language, requests
from synthclip.textgen.spending import Account

if TYPE_CHECKING:
    from synthclip.run.progress import Console

_T = TypeVar("_T")
_FILLS, _FILL = "captions/fills/", "fill-"
_MAX_ATTEMPTS = 16  # of the coverage loop, for one matched caption
_ADVICE = {
    "no spaces between words": "ask for a language with spaces (docs/language-models.md)",
    "unfinished": "raise llm.max_tokens, or switch the model's thinking off (docs/language-models.md)",
    "thinking without an answer": "switch the model's thinking off (docs/language-models.md)",
}
_MIN_CHECKED = 100  # answers of a shard, below which its share of refused ones may be chance


class Captions(Stage):
    """One shard for every `captions.concepts_per_shard` concepts, in the order of the bank, then of each
    round of the coverage loop; or one for every imported file."""

    name, reads, sections = "captions", ("concepts",), ("seed", "llm", "captions")
    revision = 2
    rejects = REJECTED_CAPTION

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.captions
        if config.imported is not None:
            return official.shards(config.imported)
        bank = self._bank()
        model = self.recipe.llm.inputs()
        shards = []
        for number, few in enumerate(_groups(range(len(bank)), config.concepts_per_shard)):
            inputs = {"concepts": keys.digest(f"{few[0]}", *(bank[k] for k in few)), **model}
            shards.append(_shard(f"{number:05d}", inputs, [(k, 0, config.per_concept) for k in few]))
        place = {text: k for k, text in enumerate(bank)}
        given = Counter(dict.fromkeys(bank, config.per_concept))
        for turn, fill in enumerate(_read_fills(self.run, self.values)):
            known = [text for text in fill.asked if text in place]
            for number, texts in enumerate(_groups(known, config.concepts_per_shard)):
                asked = [(place[text], given[text], fill.asked[text]) for text in texts]
                described = (f"{k} {first} {count} {bank[k]}" for k, first, count in asked)
                inputs = {"concepts": keys.digest(*described), **model}
                shards.append(_shard(f"{_FILL}{turn:03d}-{number:05d}", inputs, asked))
            given.update(fill.asked)
        return shards

    def check(self) -> None:
        if self.recipe.captions.imported is None:
            self.recipe.llm.inputs()  # refuses a model that is not there
            if self.recipe.captions.per_request > 1:
                self._check_lists()

    def resources(self) -> Resources:
        return Resources(gpus=self.recipe.llm.gpus)

    def prepare(self) -> None:
        if self.recipe.captions.language is not None:
            check_language(self.recipe.captions.language)
        if getattr(self.recipe.llm, "batch", False) and self.recipe.captions.imported is None:
            self._submit()

    def _submit(self) -> None:
        """Ask a model that answers hours later for all shards at once."""
        self.load()
        llm: LLM = self._llm
        if not isinstance(llm, Deferred):
            return
        for shard in self.shards():
            manifest = self.run.manifest(self.name, shard.name)
            if manifest is not None and manifest.fingerprint == self.fingerprint(shard):
                continue
            asked = self._asked(shard)
            if len(asked) > llm.max_requests:
                raise SynthClipError(
                    f"captions shard {shard.name} holds {len(asked):,} requests, a batch takes "
                    f"{llm.max_requests:,}: lower captions.concepts_per_shard"
                )
            drawn = [prompt for _, prompt in self._drawn(asked)]
            llm.submit(self.partial(shard), *requests(drawn, llm.continues))

    def load(self) -> None:
        if self.recipe.captions.imported is None:
            self._concepts = self._bank()
            self._prompts = Prompts(self.recipe.captions, self.recipe.seed)
            self._llm = build_llm(self.recipe.llm)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        config = self.recipe.captions
        if config.imported is not None:
            return official.make_captions(shard, writer, tick)
        llm: LLM = self._llm
        if isinstance(llm, Deferred):
            llm = llm.inside(self.partial(shard), lambda text: tick(0, batch=text))
        kept: list[dict[str, Any]] = []
        with Account(self.run, self.name, shard.name, llm, self.recipe.llm) as account:
            for batch in _groups(self._asked(shard), llm.batch_size):
                drawn = self._drawn(batch)
                found = answered(llm, [prompt for _, prompt in drawn], config)
                for (number, prompt), judged in zip(drawn, found, strict=True):
                    for text, reason in judged:
                        row = {
                            "caption_id": keys.text_id(text),
                            "concept_id": number,
                            "text": text,
                            "template": prompt.template.name,
                            "model": llm.name,
                            "seed": prompt.seed,
                        }
                        if reason is None:
                            kept.append(row)
                        else:
                            writer.reject(row, reason)
                account.note()
                done = sum(prompt.count for _, prompt in drawn)
                tick(done, kept=len(kept) / (len(kept) + writer.rejected.total()))
        writer.rows(f"{shard.name}.parquet", CAPTION, kept)
        if shard.size >= _MIN_CHECKED and not shard.name.startswith(_FILL):
            self._check_refused(len(kept), writer.rejected, f" shard {shard.name}")
        return Outcome(len(kept))

    def _asked(self, shard: Shard) -> list[tuple[int, int, int]]:
        """The requests of a shard: number of the concept, first attempt, how many captions."""
        most = self.recipe.captions.per_request
        return [
            (number, attempt, min(most, first + count - attempt))
            for number, first, count in shard.payload["asked"]
            for attempt in range(first, first + count, most)
        ]

    def _drawn(self, asked: Sequence[tuple[int, int, int]]) -> list[tuple[int, Prompt]]:
        """The prompt of each request, with its concept's number."""
        return [
            (number, self._prompts.draw(self._concepts[number], attempt, count))
            for number, attempt, count in asked
        ]

    def finish(self, manifests: Sequence[Manifest]) -> None:
        first = [manifest for manifest in manifests if not manifest.shard.startswith(_FILL)]
        self._check_refused(sum(manifest.rows for manifest in first), rejected_by_reason(first))

    def _check_refused(self, kept: int, rejected: Counter[str], where: str = "") -> None:
        refused = rejected.total()
        if refused > self.recipe.captions.max_refused * (kept + refused):
            [(reason, count)] = rejected.most_common(1)
            advice = _ADVICE.get(reason, "check llm and captions.templates")
            raise SynthClipError(
                f"captions{where}: {refused} of {kept + refused} captions refused, most often as {reason!r} "
                f"({count} times): {advice}, or raise captions.max_refused"
            )

    def _check_lists(self) -> None:
        """Raise SynthClipError for what no list of captions comes of."""
        captions, llm = self.recipe.captions, self.recipe.llm
        if getattr(llm, "stop", ()):
            raise SynthClipError(
                "captions.per_request: llm.stop would end an answer inside its list: set llm.stop=[]"
            )
        begun = [template.name for template in captions.templates if template.prefill]
        if begun and not getattr(llm, "chat", True):
            raise SynthClipError(
                f"captions.per_request: template {begun[0]!r} begins a single caption: leave its prefill out"
            )

    def _bank(self) -> list[str]:
        self.manifests_of("concepts")
        return read_bank(self.run)


def _groups(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _shard(name: str, inputs: Mapping[str, str], asked: Sequence[tuple[int, int, int]]) -> Shard:
    """`asked` are concepts by number, each with its first attempt and how many."""
    return Shard(name, inputs, {"asked": asked}, size=sum(count for _, _, count in asked))


@dataclass(frozen=True)
class _Fill:
    """One round of the coverage loop: the captions that it asked for beyond `captions.per_concept`.

    A record belongs to the recipe values it was worked out under. Under other values the captions are others,
    and so is what they lack: then it is ignored, and it counts again where the values come back.
    """

    goal: str
    """What the round was to reach; the rounds of one goal follow each other."""
    asked: Mapping[str, int]
    """Captions to generate in addition, by the text of the concept."""


def _read_fills(run: RunDirectory, values: Mapping[str, object]) -> list[_Fill]:
    """The rounds recorded under these recipe values, in order."""
    return [_Fill(**raw) for raw in run.read_json(_FILLS + _fills_name(values)) or ()]


def _write_fills(run: RunDirectory, values: Mapping[str, object], fills: Sequence[_Fill]) -> None:
    run.write_json(_FILLS + _fills_name(values), [asdict(fill) for fill in fills])


def _other_fills(run: RunDirectory, values: Mapping[str, object]) -> bool:
    """Whether rounds are recorded, but under other recipe values only."""
    recorded = {path.name for path in (run.path / _FILLS).glob("*.json")}
    return bool(recorded) and _fills_name(values) not in recorded


def _fills_name(values: Mapping[str, object]) -> str:
    return f"{keys.digest(json.dumps(values, sort_keys=True, ensure_ascii=False))[:16]}.json"


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
    console: "Console | None" = None,
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
    from synthclip.run.pipeline import run
    from synthclip.run.progress import Console

    console = console or Console()
    wanted = at_least or recipe.captions.per_concept
    listed = _listed(concepts) if concepts else None
    goal = keys.digest(str(wanted), *(listed or ()))
    while True:
        directory = run(recipe, out, stages=("concepts", "captions", "match"), console=console)
        values = Captions(recipe, directory).values
        recorded = _read_fills(directory, values)
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
        if _other_fills(directory, values):
            console.line("fill: rounds made under other values of seed, llm or captions are left out")
        console.line(
            f"fill: round {len(mine) + 1}: {len(lacking)} of {len(looked_at)} concepts have less than "
            f"{wanted} matched captions: asking for {sum(ask.values())} more"
        )
        with directory.lock():
            _write_fills(directory, values, [*recorded, _Fill(goal, ask)])


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
