"""Whose fault a failure is: what servers answer, kind by kind, for texts and for images."""

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, ScriptedServer

from synthclip.backends import Refused, build_llm, build_text_to_image, llm_openai, t2i_openai
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.pipeline import run
from synthclip.run.progress import Console

pytest.importorskip("httpx", reason="needs the package httpx")

KEY = "sk-proj-0123456789abcdef"
FINE = {"choices": [{"message": {"content": "A dog runs."}, "finish_reason": "stop"}]}


def error(message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "param": None, **fields}}


def content(value: Any, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": value}, **choice}]}


def texts(url: str, count: int = 1, **values: Any) -> list[Any]:
    config = llm_openai.Config.model_validate(
        {"backend": "openai", "model": "m", "base_url": url, "max_retries": 2, "concurrency": 2, **values}
    )
    return list(build_llm(config).generate(["Describe a dog."] * count, range(count)))


def images(url: str, count: int = 1, **values: Any) -> dict[int, str]:
    config = t2i_openai.Config.model_validate(
        {"backend": "openai", "model": "m", "base_url": url, "size_px": 32, "max_retries": 2, **values}
    )
    return dict(build_text_to_image(config).generate(["a dog"] * count, range(count)).refused)


STOPS = {
    "quota": (
        Answer(error("You exceeded your current quota.", code="insufficient_quota"), 429),
        "current quota",
    ),
    "billing": (
        Answer(error("Billing hard limit reached.", code="billing_hard_limit_reached"), 400),
        "hard limit",
    ),
    "credit": (Answer(error("Add credits to go on."), 402), "Add credits"),
    "quota in 200": (Answer(error("No quota left.", type="insufficient_quota")), "No quota left"),
    "parameter": (
        Answer(error("Unknown parameter: 'top_p'.", param="top_p"), 400),
        "Unknown parameter: 'top_p'",
    ),
    "filter parameter": (
        Answer(error("No such content filter.", param="safety"), 400),
        "No such content filter",
    ),
    "validation": (Answer({"detail": [{"msg": "field required"}]}, 422), "field required"),
    "key": (Answer(error("Incorrect API key provided."), 401), "set OPENAI_API_KEY"),
    "rights": (Answer(error("Your account broke our content policy."), 403), "answered 403"),
    "model": (Answer(error("The model 'm' does not exist."), 404), "does not exist"),
    "error in 200": (Answer(error("The engine is gone.", code="no_engine")), "The engine is gone"),
    "MiniMax's key": (
        Answer({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}),
        "login fail (1004)",
    ),
    "old vLLM's error in 200": (Answer({"object": "error", "message": "No LoRA."}), "No LoRA"),
    "error as a text": (Answer({"error": "model is not loaded"}), "model is not loaded"),
    "web page": (
        Answer(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}),
        "not as OpenAI's API",
    ),
    "list": (Answer([1, 2]), "not as OpenAI's API"),
    "moved": (Answer(b"", 301, {"Location": "/elsewhere"}), "answered 301"),
    "deep": (Answer(b"[" * 200_000), "not as OpenAI's API"),
    "large": (Answer(b'{"choices": "' + b"x" * 9_000_000 + b'"}'), "larger than"),
}
"""Answer -> what the one line names: a shard stops at once."""


@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize("ask", [texts, images])
def test_a_fault_that_waiting_does_not_cure_stops_at_once_with_the_servers_words(kind: str, ask: Any) -> None:
    answer, said = STOPS[kind]
    with ScriptedServer(answer) as server, pytest.raises(SynthClipError) as caught:
        ask(server.url)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


