"""Finished shards taken over from other runs, so that what several recipes share is made once."""

import shutil
from collections.abc import Sequence
from typing import Any

from synthclip.run.durable import Manifest, disk_errors
from synthclip.run.engine import Shard
from synthclip.run.stage import Stage
from synthclip.run.store import RunDirectory


def link(stage: Stage, shard: Shard, donors: Sequence[RunDirectory]) -> bool:
    """Take a shard over from the first run that holds it, made of just the same; whether one does.

    Its files are hard links, copies where the disk knows none: no run ever changes a file in place. What the
    shard cost there is noted in the log, with `linked_from`.
    """
    fingerprint = stage.fingerprint(shard)
    for donor in donors:
        made = donor.manifest(stage.name, shard.name)
        if made is not None and made.fingerprint == fingerprint:
            _link(stage, made, donor)
            shutil.rmtree(stage.partial(shard), ignore_errors=True)
            stage.run.log(**_logged(donor, stage.name, made), linked_from=donor.path.name)
            return True
    return False


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


def _logged(donor: RunDirectory, stage: str, made: Manifest) -> dict[str, Any]:
    """The line of the log that tells of the shard, with the seconds that it took."""
    seconds = [
        line["seconds"]
        for line in donor.metrics()
        if line.get("event") == "shard" and (line["stage"], line["shard"]) == (stage, made.shard)
    ]
    return {
        "event": "shard",
        "stage": stage,
        "shard": made.shard,
        "rows": made.rows,
        "rejected": dict(made.rejected),
        "seconds": seconds[-1] if seconds else 0.0,
    }
