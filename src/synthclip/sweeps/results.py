"""What a sweep found: figures over seeds and items, their differences to the base, the cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.table import Table

from synthclip import schema
from synthclip.evaluation.metrics import Interval, normal_interval, over_runs
from synthclip.evaluation.results import (
    Items,
    Key,
    aligned,
    figure_name,
    key_of,
    paired_bootstrap,
    read_items,
    read_results,
)
from synthclip.recipe import Recipe
from synthclip.run.pipeline import build_stage
from synthclip.run.stage import tokens_spent
from synthclip.run.store import Manifest, Outcome, RunDirectory
from synthclip.sweeps.painters import by_others, judging_painters, trained_on
from synthclip.sweeps.runs import Swept
from synthclip.sweeps.variants import Run

COVERS = (
    "95 % intervals and p: over other seeds and other test items together (min F', Clark 1973), paired with "
    "the base by seed and item; with one seed over items alone, by paired bootstrap. p is not corrected for "
    "the number of comparisons"
)
"""What intervals and p say, and what not, for people."""

RESULT = pa.schema(
    [
        ("variant", pa.string()),
        *[(name, schema.EVAL_RESULT.field(name).type) for name in ("dataset", "task", "metric", "value")],
        ("ci95_low", pa.float64()),
        ("ci95_high", pa.float64()),
        ("chance", pa.float64()),
        ("n", pa.int64()),
        ("seeds", pa.int64()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p_value", pa.float64()),
        ("device_hours", pa.float64()),
    ]
)
"""`results.parquet`: `value` is the mean over `seeds` independent replicates, `device_hours` those of one run
with everything it is made of, shared or not. Null where there is none."""

RUN = pa.schema(
    [
        *[(name, pa.string()) for name in ("run", "variant")],
        *[(name, pa.int64()) for name in ("data_seed", "seed")],
        *[
            (name, schema.EVAL_RESULT.field(name).type)
            for name in ("dataset", "task", "metric", "value", "n")
        ],
        ("pairs", pa.int64()),
        ("device_hours", pa.float64()),
        ("error", pa.string()),
    ]
)
"""`runs.parquet`: a row for each figure of each run, one with its `error` for a run that failed. `pairs` are
the images of its own captions that it was trained on, which are what a share of the data has fewer of."""


@dataclass(frozen=True)
class Finding:
    """A row of `RESULT`."""

    variant: str
    dataset: str
    task: str
    metric: str
    value: float
    ci95_low: float | None
    ci95_high: float | None
    chance: float
    n: int
    seeds: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    device_hours: float | None

    @property
    def figure(self) -> str:
        return figure_name({"dataset": self.dataset, "task": self.task, "metric": self.metric})


@dataclass(frozen=True)
class Found:
    """The results of a sweep."""

    findings: tuple[Finding, ...]
    runs: tuple[Mapping[str, Any], ...]
    """Rows of `RUN`."""
    failed: Mapping[str, str]
    spent_hours: float
    """Device-hours of all runs, what they share counted once."""
    services: float
    """What services asked for tokens, by `llm.prices`, for all runs together."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Judged:
    """One model's figures."""

    rows: Mapping[Key, Mapping[str, Any]]
    items: Mapping[Key, Items]


def find(swept: Swept) -> Found:
    """Read what the models of a sweep were judged with."""
    judged = {one.shard: _read(swept.directory, one.shard) for one in swept.judged}
    if swept.sweep.judges:
        sets = judging_painters(swept.runs, swept.sweep.base_name, swept.sweep.judges)
        painters = {one.name: trained_on(one.recipe) for one in swept.runs}
        judged = {
            name: _with_others(one, by_others(one.items, sets, painters.get(name, frozenset())))
            for name, one in judged.items()
        }
    directories = {one.name: RunDirectory(swept.path(one)) for one in swept.runs}
    metrics = {name: directory.metrics() for name, directory in directories.items()}
    hours = {one.name: device_hours(one, directories[one.name], metrics[one.name]) for one in swept.runs}
    by_variant: dict[str, dict[tuple[int, int], str]] = {}
    for one in swept.runs:
        if one.name in judged:
            by_variant.setdefault(one.variant, {})[one.replicate] = one.name
    for name, own_shards in swept.baselines.items():
        by_variant[name] = {(0, number): one for number, one in enumerate(own_shards) if one in judged}
    base = by_variant.get(swept.sweep.base_name, {})
    findings = []
    for variant, shards in by_variant.items():
        own = [hours[shard][0] for shard in shards.values() if shard in hours]
        against = None if variant == swept.sweep.base_name else base
        for key in next((judged[shard].rows for shard in shards.values()), {}):
            cost = sum(own) / len(own) if own else None
            findings.append(_finding(variant, key, shards, against, judged, cost))
    findings.sort(key=lambda one: one.task != "zero_shot")
    notes = Counter(note for one in swept.judged for note in one.notes.get("failed", ()))
    return Found(
        tuple(findings),
        tuple(_run_rows(swept, judged, hours)),
        swept.failed,
        sum(spent for _, spent in hours.values()),
        sum(tokens_spent(lines).get("cost", 0.0) for lines in metrics.values()),
        tuple(notes),
    )


