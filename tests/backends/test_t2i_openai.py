"""The openai images backend against a real server on loopback."""

import base64
import io
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from images_server import ImagesServer
from PIL import Image

from synthclip.backends.t2i_openai import Config, OpenAIImages, build
from synthclip.errors import SynthClipError


@pytest.fixture
def server() -> Iterator[ImagesServer]:
    with ImagesServer() as running:
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
        3: "no image in the answer",
        4: "no image in the answer",
    }
    assert painted.images[0].std() > 10
    assert painted.images[5].std() > 10
    assert painted.images[2].std() > 10, "another size is fitted"


def test_the_seed_is_sent_unless_the_server_takes_none(server: ImagesServer) -> None:
    client(server.url).generate(["a dog"], [2**64 - 1])
    client(server.url, seeded=False).generate(["a dog"], [7])
    assert server.requests[0]["seed"] == (2**64 - 1) % 2**31
    assert "seed" not in server.requests[1]


def picture(form: str, *, transparent: bool = False) -> bytes:
    """A red square of 48 px; with `transparent` its left half lets the ground show."""
    image = Image.new("RGBA", (48, 48), (255, 0, 0, 255))
    if transparent:
        image.paste((0, 0, 255, 0), (0, 0, 24, 48))
    written = io.BytesIO()
    (image if transparent else image.convert("RGB")).save(written, form)
    return written.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "way", ["base64", "base64 of urls", "data", "data url", "data url, quoted", "url", "path", "moved"]
)
def test_a_picture_is_read_however_it_comes(form: str, way: str, server: ImagesServer) -> None:
    encoded = base64.b64encode(picture(form)).decode()
    data = f"data:image/{form.lower()};base64,{encoded}"
    server.file = picture(form)
    answers: dict[str, dict[str, Any]] = {
        "base64": {"b64_json": encoded},
        "base64 of urls": {"b64_json": encoded.replace("+", "-").replace("/", "_").rstrip("=")},
        "data": {"b64_json": data},
        "data url": {"b64_json": None, "url": data},
        "data url, quoted": {"url": quote(data.replace("data:", "DATA:"), safe=":;,")},
        "url": {"url": server.url.replace("/v1", "/files/picture")},
        "path": {"url": "/files/picture"},
        "moved": {"url": "/moved"},
    }
    server.answer = answers[way]
    painted = client(server.url).generate(["a dog"], [1])
    assert painted.refused == {}
    assert np.abs(painted.images.astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("form", ["PNG", "WEBP", "AVIF"])
def test_what_is_transparent_is_white(form: str, server: ImagesServer) -> None:
    server.answer = {"b64_json": base64.b64encode(picture(form, transparent=True)).decode()}
    image = client(server.url).generate(["a dog"], [1]).images[0].astype(int)
    assert np.abs(image[:, 2:12] - 255).max() <= 8
    assert np.abs(image[:, 20:30] - (255, 0, 0)).max() <= 8


def test_the_key_goes_to_no_other_host(server: ImagesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key-of-mine")
    with ImagesServer() as elsewhere:
        server.file = elsewhere.file = picture("PNG")
        for host in (server, elsewhere):
            server.answer = {"url": host.url.replace("/v1", "/picture")}
            assert client(server.url).generate(["a dog"], [1]).refused == {}
        assert server.keys == ["Bearer a-secret-key-of-mine"]
        assert elsewhere.keys == [None]


def test_openais_models_get_only_what_they_take_and_are_fitted(server: ImagesServer) -> None:
    config = Config(
        backend="openai",
        model="gpt-image-1.5",
        size_px=32,
        base_url=server.url,
        extra_body={"quality": "low"},
    )
    painted = build(config).generate(["a dog"], [1])
    assert painted.images.shape == (1, 32, 32, 3)
    assert painted.refused == {}
    assert server.requests[0]["quality"] == "low"
    forbids, no_seed = config.notes()
    assert "compete with OpenAI" in forbids
    assert "takes no seed" in no_seed


def test_stable_diffusion_cpps_server_is_told_seed_and_steps_inside_the_prompt(server: ImagesServer) -> None:
    extra = {"sample_params": {"sample_steps": 4}, "response_format": None}
    config = Config(backend="openai", model="sd-cpp-local", size_px=32, base_url=server.url, extra_body=extra)
    build(config).generate(["a dog"], [2**64 - 1])
    [asked] = server.requests
    told = {"seed": (2**64 - 1) % 2**31, "sample_params": {"sample_steps": 4}}
    assert asked["prompt"] == f"a dog<sd_cpp_extra_args>{json.dumps(told)}</sd_cpp_extra_args>"
    assert asked.keys() == {"model", "prompt", "n", "size"}


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