PASSING = {
    "busy": Answer(error("Slow down."), 429, {"Retry-After": "0"}),
    "busy by the minute": Answer(error("Quota exceeded for this minute."), 429, {"Retry-After": "0"}),
    "broken": Answer(error("oops"), 500),
    "gateway": Answer(b"<html>Bad Gateway</html>", 502, {"Content-Type": "text/html"}),
    "starting": Answer(error("loading model"), 503),
    "overloaded": Answer(error("overloaded", type="overloaded_error"), 529),
    "timed out": Answer(error("upstream"), 408),
    "server error in 200": Answer(error("upstream", code="server_error")),
    "number in 200": Answer(error("Provider returned error", code=502)),
    "cut short": Answer(b'{"choices": [', declared_bytes=500),
    "in a choice": Answer(content("", error={"message": "Provider returned error", "code": 502})),
    "broken off": Answer(content("A dog", finish_reason="abort")),
    "broken off (DeepSeek)": Answer(content("A dog", finish_reason="insufficient_system_resource")),
    "MiniMax": Answer({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}),
}
"""A request is sent again, and the answer after it is taken."""


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_may_pass_is_tried_again_and_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(PASSING[kind], Answer(FINE)) as server, caplog.at_level(logging.WARNING, "synthclip"):
        assert texts(server.url) == ["A dog runs."]
    assert len(server.requests) == 2
    [line] = [record.getMessage() for record in caplog.records]
    assert line.endswith("trying again (1 of 2)")


def test_what_does_not_pass_stops_with_the_servers_words() -> None:
    broken = Answer(error("GPU fell off the bus"), 500, {"Retry-After": "0"})
    stops = pytest.raises(SynthClipError, match=r"answered 500 after 2 retries \(GPU fell off")
    with ScriptedServer(broken) as server, stops:
        texts(server.url)
    assert len(server.requests) == 3


FILTERED = {
    "OpenAI": Answer(error("Your request was rejected.", code="content_policy_violation"), 400),
    "OpenAI's newer images": Answer(error("Rejected.", code="moderation_blocked"), 400),
    "Azure": Answer(error("Filtered.", code="content_filter", param="prompt"), 400),
    "Azure, inside": Answer(error("x", innererror={"code": "ResponsibleAIPolicyViolation"}), 400),
    "LiteLLM": Answer(error("x", type="ContentPolicyViolationError"), 400),
    "OpenRouter": Answer(error("Input was held back", metadata={"reasons": ["violence"]}), 403),
    "words alone": Answer(error("Blocked by our content policy."), 400),
    "in a 200": Answer(error("Held back.", code="content_filter")),
    "MiniMax": Answer({"choices": None, "base_resp": {"status_code": 1026, "status_msg": "sensitive"}}),
}


@pytest.mark.parametrize("kind", FILTERED)
def test_a_content_filter_refuses_that_one_sample(kind: str) -> None:
    with ScriptedServer(FILTERED[kind], Answer(FINE)) as server:
        refused, fine = texts(server.url, 2, concurrency=1)
    assert isinstance(refused, Refused)
    assert refused.reason == "content filter"
    assert refused.text
    assert fine == "A dog runs."
    with ScriptedServer(FILTERED[kind]) as server:
        assert images(server.url) == {0: "content filter"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (content([{"type": "text", "text": "A dog"}, {"type": "text", "text": " runs."}]), "A dog runs."),
        (content(["A dog", " runs."]), "A dog runs."),
        (content([{"type": "reasoning", "summary": []}, {"text": "A dog."}]), "A dog."),
        (content(None), ""),
        (content(None, finish_reason="length"), ""),
        ({"choices": []}, ""),
        ({"choices": None}, ""),
        (content("A d", finish_reason="content_filter"), Refused("content filter", "A d")),
        (
            {"choices": [{"message": {"content": None, "refusal": "I cannot."}}]},
            Refused("refusal", "I cannot."),
        ),
    ],
)
def test_what_was_really_said_is_taken(body: Any, expected: Any) -> None:
    with ScriptedServer(Answer(body)) as server:
        assert texts(server.url) == [expected]


@pytest.mark.parametrize(
    "body",
    [
        content(7),
        content({"text": "a"}),
        content([7]),
        content([{"text": 7}]),
        {"choices": {"0": {}}},
        {"choices": ["A dog."]},
        {"choices": [{"message": "A dog."}]},
        {"text": "A dog."},
        content("", error={"message": "died", "code": "broken"}),
    ],
)
def test_what_is_no_text_stops(body: Any) -> None:
    with ScriptedServer(Answer(body)) as server, pytest.raises(SynthClipError) as caught:
        texts(server.url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [{"data": "x"}, {"data": ["x"]}, {"data": [{"b64_json": 7}]}, {}],
)
def test_what_is_no_list_of_images_stops(body: Any) -> None:
    with (
        ScriptedServer(Answer(body)) as server,
        pytest.raises(SynthClipError, match="not as OpenAI's API does"),
    ):
        images(server.url)