def _read(directory: RunDirectory, shard: str) -> _Judged:
    folder = directory.file("judged", shard)
    rows = read_results(folder / "results.parquet")
    return _Judged({key_of(row): row for row in rows}, read_items([folder / "items.parquet"]))


def _with_others(judged: _Judged, others: Mapping[Key, Items]) -> _Judged:
    """With the figures over those items before all others; chance is that of the sets they are taken from."""
    rows: dict[Key, Mapping[str, Any]] = {}
    for key, items in others.items():
        values = np.array([value for value, _ in items.values()])
        value, variance = float(values.mean()), float(values.var() / max(1, len(values) - 1))
        low, high = normal_interval(value, variance)
        alike = next(row for (_, *figure), row in judged.rows.items() if tuple(figure) == key[1:])
        rows[key] = {**alike, "dataset": key[0], "value": value, "n": len(values)}
        rows[key] = {**rows[key], "ci95_low": low, "ci95_high": high}
    return _Judged({**rows, **judged.rows}, {**others, **judged.items})


def _finding(
    variant: str,
    key: Key,
    shards: Mapping[tuple[int, int], str],
    base: Mapping[tuple[int, int], str] | None,
    judged: Mapping[str, _Judged],
    hours: float | None,
) -> Finding:
    there = {replicate: shard for replicate, shard in shards.items() if key in judged[shard].rows}
    rows = [judged[shard].rows[key] for shard in there.values()]
    values, groups = aligned([judged[shard].items.get(key, {}) for shard in there.values()])
    replicates, means = _replicates(list(there), values)
    value = sum(row["value"] for row in rows) / len(rows)
    interval: tuple[float | None, float | None] = (None, None)
    if len(rows) == 1:
        interval = rows[0]["ci95_low"], rows[0]["ci95_high"]
    elif len(replicates) > 1 and means.size:
        interval = over_runs(means, groups).share_interval
    difference, between, p_value = _difference(key, there, base, judged)
    n, chance = rows[0]["n"], rows[0]["chance"]
    low, high = between or (None, None)
    return Finding(
        variant, *key, value, *interval, chance, n, len(replicates), difference, low, high, p_value, hours
    )


def _difference(
    key: Key,
    shards: Mapping[tuple[int, int], str],
    base: Mapping[tuple[int, int], str] | None,
    judged: Mapping[str, _Judged],
) -> tuple[float | None, Interval | None, float | None]:
    """(difference to the base, its interval, its p value), over the replicates that both have. A baseline
    without seeds is compared with each training of the base."""
    if not base:
        return None, None, None
    single = next(iter(shards.values())) if len(shards) == 1 else None
    both = {
        replicate: (shards.get(replicate, single or ""), of_base)
        for replicate, of_base in base.items()
        if (replicate in shards or single) and key in judged[of_base].rows
    }
    if not both:
        return None, None, None
    pairs = [(judged[own], judged[other]) for own, other in both.values()]
    difference = sum(a.rows[key]["value"] - b.rows[key]["value"] for a, b in pairs) / len(pairs)
    values, groups = aligned([one.items.get(key, {}) for pair in pairs for one in pair])
    if not values.size:
        return difference, None, None
    ours, theirs = values[0::2], values[1::2]
    replicates, means = _replicates(list(both), ours - theirs)
    if len(replicates) > 1:
        estimate = over_runs(means, groups)
        return difference, estimate.interval, estimate.p_value
    interval, p_value = paired_bootstrap(theirs.mean(axis=0), ours.mean(axis=0), groups)
    return difference, interval, p_value


