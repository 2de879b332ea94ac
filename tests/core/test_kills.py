"""A run may be killed at any operation on a file: the same command then ends in the same files.

`SYNTHCLIP_KILLS=100 pytest tests/core/test_kills.py` tries harder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SYNTHCLIP_KILLS", "10"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks of one process")
def test_killed_at_any_file_operation_it_ends_in_the_same_files(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, str(script), str(tmp_path), str(KILLS), str(max(2, KILLS // 5))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result.pop("kills") >= KILLS
    assert result == dict.fromkeys(["refused", "different", "stray", "missing"], 0), done.stderr
