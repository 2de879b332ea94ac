"""The share of a run's time in which a core waits, by stage.

    python benchmarks/idle.py [RECIPE] [KEY=VALUE ...]     # make demo takes about 8 minutes

Busy is what the command and all processes below it computed, by the clock of the kernel, looked at five times
a second; a core that waits for nothing but other work on the machine counts as idle too: use a
quiet one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from synthclip.run.threads import cores

_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("values", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "synthclip", "run", asked.recipe, *asked.values, "--out", str(run)]
        looks = watch(command)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    Console(width=100).print(table(looks, lines))


def watch(command: list[str]) -> list[tuple[float, float]]:
    """Time of day and CPU seconds of the command so far, until it ends."""
    looks = [(time.time(), 0.0)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.2)
            # Of a process that just ended the time stands in neither for a moment.
            looks.append((time.time(), max(looks[-1][1], cpu_seconds(process.pid))))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return looks


def cpu_seconds(root: int) -> float:
    """Of a process, its children that live, and theirs; and of all that ended below it."""
    family, total = [str(root)], 0
    for process in family:
        try:
            for task in Path(f"/proc/{process}/task").glob("*/children"):
                family += task.read_text().split()
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def table(looks: list[tuple[float, float]], lines: list[dict[str, object]]) -> Table:
    begun = {str(line["stage"]): float(str(line["time"])) for line in lines if line["event"] == "begin"}
    names = ["start", *begun]
    marks = [looks[0][0], *begun.values(), looks[-1][0]]
    rows = Table("stage", "wall s", "CPU s", "cores busy", "idle core s", title=f"{cores()} cores")
    for name, start, end in zip(
        [*names, "all"], [*marks[:-1], marks[0]], [*marks[1:], marks[-1]], strict=True
    ):
        wall, busy = end - start, at(looks, end) - at(looks, start)
        idle = cores() * wall - busy
        rows.add_row(name, f"{wall:.1f}", f"{busy:.1f}", f"{busy / (cores() * wall):.0%}", f"{idle:.1f}")
    return rows


def at(looks: list[tuple[float, float]], when: float) -> float:
    """CPU seconds at the last look before a time."""
    return max((cpu for seen, cpu in looks if seen <= when), default=0.0)


if __name__ == "__main__":
    main()
