"""What a user meets first: the names, the cost of importing them, and the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import synthclip
from synthclip.recipe import bundled
from synthclip.run.pipeline import STAGES

HEAVY = ["torch", "torchvision", "open_clip", "cv2", "diffusers", "transformers", "xllamacpp", "sklearn"]


def modules_after(code: str) -> set[str]:
    probe = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(found)


def test_every_public_name_is_there() -> None:
    assert sorted(synthclip.__all__) == synthclip.__all__ == dir(synthclip)
    for name in synthclip.__all__:
        assert getattr(synthclip, name) is not None


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import synthclip") & {*HEAVY, "numpy", "pydantic", "pyarrow"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom synthclip.cli import app\n"
        "sys.argv = ['synthclip', '--help']\napp(standalone_mode=False)"
    )
    assert not modules_after(code) & {*HEAVY, "numpy", "pydantic", "pyarrow"}


def test_reading_a_recipe_and_a_status_import_nothing_heavy() -> None:
    code = (
        "import synthclip, tempfile\n"
        "from synthclip.run.pipeline import survey\n"
        "survey(synthclip.load_recipe('demo'), synthclip.RunDirectory(tempfile.mkdtemp()))"
    )
    assert not modules_after(code) & set(HEAVY)


def test_an_error_of_the_user_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "synthclip", "show", "demo", "captions.per_concpt=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("synthclip: recipe demo: captions: unknown key")
    assert done.stderr.count("\n") == 1


def told_by(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "synthclip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_help_lists_the_stages_in_their_order_and_names_the_bundled_recipes() -> None:
    commands = told_by("--help").stdout.partition("Commands:")[2].splitlines()
    names = [line.split()[0] for line in commands if line.strip()]
    assert [name for name in names if name in STAGES] == list(STAGES)
    help_of_run = told_by("run", "--help").stdout
    assert all(name in help_of_run for name in bundled())


def test_the_version_is_told() -> None:
    assert told_by("--version").stdout == f"synthclip {synthclip.__version__}\n"


@pytest.mark.parametrize("command", ["status demo", "trace demo KEY"])
def test_a_recipes_name_is_no_run(command: str, tmp_path: Path) -> None:
    done = told_by(*command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "synthclip: demo: no such run directory\n")


def test_an_import_of_nothing_makes_nothing(tmp_path: Path) -> None:
    done = told_by("import", "captions", "nowhere", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("synthclip: nowhere: no such file")
    assert not any(tmp_path.iterdir())


def test_show_prints_a_recipe_that_loads_again() -> None:
    command = [sys.executable, "-m", "synthclip", "show", "demo", "seed=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "seed: 3" in done.stdout


def test_a_package_that_is_missing_is_one_line_with_the_remedy() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom synthclip.cli import main\n"
        "sys.argv = ['synthclip', 'plan', 'one-gpu']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "synthclip: this needs torch, which is not installed: pip install 'synthclip[train]'\n"
    )
