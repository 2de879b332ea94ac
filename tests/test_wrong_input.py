"""Whatever is typed, or stands where a file is expected: one line, exit code 2, no traceback."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from synthclip.cli import main

WRONG = [
    ("show FOLDER", "not a run directory: it holds no recipe.yaml"),
    ("show EMPTY", "not a recipe: expected keys such as"),
    ("show BINARY", "not UTF-8 (byte 0)"),
    ("show PIPE", "neither a file nor a folder"),
    ("show LOOP", "no such recipe or file"),
    ("show LONG", "cannot be read: File name too long"),
    ("show ESCAPE", r"a\x1b[31mb: no such recipe"),
    ("show demo name=../up", "name: must begin with a letter or digit"),
    ("show demo llm=3", "llm: must be a section of keys"),
    ("show demo 'llm={backend: [1]}'", "llm: unknown backend '[1]'; known: llamacpp"),
    ("show demo text_to_image.backend=painter", "unknown backend 'painter'; known: compositor"),
    ("show demo training.epochs=1e400", "training.epochs: must be a finite number"),
    ("show demo captions.templates.0.text='\"{{1/0}}\"'", "ZeroDivisionError"),
    ("show demo captions.templates.0.text='\"{{concept.__class__}}\"'", "SecurityError"),
    (r"""show demo 'engine.slurm.account="a\nrm"'""", "must be printable characters of one line"),
    ("show demo seed", "expected key=value"),
    ("status FOLDER", "not a run directory"),
    ("status EMPTY", "no such run directory"),
    ("run demo --out EMPTY", "a file stands there"),
    ("run demo --out /proc/x", "no folder can be made there"),
    ("run demo --out EMPTY/x", "a file stands where a folder should be"),
    ("run demo llm.model=/nowhere.gguf --out OUT", "llm.model: /nowhere.gguf: No such file"),
    ("run demo llm.model=EMPTY --out OUT", "not a GGUF file"),
    ("run demo images.filters.clip_model=local-dir:FOLDER --out OUT", "holds no open_clip_config.json"),
    ("concepts demo 'concepts.sources=[{kind: text, path: FOLDER}]' --out OUT", "FOLDER: Is a directory"),
    ("concepts demo 'concepts.sources=[{kind: text, path: PIPE}]' --out OUT", "PIPE: not a regular file"),
    ("run demo 'concepts.sources=[{kind: text, path: EMPTY}]' --out OUT", "concepts"),
    ("captions demo --at-least 3 --out OUT", "need --fill"),
    ("plan demo --devices 0xA100", "expected a count and a name"),
    ("import captions EMPTY/x demo --out OUT", "no such file"),
    ("export captions FOLDER OUT", "FOLDER"),
    ("export model EMPTY OUT", "not a checkpoint"),
    ("export model nosuch:tag OUT", "no such file, folder or open_clip model"),
    ("export images FOLDER OUT", "holds no images"),
    ("compare FOLDER FOLDER", "no results of an evaluation"),
    ("weakest FOLDER", "no zero-shot results"),
    ("leaks FOLDER --data FOLDER", "name a run directory"),
    ("eval FOLDER --suite paper", "--suite needs --data ROOT"),
    ("eval EMPTY --suite cifar10 --data FOLDER", "an empty folder"),
]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "EMPTY").touch()
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "PIPE")
    (tmp_path / "LOOP").symlink_to("LOOP")
    names = ("FOLDER", "EMPTY", "BINARY", "PIPE", "LOOP", "OUT")
    return {name: str(tmp_path / name) for name in names} | {"LONG": "x" * 5000, "ESCAPE": "a\x1b[31mb"}


@pytest.mark.parametrize(("command", "message"), WRONG, ids=[command for command, _ in WRONG])
def test_one_line_and_no_traceback(
    command: str,
    message: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, place in places.items():
        command, message = command.replace(name, place), message.replace(name, place)
    monkeypatch.setattr(sys, "argv", ["synthclip", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthclip: ")]
    assert message in line
