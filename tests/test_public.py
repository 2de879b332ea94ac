"""What a user meets first: the names, the cost of importing them, and the commands."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import synthclip
from synthclip.cli import app
from synthclip.errors import install_command
from synthclip.recipe import bundled
from synthclip.run.pipeline import STAGES

HEAVY = [
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "cv2",
    "diffusers",
    "transformers",
    "xllamacpp",
    "sklearn",
]
HEAVY += ["matplotlib", "scipy", "sympy", "huggingface_hub", "httpx", "PIL", "pyarrow.dataset"]


def modules_after(code: str, folder: Path | None = None) -> set[str]:
    probe = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)), file=sys.stderr)"
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(found)


def test_every_public_name_is_there() -> None:
    assert sorted(synthclip.__all__) == synthclip.__all__ == dir(synthclip)
    for name in synthclip.__all__:
        assert getattr(synthclip, name) is not None


def test_run_can_be_called_whatever_was_imported_before() -> None:
    for before in ("import synthclip", "import synthclip.run.store", "import synthclip\nsynthclip.run"):
        code = f"{before}\ntry: synthclip.run()\nexcept TypeError as error: print(error)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "missing 2 required positional arguments: 'recipe' and 'out'" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import synthclip") & {*HEAVY, "numpy", "pydantic", "pyarrow"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom synthclip.cli import app\n"
        "sys.argv = ['synthclip', '--help']\napp(standalone_mode=False)"
    )
    assert not modules_after(code) & {*HEAVY, "numpy", "pydantic", "pyarrow"}


def test_commands_leave_what_is_heavy_to_their_workers(tmp_path: Path) -> None:
    code = (
        "from synthclip.cli import app\n"
        "concepts = 'concepts demo concepts.limit=3 --out run'\n"
        "for command in ('show demo', concepts, 'status run', 'verify run'):\n"
        "    app(command.split(), standalone_mode=False)"
    )
    assert not modules_after(code, tmp_path) & set(HEAVY)


def test_what_moves_files_loads_no_model_library() -> None:
    code = "import synthclip.interop.hub, synthclip.interop.images"
    assert not modules_after(code) & (set(HEAVY) - {"cv2"})


def test_an_error_of_the_user_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "synthclip", "show", "demo", "captions.per_concpt=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("synthclip: recipe demo: captions: unknown key")
    assert done.stderr.count("\n") == 1


def synthclip_command(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'synthclip'; from synthclip.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_help_lists_the_stages_in_their_order_and_names_the_bundled_recipes() -> None:
    commands = synthclip_command("--help").stdout.partition("Commands:")[2].splitlines()
    names = [line.split()[0] for line in commands if line.strip()]
    assert [name for name in names if name in STAGES] == list(STAGES)
    help_of_run = synthclip_command("run", "--help").stdout
    assert all(name in help_of_run for name in bundled())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it, groups included."""
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words, command
        waiting += [
            (f"{words} {name}".strip(), one) for name, one in getattr(command, "commands", {}).items()
        ]


def written(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar) if parameter.required else f"[{parameter.metavar}]"
    return f"{parameter.opts[0]}{'' if parameter.is_flag else f'={parameter.metavar}'}"


def test_the_commands_and_their_options_are_those_of_the_list() -> None:
    """Scripts of users depend on them: whoever changes a line of cli.txt says so in CHANGELOG.md."""
    lines = []
    for words, command in commands():
        if not hasattr(command, "commands"):
            lines.append(" ".join([words, *(written(one) for one in command.params if one.name != "help")]))
    assert sorted(lines) == Path(__file__).with_name("cli.txt").read_text(encoding="utf-8").splitlines()


def test_help_fits_80_columns_and_cuts_no_summary_and_no_command() -> None:
    for words, _ in commands():
        done = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "80"})
        assert done.exit_code == 0
        assert all(len(line) <= 80 for line in done.stdout.splitlines()), words
        assert "..." not in done.stdout.partition("Commands:")[2], words
    command = synthclip_command("train", "--help").stdout.partition("torchrun")[2]
    copied = command.partition("RUN\n")[0].replace("\\\n", "").split()
    assert "--rdzv-endpoint=FIRST_NODE:29400" in copied
    assert importlib.util.find_spec(copied[copied.index("-m") + 1])


def test_completion_names_the_commands() -> None:
    env = {
        **os.environ,
        "_SYNTHCLIP_COMPLETE": "complete_bash",
        "COMP_WORDS": "synthclip ca",
        "COMP_CWORD": "1",
    }
    assert synthclip_command(env=env).stdout.split() == ["captions"]


def test_the_version_is_printed() -> None:
    assert synthclip_command("--version").stdout == f"synthclip {synthclip.__version__}\n"


@pytest.mark.parametrize("command", ["status demo", "trace demo KEY"])
def test_a_recipes_name_is_no_run(command: str, tmp_path: Path) -> None:
    done = synthclip_command(*command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "synthclip: demo: no such run directory\n")


def test_an_import_of_nothing_makes_nothing(tmp_path: Path) -> None:
    done = synthclip_command("import", "captions", "nowhere", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("synthclip: nowhere: no such file")
    assert not any(tmp_path.iterdir())


def test_show_prints_a_recipe_that_loads_again() -> None:
    command = [sys.executable, "-m", "synthclip", "show", "demo", "seed=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "seed: 3" in done.stdout


def test_a_package_that_is_missing_is_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom synthclip.cli import main\n"
        "sys.argv = ['synthclip', 'plan', 'one-gpu']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"synthclip: this needs torch, which is not installed: {install_command('train')}\n"
    )


@pytest.mark.parametrize(
    ("recorded", "command"),
    [
        (None, "pip install 'synthclip[ray,view]'"),
        ({"url": "file:///home/me/My%20clone", "dir_info": {}}, "pip install '/home/me/My clone[ray,view]'"),
        (
            {"url": "file:///home/me/clone", "dir_info": {"editable": True}},
            "pip install -e '/home/me/clone[ray,view]'",
        ),
        (
            {"url": "https://example.org/synthclip", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install 'synthclip[ray,view] @ git+https://example.org/synthclip'",
        ),
    ],
)
def test_a_missing_extra_is_installed_from_where_the_package_came(
    recorded: dict[str, object] | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "synthclip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: synthclip\nVersion: 1.0\n")
    if recorded is not None:
        (info / "direct_url.json").write_text(json.dumps(recorded))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert install_command("ray", "view") == command


def test_packages_that_a_recipe_lacks_are_named_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('httpx', 'diffusers', 'rensa', 'torch'): sys.modules[name] = None\n"
        "from synthclip.cli import main\n"
        "sys.argv = ['synthclip', 'run', 'one-gpu', 'balance.near_duplicates=0.8']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "synthclip: this recipe needs httpx, rensa, torch, diffusers, not installed here: "
        f"{install_command('dedup', 'diffusers', 'openai', 'train')}\n"
    )


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
