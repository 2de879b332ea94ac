"""llama.cpp's own server with the small model, in a process that a test can kill: prints its address."""

import sys
import time

import xllamacpp

from synthclip.backends.llm_llamacpp import gguf


def main(port: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf(None))
    params.n_ctx, params.n_parallel = 1024, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity, params.warmup, params.port = -1, False, port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(int(sys.argv[1]))
