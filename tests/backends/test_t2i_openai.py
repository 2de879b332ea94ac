"""The openai images backend against a real server on loopback."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from images_server import ImagesServer, images_server

from synthclip.backends.t2i_openai import Config, OpenAIImages, build
from synthclip.errors import SynthClipError


@pytest.fixture
def server() -> Iterator[ImagesServer]:
    with images_server() as running:
        yield running


def client(url: str, **values: Any) -> OpenAIImages:
    return build(Config(backend="openai", model="noise", size_px=32, base_url=url, **values))


def test_a_busy_and_a_failing_server_are_asked_again(server: ImagesServer) -> None:
    server.busy, server.broken = 2, 1
    painted = client(server.url, concurrency=1).generate(["a dog"], [1])
    assert painted.refused == {}
    assert painted.images.std() > 10
    assert len(server.requests) == 4


def test_bad_answers_are_named_by_position_and_the_others_kept(server: ImagesServer) -> None:
    prompts = ["a dog", "a forbidden thing", "a small dog", "garbage", "nothing", "a cat"]
    painted = client(server.url).generate(prompts, list(range(6)))
    assert painted.refused == {
        1: "content filter",
        2: "wrong size",
        3: "no image in the answer",
        4: "no image in the answer",
    }
    assert painted.images[0].std() > 10
    assert painted.images[5].std() > 10


def test_the_seed_is_sent_unless_the_server_takes_none(server: ImagesServer) -> None:
    client(server.url).generate(["a dog"], [2**64 - 1])
    client(server.url, seeded=False).generate(["a dog"], [7])
    assert server.requests[0]["seed"] == (2**64 - 1) % 2**31
    assert "seed" not in server.requests[1]


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "set OPENAI_API_KEY"), (404, "check text_to_image"), (429, "concurrency")]
)
def test_a_server_that_cannot_be_used_is_one_line(server: ImagesServer, status: int, remedy: str) -> None:
    server.always = status
    with pytest.raises(SynthClipError, match=rf"answered {status}.*{remedy}") as caught:
        client(server.url, max_retries=0).generate(["a dog"], [1])
    assert "\n" not in str(caught.value)


def test_a_web_page_instead_of_an_answer_is_one_line(server: ImagesServer) -> None:
    server.page = b"<html>Welcome</html>"
    with pytest.raises(
        SynthClipError, match=r"not as OpenAI's API does.*check text_to_image\.base_url"
    ) as caught:
        client(server.url).generate(["a dog"], [1])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SynthClipError, match="cannot be reached after 1 retries") as caught:
        client(url, max_retries=1).generate(["a dog"], [1])
    assert "\n" not in str(caught.value)
