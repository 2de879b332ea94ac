"""A server with OpenAI's files and batches. Answers follow from prompt and seed."""

import email.parser
import email.policy
import http.server
import json
from typing import Any

SENTENCE = "A {concept} of number {seed} lies on a table."


class BatchServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.released = True
        """Whether batches come to an end when they are asked for."""
        self.files, self.batches = dict[str, bytes](), list[dict[str, Any]]()
        self.refuses: list[tuple[int, Any]] = []
        """Statuses and bodies of the next requests to create a batch; one of 0 creates it and hangs up."""
        self.fates: list[dict[str, Any]] = []
        """Of the next batches: `status`, `errors`, and `answered`, the share of requests that are."""
        self.line_faults: list[dict[str, Any]] = []
        """In the place of the answers to the next requests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    concept = body["messages"][0]["content"].rpartition(": ")[2]
    text = SENTENCE.format(concept=concept, seed=body["seed"])
    said = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
    return {"response": {"status_code": 200, "body": said}, "error": None}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, server = self.path.partition("?")[0].removeprefix("/v1/"), self.server
        if path == "batches":
            self._send(200, {"data": list(reversed(server.batches)), "object": "list"})
        elif path.startswith("batches/"):
            batch = server.batches[int(path.removeprefix("batches/batch-"))]
            if batch["status"] == "validating" and server.released:
                server.finish(batch)
            self._send(200, batch)
        else:
            self._send(200, server.files[path.split("/")[1]])

    def do_POST(self) -> None:
        raw, server = self.rfile.read(int(self.headers["Content-Length"])), self.server
        if self.path == "/v1/files":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            parts = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + raw)
            fields = {
                part.get_param("name", header="content-disposition"): part for part in parts.iter_parts()
            }
            assert fields["purpose"].get_content().strip() == "batch"
            lines = fields["file"].get_payload(decode=True)
            assert isinstance(lines, bytes)
            self._send(200, {"id": server.keep(lines), "object": "file"})
            return
        status, body = server.refuses.pop(0) if server.refuses else (200, None)
        if status > 200:
            self._send(status, body)
            return
        batch = {"id": f"batch-{len(server.batches)}", "object": "batch", "status": "validating"}
        server.batches.append(batch | json.loads(raw) | {"request_counts": {"completed": 0}})
        if status == 0:
            self.close_connection = True
            return
        self._send(200, server.batches[-1])

    def _send(self, status: int, body: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        return None