def test_an_answer_that_drips_has_an_end() -> None:
    slow = pytest.raises(SynthClipError, match=r"took longer than 0\.5 s for an answer")
    with ScriptedServer(Answer(FINE, pause_seconds=0.05)) as server, slow:
        texts(server.url, max_answer_seconds=0.5, max_retries=0)


def test_a_server_that_is_down_says_so_at_once_and_once_for_all_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    stops = pytest.raises(SynthClipError, match="cannot be reached after 2 retries")
    with caplog.at_level(logging.WARNING, "synthclip"), stops:
        texts(url, 2)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition("trying")[2] for line in lines] == [" again (1 of 2)", " again (2 of 2)"]
    assert all("cannot be reached" in line for line in lines)


@pytest.mark.parametrize(
    "message",
    [
        f"Incorrect key {KEY}.",
        "Incorrect key: sk-proj-01***cdef",
        f"Authorization: Bearer {KEY}",
        "http://me:pw@x/",
    ],
)
def test_a_key_in_an_answer_is_hidden(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer(Answer(error(message), 401)) as server, pytest.raises(SynthClipError) as caught:
        texts(server.url)
    assert server.requests[0]["key"] == f"Bearer {KEY}"
    assert "[key]" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("cdef", "pw@"))


def test_a_key_is_hidden_in_what_is_refused_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer(
        Answer(error(f"{KEY} asked", code="content_filter"), 400), Answer(content(KEY))
    ) as server:
        refused, said = texts(server.url, 2, concurrency=1)
    assert (refused.text, said) == ("[key] asked", "[key]")


@pytest.mark.parametrize(
    "url", ["http://me:secret@h/v1", "http://h/v1?key=secret", "localhost:8000", "ftp://h"]
)
def test_an_address_that_would_be_recorded_with_a_secret_is_refused(url: str) -> None:
    with pytest.raises(SynthClipError, match="base_url") as caught:
        load_recipe("demo", [f"llm={{backend: openai, model: m, base_url: '{url}'}}"])
    assert "secret" not in str(caught.value)


def test_a_key_that_no_header_takes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(SynthClipError, match="OPENAI_API_KEY holds characters"):
        texts("http://127.0.0.1:9/v1")


def recipe_of(url: str, *overrides: str) -> Any:
    llm = f"llm={{backend: openai, model: m, base_url: {url}, concurrency: 1, max_retries: 2}}"
    return load_recipe("demo", [llm, "concepts.limit=2", "captions.per_concept=2", *overrides])


def test_a_stage_stops_on_a_quota_and_goes_on_when_there_is_one(tmp_path: Path) -> None:
    quota = Answer(error("No quota.", code="insufficient_quota"), 429)
    fine = Answer({"choices": [{"message": {"content": "A dog and a cat and a bell run."}}]})
    stages = ("concepts", "captions")
    with (tmp_path / "log").open("w") as log, ScriptedServer(fine, quota) as server:
        recipe = recipe_of(server.url, "captions.must_contain_concept=false", "engine.workers=1")
        with pytest.raises(SynthClipError, match="No quota"):
            run(recipe, tmp_path / "run", stages=stages, console=Console(log))
        server.answers = [fine]
        directory = run(recipe, tmp_path / "run", stages=stages, console=Console(log))
    [manifest] = directory.manifests("captions")
    assert (manifest.rows, dict(manifest.rejected)) == (4, {})


def test_an_outage_is_a_line_of_the_run_and_of_its_metrics(tmp_path: Path) -> None:
    fine = Answer({"choices": [{"message": {"content": "A dog and a cat and a bell run."}}]})
    busy = Answer(error("loading"), 503, {"Retry-After": "0"})
    with (tmp_path / "log").open("w") as log, ScriptedServer(busy, fine) as server:
        recipe = recipe_of(server.url, "captions.must_contain_concept=false", "engine.workers=1")
        directory = run(recipe, tmp_path / "run", stages=("concepts", "captions"), console=Console(log))
    assert "answered 503 (loading), trying again (1 of 2)" in (tmp_path / "log").read_text()
    [note] = [line["note"] for line in directory.metrics() if line["event"] == "note"]
    assert "answered 503" in note
