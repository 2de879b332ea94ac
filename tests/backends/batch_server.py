"""A server with OpenAI's files and batches. Answers follow from prompt and seed."""

import email.parser
import email.policy
import json
from typing import Any

from loopback import Handler, Loopback

SENTENCE = "A {concept} of number {seed} lies on a table."


class BatchServer(Loopback):
    def __init__(self) -> None:
        super().__init__(_Handler)
        self.released = True
        """Whether batches come to an end when they are asked for."""
        self.files, self.batches = dict[str, bytes](), list[dict[str, Any]]()
        self.refuses: list[tuple[int, Any]] = []
        """Statuses and bodies of the next requests to create a batch; one of 0 creates it and hangs up."""
        self.fates: list[dict[str, Any]] = []
        """Of the next batches: `status`, `errors`, and `answered`, the share of requests that are."""
        self.line_faults: list[dict[str, Any]] = []
        """In the place of the answers to the next requests."""

    def finish(self, batch: dict[str, Any]) -> None:
        fate = self.fates.pop(0) if self.fates else {}
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        lines = lines[: int(len(lines) * fate.get("answered", 1.0))]
        answers = [self.line_faults.pop(0) if self.line_faults else _answer(line["body"]) for line in lines]
        rows = [
            {"id": "r", "custom_id": line["custom_id"], **answer}
            for line, answer in zip(lines, answers, strict=True)
        ]
        # A batch's answers come in any order.
        text = "".join(f"{json.dumps(row)}\n" for row in reversed(rows))
        batch |= {"status": fate.get("status", "completed"), "errors": fate.get("errors")}
        if rows:
            batch["output_file_id"] = self.keep(text.encode())

    def keep(self, raw: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = raw
        return name


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    concept = body["messages"][0]["content"].rpartition(": ")[2]
    text = SENTENCE.format(concept=concept, seed=body["seed"])
    said = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
    return {"response": {"status_code": 200, "body": said}, "error": None}


class _Handler(Handler):
    server: BatchServer

    def get(self) -> None:
        path, server = self.path.partition("?")[0].removeprefix("/v1/"), self.server
        if path == "batches":
            self.answer(200, {"data": list(reversed(server.batches)), "object": "list"})
        elif path.startswith("batches/"):
            batch = server.batches[int(path.removeprefix("batches/batch-"))]
            if batch["status"] == "validating" and server.released:
                server.finish(batch)
            self.answer(200, batch)
        else:
            self.answer(200, server.files[path.split("/")[1]])

    def post(self, raw: bytes) -> None:
        server = self.server
        if self.path == "/v1/files":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            parts = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + raw)
            fields = {
                part.get_param("name", header="content-disposition"): part for part in parts.iter_parts()
            }
            assert fields["purpose"].get_content().strip() == "batch"
            lines = fields["file"].get_payload(decode=True)
            assert isinstance(lines, bytes)
            self.answer(200, {"id": server.keep(lines), "object": "file"})
            return
        status, body = server.refuses.pop(0) if server.refuses else (200, None)
        if status > 200:
            self.answer(status, body)
            return
        batch = {"id": f"batch-{len(server.batches)}", "object": "batch", "status": "validating"}
        server.batches.append(batch | json.loads(raw) | {"request_counts": {"completed": 0}})
        if status == 0:
            self.close_connection = True
            return
        self.answer(200, server.batches[-1])
