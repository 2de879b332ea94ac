"""How a run stands just now, as the first page shows it: read again at most every few seconds."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from synthclip import schema
from synthclip.evaluation.results import read_results
from synthclip.recipe import Recipe, load_saved_recipe
from synthclip.recipe.training import HELDOUT
from synthclip.report.page import figure_charts, loss_chart
from synthclip.run.durable import rejected_by_reason
from synthclip.run.pipeline import status
from synthclip.run.stage import Status
from synthclip.run.store import Manifest, RunDirectory
from synthclip.textgen.spending import spent_and_planned

_FRESH_S = 1.5
_SHARE = 10
"""Reading the state takes at most this part of the time: one in ten."""
_CHART_FRESH_S = 10.0


@dataclass(frozen=True)
class Step:
    """One step of the funnel: how many came through it, and how far its stage has come."""

    label: str
    stage: str
    state: str
    """Of `StageState`, or `running`."""
    count: int
    done: int
    total: int | None
    """Shards, in training steps; None where that is not known yet."""
    refused: int
    note: str


@dataclass(frozen=True)
class Made:
    """What the finished shards of a stage hold, also where the recipe has changed since."""

    shards: int
    rows: int
    refused: Mapping[str, int]
    """By reason, the most frequent first."""


@dataclass(frozen=True)
class Live:
    status: Status
    recipe: Recipe
    made: Mapping[str, Made]
    """By stage."""
    funnel: tuple[Step, ...]
    spent: str
    """What the language model's tokens came to, beside the plan; empty where it has none."""
    results: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_RESULT` of the finished evaluation."""
    loss: Markup
    figures: Mapping[str, Markup]


class Watch:
    """Reads the state of one run for all who look at it."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._lock = run, threading.Lock()
        self._live: Live | None = None
        self._until = 0.0
        self._charts: tuple[Markup, Mapping[str, Markup]] = Markup(""), {}
        self._charts_until = 0.0
        self._charts_of: object = None

    def read(self) -> Live:
        """The state as it is, or was a moment ago. Raises SynthClipError where the run cannot be read."""
        with self._lock:
            if self._live is None or time.monotonic() >= self._until:
                started = time.monotonic()
                self._live = self._read()
                took = time.monotonic() - started
                self._until = time.monotonic() + max(_FRESH_S, _SHARE * took)
            return self._live

    def _read(self) -> Live:
        found = status(self._run)
        recipe = load_saved_recipe(self._run.path)
        manifests = {state.stage: self._run.manifests(state.stage) for state in found.stages}
        made = {
            stage: Made(len(there), sum(one.rows for one in there), rejected_by_reason(there))
            for stage, there in manifests.items()
        }
        self._draw(found, recipe)
        results = self._run.file("eval", "results.parquet")
        return Live(
            found,
            recipe,
            made,
            tuple(_funnel(found, made, manifests, recipe)),
            spent_and_planned(recipe, made["concepts"].rows, found.tokens) if found.tokens else "",
            tuple(read_results(results)) if results.is_file() else (),
            *self._charts,
        )

    def _draw(self, found: Status, recipe: Recipe) -> None:
        """Draw the charts again where there is something new, and they were not drawn just now."""
        state = found.activity and found.activity.done, found.evaluated, found.holder
        if state == self._charts_of or time.monotonic() < self._charts_until:
            return
        curve, figures = self._of_training()
        values = {"training": recipe.training.model_dump()}
        if figures is not None and len(figures["step"].unique()) < 2:  # no line yet
            figures = None
        drawn = {name: chart for name, chart in figure_charts(figures).items() if chart}
        self._charts, self._charts_of = (loss_chart(curve, values), drawn), state
        self._charts_until = time.monotonic() + _CHART_FRESH_S

    def _of_training(self) -> tuple[pa.Table | None, pa.Table | None]:
        """The curve and the figures of the training that goes on, else of the finished one."""
        if self._run.manifests("train"):
            paths = (self._run.file("train", name) for name in ("curve.parquet", "figures.parquet"))
            curve, figures = (schema.read_table(path) if path.is_file() else None for path in paths)
            return curve, figures
        lines = self._run.metrics()
        starts = [at for at, line in enumerate(lines) if line.get("event") == "training"]
        since = lines[starts[-1] :] if starts else []
        points = [(line["step"], line["loss"]) for line in since if line.get("event") == "train"]
        curve = pa.table([[point[at] for point in points] for at in (0, 1)], ["step", "loss"])
        taken = [row for line in since if line.get("event") == "eval" for row in _figures(line)]
        return curve, pa.Table.from_pylist(taken, schema.EVAL_RESULT) if taken else None


def _figures(line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `schema.EVAL_RESULT` from a line of the log, whose names are those of `figure_name`."""
    for name in (name for name in line if "/" in name):
        *of, task, metric = name.rsplit("/", 2)
        if isinstance(value := line[name], float):
            yield {"dataset": of[0] if of else HELDOUT, "task": task, "metric": metric, "value": value} | {
                "step": line["step"]
            }


def _funnel(
    found: Status, made: Mapping[str, Made], manifests: Mapping[str, Sequence[Manifest]], recipe: Recipe
) -> Iterator[Step]:
    states = {state.stage: state for state in found.stages}

    def step(label: str, stage: str, count: int, note: str = "") -> Step:
        state, now = states[stage], found.activity
        running = now is not None and now.stage == stage
        done, total = len(state.manifests), None if state.shards is None else len(state.shards)
        if now is not None and running:
            done, total = now.done, now.total
        shown = "running" if running and found.holder else state.state
        return Step(label, stage, shown, count, done, total, sum(made[stage].refused.values()), note)

    yield step("concepts", "concepts", made["concepts"].rows)
    yield step("captions", "captions", made["captions"].rows)
    balanced = manifests["balance"]
    lost = sum(int(one.notes.get(name, 0)) for one in balanced for name in ("duplicates", "unmatched"))
    matched = made["captions"].rows - lost if balanced else made["match"].rows
    yield step("matched", "match", matched, "distinct, and name a concept" if balanced else "")
    yield step("selected", "balance", made["balance"].rows)
    train = sum(one.rows for one in manifests["images"] if one.split in ("train", schema.EXCHANGED))
    others = made["images"].rows - train
    yield step("images", "images", train, f"and {others:,} to evaluate on" if others else "")
    seen = made["train"].rows
    if found.activity and found.activity.unit == "steps":
        seen = found.activity.done * recipe.training.batch_size
    yield step("pairs seen", "train", seen, f"in batches of {recipe.training.batch_size:,}" if seen else "")
