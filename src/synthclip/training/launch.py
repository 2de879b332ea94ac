"""Starts the processes of a training by torchrun, on this machine or on the nodes of a SLURM allocation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from synthclip.engine.stopping import asked_to_stop
from synthclip.errors import SynthClipError
from synthclip.training.loop import Report

TELL = "synthclip-train "
"""What a worker's line for its launcher begins with."""


def torchrun(run: Path, nodes: int, processes: int, report: Report) -> None:
    """Train the recipe of a run in so many processes a node, to the last step or until asked to stop."""
    command = _everywhere(nodes) if nodes > 1 else _here()
    command += [f"--nproc-per-node={processes}", "-m", "synthclip.training.worker", str(run)]
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
    if error:
        raise SynthClipError(error)
    if process.returncode and not stop():
        raise SynthClipError(
            f"{run}: a training process died (torchrun ended with code {process.returncode}; what it says "
            "stands above): the same command goes on from the last checkpoint"
        )


def _here() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def _everywhere(nodes: int) -> list[str]:
    """One torchrun on each node of the allocation that this process is in; they meet on this machine."""
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) < nodes:
        raise SynthClipError(
            f"training.nodes={nodes}: this machine is not in a SLURM allocation of so many nodes: set "
            "engine.kind=slurm, or start torchrun on each node as `synthclip train --help` says"
        )
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    # This process holds CPUs and GPUs of the first node: the new step shares them.
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}", "--kill-on-bad-exit=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{port}"]
    return [*srun, sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", *meet]
