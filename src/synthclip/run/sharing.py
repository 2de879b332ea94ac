"""Finished shards taken over from other runs, so that what several recipes share is made once."""

import shutil
from collections.abc import Sequence

from synthclip.run.durable import Manifest, disk_errors
from synthclip.run.engine import Shard
from synthclip.run.stage import Stage
from synthclip.run.store import RunDirectory


def link(stage: Stage, shards: Sequence[Shard], donors: Sequence[RunDirectory]) -> set[str]:
    """Take shards over from the first run that holds each, made of just the same; the names of those found.

    Their files are hard links, copies where the disk knows none: no run ever changes a file in place. What a
    shard cost there is noted in the log, with `linked_from`.
    """
    linked: set[str] = set()
    for donor in donors:
        seconds = _seconds(donor, stage.name)
        for shard in shards:
            made = donor.manifest(stage.name, shard.name) if shard.name not in linked else None
            if made is None or made.fingerprint != stage.fingerprint(shard):
                continue
            _link(stage, made, donor)
            shutil.rmtree(stage.partial(shard), ignore_errors=True)
            stage.run.log(
                event="shard",
                stage=stage.name,
                shard=made.shard,
                rows=made.rows,
                rejected=dict(made.rejected),
                seconds=seconds.get(made.shard, 0.0),
                linked_from=donor.path.name,
            )
            linked.add(shard.name)
    return linked


def _link(stage: Stage, made: Manifest, donor: RunDirectory) -> None:
    run = stage.run
    with (
        disk_errors(run.stage(stage.name)),
        run.begin(stage.name, made.shard, made.fingerprint, stage.rejects) as writer,
    ):
        for entry in made.files:
            source, target = donor.file(stage.name, entry.path), writer.path(entry.path)
            try:
                target.hardlink_to(source)
            except OSError:
                shutil.copyfile(source, target)
        writer.publish(made)
    run.reload(stage.name, made.shard)


def _seconds(donor: RunDirectory, stage: str) -> dict[str, float]:
    """How long each shard of a stage took there, by its log."""
    lines = (line for line in donor.metrics() if line.get("event") == "shard" and line["stage"] == stage)
    return {line["shard"]: line["seconds"] for line in lines}
