"""Whether a server that batches is kept busy: images a second through the backend `openai`, against its own.

    python benchmarks/imagegen_server.py [--images 512] [--batch 8] [--seconds 0.25]

The server takes up to `batch` requests that wait, and answers them all `seconds` later, as a diffusion server
does; so `batch / seconds` is the most that it can give. What else its process and ours do is in the figure.
"""

import argparse
import base64
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from synthclip.backends.t2i_openai import Config, build
from synthclip.imagegen.painting import Job, Painting
from synthclip.recipe.imagegen import ImagesConfig


class BatchingServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, batch: int, seconds: float, side_px: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
        encoded = base64.b64encode(cv2.imencode(".png", noise)[1].tobytes()).decode()
        self.answer = json.dumps({"data": [{"b64_json": encoded}]}).encode()
        self.waiting: queue.Queue[threading.Event] = queue.Queue()
        self._batch, self._seconds = batch, seconds
        threading.Thread(target=self._paint, daemon=True).start()

    def _paint(self) -> None:
        while True:
            taken = [self.waiting.get()]
            time.sleep(0.002)  # for requests that are sent together
            while len(taken) < self._batch and not self.waiting.empty():
                taken.append(self.waiting.get())
            time.sleep(self._seconds - 0.002)
            for one in taken:
                one.set()


class _Handler(BaseHTTPRequestHandler):
    server: BatchingServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        done = threading.Event()
        self.server.waiting.put(done)
        done.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    table = Table("concurrency", "images/s", "of the server's own", box=None)
    for concurrency in (arguments.batch, 2 * arguments.batch, 4 * arguments.batch):
        server = BatchingServer(arguments.batch, arguments.seconds, arguments.size)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        model = build(
            Config(backend="openai", model="x", base_url=url, size_px=arguments.size, concurrency=concurrency)
        )
        jobs = [Job(number, f"thing {number}", (), 0, 0) for number in range(arguments.images)]
        began = time.monotonic()
        painted = sum(1 for _ in Painting(jobs, [model], [], ImagesConfig(size_px=arguments.size)))
        rate, most = painted / (time.monotonic() - began), arguments.batch / arguments.seconds
        table.add_row(str(concurrency), f"{rate:.1f}", f"{rate / most:.1%}")
        server.shutdown()
    Console().print(table)


if __name__ == "__main__":
    main()
