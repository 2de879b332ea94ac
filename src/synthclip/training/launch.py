"""Starts the processes of a training by torchrun: on this machine, or on nodes of SLURM or of Ray."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.run.engine.ray import in_ray, node_address, on_other_nodes
from synthclip.run.engine.worker import asked_to_stop
from synthclip.training.loop import Report

TELL = "synthclip-train "
"""What a worker's line for its launcher begins with."""
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def torchrun(run: Path, nodes: int, processes: int, report: Report) -> None:
    """Train the recipe of a run in so many processes a node, to the last step or until asked to stop."""
    workers = [f"--nproc-per-node={processes}", "-m", "synthclip.training.worker", str(run)]
    if nodes == 1:
        _train(run, [*_TORCHRUN, "--standalone", *workers], report)
    elif int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) >= nodes:
        _train(run, [*_srun(nodes), *workers], report)
    elif in_ray():
        meet = [f"--nnodes={nodes}", f"--master-addr={node_address()}", f"--master-port={_free_port()}"]
        commands = [[*_TORCHRUN, *meet, f"--node-rank={rank}", *workers] for rank in range(nodes)]
        with on_other_nodes(commands[1:], gpus=processes) as outputs:
            _train(run, commands[0], report, outputs)
    else:
        raise SynthClipError(
            f"training.nodes={nodes}: this machine is not in a SLURM allocation of so many nodes: set "
            "engine.kind to slurm or ray, or start torchrun on each node as `synthclip train --help` says"
        )


def _train(
    run: Path, command: Sequence[str], report: Report, elsewhere: Callable[[], Iterable[str]] = tuple
) -> None:
    """Run a command that starts workers and prints what they tell; `elsewhere` gives what others printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    error = None
    with process, asked_to_stop(then=process.terminate) as stop:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(TELL):
                sys.stderr.write(line)
                continue
            told = json.loads(line.removeprefix(TELL))
            error = told.get("error", error)
            if "rows" in told:
                report(told["rows"], told["figures"])
    for line in "".join(elsewhere()).splitlines():
        if line.startswith(TELL):
            error = error or json.loads(line.removeprefix(TELL)).get("error")
    if error:
        raise SynthClipError(error)
    if process.returncode and not stop():
        raise SynthClipError(
            f"{run}: a training process died (torchrun ended with code {process.returncode}; what it says "
            "stands above): the same command goes on from the last checkpoint"
        )


def _srun(nodes: int) -> list[str]:
    """One torchrun on each node of the allocation that this process is in; they meet on this machine."""
    # This process holds CPUs and GPUs of the first node: the new step shares them.
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}", "--kill-on-bad-exit=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{_free_port()}"]
    return [*srun, *_TORCHRUN, f"--nnodes={nodes}", *meet]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
