"""The backend for OpenAI's API against llama.cpp's server, and against servers that misbehave."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopback import Handler, Loopback
from synthclip.backends import Refused, Unfinished, build_llm
from synthclip.backends.llm_openai import Config, build
from synthclip.errors import SynthClipError
from synthclip.textgen.answers import listed

SERVER = Path(__file__).with_name("llama_server.py")
PROMPTS = [
    f"A red umbrella lies next to a bench.\nA {noun}"
    for noun in ("dog", "cat", "kite", "car", "tree", "boat")
]

pytest.importorskip("xllamacpp", reason="needs xllamacpp for a server")
pytest.importorskip("httpx", reason="needs the package httpx")


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start(port: int) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start llama.cpp's server on `port`, any number of times."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, SERVER, str(port)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http")
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def config(port: int, **values: object) -> Config:
    plain = {
        "model": "smol",
        "temperature": 0,
        "chat": False,
        "max_tokens": 8,
        "stop": ["\n"],
        "concurrency": 2,
        "max_retries": 20,
    }
    return Config.model_validate(
        {"backend": "openai", "base_url": f"http://127.0.0.1:{port}/v1", **plain, **values}
    )


def test_a_server_killed_and_brought_back_loses_no_caption(
    port: int, start: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start()
    expected = list(build_llm(config(port)).generate(PROMPTS, range(len(PROMPTS))))
    assert len(set(expected)) > 1

    answers: list[str | Refused] = []
    llm = build_llm(config(port))
    asking = threading.Thread(
        target=lambda: answers.extend(llm.generate(PROMPTS * 4, range(4 * len(PROMPTS))))
    )
    asking.start()
    time.sleep(0.5)
    first.kill()
    first.wait()
    start()
    asking.join(120)
    assert answers == expected * 4


def test_a_chat_answers_and_a_prefill_is_left_out(
    port: int, start: Callable[[], subprocess.Popen[str]]
) -> None:
    start()
    llm = build_llm(config(port, chat=True, max_tokens=16))
    [answer] = llm.generate(["Describe a dog in one sentence."], [1])
    assert str(answer).strip()
    assert not llm.continues


def test_a_list_of_captions_is_one_whatever_the_model_would_say(
    port: int, start: Callable[[], subprocess.Popen[str]]
) -> None:
    start()
    for guide, chat in (("response_format", True), ("json_schema", True), ("json_schema", False)):
        llm = build(config(port, guide=guide, chat=chat, max_tokens=24, stop=[]))
        [said] = llm.generate(["Two short captions of a dog: "], [1], [2])
        answer = str(said)
        assert isinstance(said, Unfinished) or len(listed(answer)) == 2
        assert answer.lstrip()[0] == ("{" if guide == "response_format" else "[")
        assert llm.tokens.read > 0


def test_no_server_is_one_line_with_the_remedy(port: int) -> None:
    with pytest.raises(SynthClipError, match="cannot be reached after 0 retries") as error:
        build_llm(config(port, max_retries=0)).generate(["A"], [0])
    assert "\n" not in str(error.value)


class Answers(Handler):
    """Answers every request alike."""

    status, kind, body, pause = 200, "application/json", b"", 0.0

    def post(self, raw: bytes) -> None:
        time.sleep(self.pause)
        with contextlib.suppress(BrokenPipeError):  # the client has waited long enough
            self.answer(self.status, self.body, {"Content-Type": self.kind})


def ask(handler: type[Answers], **values: object) -> list[str]:
    with Loopback(handler) as server:
        return list(map(str, build_llm(config(server.server_port, **values)).generate(["A", "B"], [0, 1])))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "text/html", "body": b"<html>Welcome</html>"}, "not as OpenAI's API does"),
        ({"body": b'{"cho'}, "not as OpenAI's API does"),
        ({"status": 401, "body": b"{}"}, "set OPENAI_API_KEY"),
        ({"status": 404, "body": b"{}"}, "check llm.base_url or llm.model"),
        ({"status": 400, "body": b'{"error": {"message": "too long"}}'}, "refused a request"),
        ({"status": 500, "body": b"{}"}, "answered 500 after 0 retries"),
        ({"pause": 3.0, "body": b"{}"}, "cannot be reached"),
    ],
)
def test_a_server_that_misbehaves_is_one_line(values: dict[str, object], message: str) -> None:
    handler = type("Misbehaves", (Answers,), values)
    with pytest.raises(SynthClipError, match=message) as error:
        ask(handler, max_retries=0, timeout_seconds=1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("choices", [b"[]", b"null", b"[{}]", b'[{"message": null, "text": null}]'])
@pytest.mark.parametrize("chat", [False, True])
def test_fewer_choices_are_empty_answers(choices: bytes, chat: bool) -> None:
    body = b'{"id": "1", "object": "text_completion", "choices": ' + choices + b"}"
    assert ask(type("Silent", (Answers,), {"body": body}), chat=chat) == ["", ""]


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Listens(Answers):
        body = b'{"id": "1", "object": "text_completion", "choices": []}'

        def post(self, raw: bytes) -> None:
            seen.append(self.headers["Authorization"])
            super().post(raw)

    monkeypatch.setenv("MY_KEY", "secret-1234")
    ask(Listens, api_key_variable="MY_KEY")
    assert set(seen) == {"Bearer secret-1234"}
    assert "secret" not in config(1, api_key_variable="MY_KEY").model_dump_json()
