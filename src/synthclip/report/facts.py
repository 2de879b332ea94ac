"""What the log of a run says for its report: when, where and by what it was made, and how long that took."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthclip.recipe import Recipe

UNITS = {
    "concepts": "concepts",
    "captions": "captions",
    "match": "captions",
    "balance": "captions selected",
    "images": "images",
    "teacher": "pairs and concepts",
    "train": "pairs seen",
    "eval": "figures",
    "report": "page",
}
"""What the rows of a stage are."""


def stage_times(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`stage`, `shards`, `rows`, their `unit`, and `seconds` of work: of the shards that are there, the last
    time that each was made."""
    shards: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in metrics:
        if line.get("event") == "shard":
            shards.setdefault(line["stage"], {})[line["shard"]] = line
    return [
        {
            "stage": stage,
            "shards": len(made),
            "rows": sum(line["rows"] for line in made.values()),
            "unit": UNITS.get(stage, "rows"),
            "seconds": sum(line["seconds"] for line in made.values()),
        }
        for stage, made in shards.items()
    ]


def facts(
    recipe: Recipe, metrics: Sequence[Mapping[str, Any]], tokens: Mapping[str, float]
) -> dict[str, str]:
    """What stands at the top of a report, by name; what the log does not say is left out."""
    return dict(_facts(recipe, metrics, tokens))


def _facts(
    recipe: Recipe, metrics: Sequence[Mapping[str, Any]], tokens: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    ended = [line for line in metrics if line.get("event") == "stage"]
    made = [line for line in ended if line["stage"] != "report"] or ended
    if made:
        yield "Made", time.strftime("%Y-%m-%d", time.gmtime(made[-1]["time"]))
    begun = [line for line in metrics if line.get("event") == "begin"]
    for name, key in (("SynthCLIP", "version"), ("On", "machine")):
        if known := dict.fromkeys(str(line[key]) for line in begun if key in line):
            yield name, ", then ".join(known)
    if ended:
        yield "Time", duration(sum(line["seconds"] for line in ended))
    if times := stage_times(metrics):
        config = recipe.training
        several = {"train": config.nodes * config.processes}
        worked_s = sum(row["seconds"] * several.get(row["stage"], 1) for row in times)
        yield "Device-hours", f"{worked_s / 3600:.3g}"
    if "cost" in tokens:
        yield "Paid for tokens", f"{tokens['cost']:,.2f}"


def duration(seconds: float) -> str:
    """Such as `2 min 05 s`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