def _replicates(
    names: Sequence[tuple[int, int]], values_RN: NDArray[np.float64]
) -> tuple[list[int], NDArray[np.float64]]:
    """Independent replicates: data seeds, each the mean of its trainings, where there are several; else
    trainings. Their values, float64 [replicates, N]."""
    which = (
        [data for data, _ in names] if len({data for data, _ in names}) > 1 else [seed for _, seed in names]
    )
    kinds = sorted(set(which))
    chosen = np.array(which)
    return kinds, np.stack([values_RN[chosen == kind].mean(axis=0) for kind in kinds])


def device_hours(
    run: Run, directory: RunDirectory, metrics: Iterable[Mapping[str, Any]]
) -> tuple[float, float]:
    """(of all that the run is made of, of what was not linked from another run), by the log of its shards.

    A shard's device is what its worker asks for: a GPU, all those of a training, or a core.
    """
    shards = {(line["stage"], line["shard"]): line for line in metrics if line.get("event") == "shard"}
    asked = {stage: build_stage(stage, run.recipe, directory).resources() for stage, _ in shards}
    all_s = spent_s = 0.0
    for (stage, _), line in shards.items():
        seconds = line["seconds"] * max(1, asked[stage].gpus) * asked[stage].nodes
        all_s += seconds
        spent_s += 0.0 if "linked_from" in line else seconds
    return all_s / 3600, spent_s / 3600


def _run_rows(
    swept: Swept, judged: Mapping[str, _Judged], hours: Mapping[str, tuple[float, float]]
) -> Iterator[dict[str, Any]]:
    for one in swept.runs:
        trained = RunDirectory(swept.path(one)).manifest("train", "all")
        of = {
            "run": one.name,
            "variant": one.variant,
            "data_seed": one.data_seed,
            "seed": one.seed,
            "pairs": own_pairs(one.recipe, trained) if trained else None,
            "device_hours": hours[one.name][0],
            "error": swept.failed.get(one.name),
        }
        rows = judged[one.name].rows.values() if one.name in judged else ({},)
        names = ("dataset", "task", "metric", "value", "n")
        yield from ({**of, **{name: row.get(name) for name in names}} for row in rows)


def own_pairs(recipe: Recipe, trained: Manifest) -> int:
    """The images of its own captions that a model was trained on; those of all sources where it has none."""
    sizes = trained.notes.get("pairs") or ()
    sources = zip(sizes, recipe.training.sources, strict=False)
    return sum([size for size, source in sources if source.kind == "run"] or sizes)


def write(directory: RunDirectory, found: Found) -> None:
    """`results/results.parquet` and `results/runs.parquet` in the folder of the sweep."""
    with directory.lock(), directory.begin("results", "all", "") as writer:
        writer.rows("results.parquet", RESULT, [asdict(one) for one in found.findings])
        writer.rows("runs.parquet", RUN, found.runs)
        writer.commit(Outcome(len(found.findings)))


def findings_table(found: Found, price: float | None = None) -> Table:
    """The first metric of each task on each set, a line for each variant."""
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "variant"):
        table.add_column(column, no_wrap=True)
    columns = (
        "mean",
        "95 % interval",
        "chance",
        "less the base",
        "95 % interval",
        "p",
        "seeds",
        "device-hours",
    )
    for column in (*columns, *([] if price is None else ["cost"])):
        table.add_column(column, justify="right", no_wrap=True)
    shown: dict[tuple[str, str], str] = {}
    for one in found.findings:
        shown.setdefault((one.dataset, one.task), one.metric)
    for dataset, task in shown:
        for one in found.findings:
            if (one.dataset, one.task, one.metric) == (dataset, task, shown[dataset, task]):
                table.add_row(*_cells(one, price))
    return table


def _cells(one: Finding, price: float | None) -> list[str]:
    hours = one.device_hours
    cells = [
        one.figure,
        one.variant,
        f"{100 * one.value:.1f}",
        span(one.ci95_low, one.ci95_high),
        f"{100 * one.chance:.1f}",
        "" if one.difference is None else f"{100 * one.difference:+.1f}",
        span(one.difference_low, one.difference_high, "+"),
        "" if one.p_value is None else f"{one.p_value:.4f}",
        str(one.seeds),
        "" if hours is None else f"{hours:.3f}",
    ]
    return cells if price is None else [*cells, "" if hours is None else f"{hours * price:,.2f}"]


def span(low: float | None, high: float | None, sign: str = "") -> str:
    """An interval in percent; nothing where there is none."""
    if low is None or high is None:
        return ""
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
