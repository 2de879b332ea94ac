"""Starts the processes of a training on this machine, by torchrun."""

import json
import subprocess
import sys
from pathlib import Path

from synthclip.engine.stopping import asked_to_stop
from synthclip.errors import SynthClipError
from synthclip.training.loop import Report

TELL = "synthclip-train "
"""What a worker's line for its launcher begins with."""


def torchrun(run: Path, processes: int, report: Report) -> None:
    """Train the recipe of a run in so many processes, until the last step or until asked to stop."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "synthclip.training.worker", str(run)]
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
        raise RuntimeError(f"torchrun ended with code {process.returncode}; what it says stands above")
