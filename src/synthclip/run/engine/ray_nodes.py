"""Commands on other nodes of a Ray cluster, for work that takes several nodes at once."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.run.engine.ray import cluster_size
from synthclip.run.engine.stopping import GRACE_SECONDS

_WAIT_SECONDS = 60
"""For the resources of nodes that are there."""


def in_ray() -> bool:
    """Whether this process is one of a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def node_address() -> str:
    """Where the other nodes reach this one."""
    import ray

    return str(ray.util.get_node_ip_address())


@contextlib.contextmanager
def on_other_nodes(commands: Sequence[Sequence[str]], gpus: int) -> Iterator[Callable[[], list[str]]]:
    """Run each command on a node of its own, with so many GPUs where the cluster has any.

    The value gives them some seconds to end, and what those that did have printed. Leaving ends the others.
    Raises SynthClipError where the cluster has too few nodes, or too few that are free.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    alive = sum(node["Alive"] for node in ray.nodes())
    if alive <= len(commands):
        raise SynthClipError(
            f"training.nodes={len(commands) + 1}: the Ray cluster has {alive}: start others with `ray start`"
        )
    gpus = gpus if cluster_size()[1] else 0
    bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    group = placement_group([bundle] * len(commands), strategy="STRICT_SPREAD")
    try:
        if not group.wait(_WAIT_SECONDS):
            raise SynthClipError(
                f"training.nodes={len(commands) + 1}: other work holds the Ray cluster's nodes, "
                f"{gpus} GPUs are wanted of each: run the same command when they are free"
            )
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_output)
        places = [PlacementGroupSchedulingStrategy(group, number) for number in range(len(commands))]
        running = [
            task.options(scheduling_strategy=place).remote(list(command), str(Path.cwd()))
            for place, command in zip(places, commands, strict=True)
        ]

        def outputs() -> list[str]:
            ended, _ = ray.wait(running, num_returns=len(running), timeout=GRACE_SECONDS)
            printed: list[str] = ray.get(ended)
            return printed

        yield outputs
    finally:
        remove_placement_group(group)


def _output(command: list[str], folder: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder, check=False).stdout
