"""vLLM's offline engine: continuous batching on GPUs.

Every request has its seed, but batching moves floating-point sums: the same text twice is not promised.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from synthclip.backends import LocalSamplingConfig, Tokens, Unfinished, caption_list, loading
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.section import runtime


class Config(LocalSamplingConfig):
    packages: ClassVar[dict[str, str]] = {"vllm": "vllm"}
    gpus: ClassVar[int] = 1
    model: str
    """A name on the Hugging Face hub, or a folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    dtype: str = "auto"
    """Arithmetic of the model, such as `float16`; `auto` for that of its weights."""
    context: int | None = Field(None, ge=64)
    """Tokens that a prompt and its answer may take together; None for what the model was made for."""
    batch_size: int = runtime(4096, ge=1)
    """Prompts handed over at once; vLLM schedules them itself."""
    gpu_memory_share: float = runtime(0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes."""
    tensor_parallel: int = runtime(1, ge=1)
    """GPUs that hold one copy of the model."""


def build(config: Config) -> "VLLM":
    return VLLM(config)


class VLLM:
    """`LLM` on vLLM."""

    def __init__(self, config: Config) -> None:
        with needs_extra("vllm", "llm.backend vllm (for Linux and a GPU; else choose llamacpp or openai)"):
            import vllm
        self.tokens = Tokens()
        self._config = config
        self._vllm: Any = vllm
        with loading(f"llm.model: {config.model}"):
            self._engine = vllm.LLM(
                model=config.model,
                revision=config.revision,
                dtype=config.dtype,
                max_model_len=config.context,
                gpu_memory_utilization=config.gpu_memory_share,
                tensor_parallel_size=config.tensor_parallel,
                enable_prefix_caching=True,
            )
        if config.chat and not getattr(self._engine.get_tokenizer(), "chat_template", ""):
            raise SynthClipError(f"llm.model: {config.model}: has no chat template: set llm.chat to false")
        self.name = f"{config.model}@{config.revision}" if config.revision else config.model
        self.batch_size = config.batch_size
        self.continues = not config.chat

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str]:
        config = self._config
        asked = zip(seeds, counts or [1] * len(prompts), strict=True)
        sampling = [self._sampling(seed, count) for seed, count in asked]
        if config.chat:
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
            template = {"chat_template_kwargs": config.chat_template_kwargs or None}
            answers = self._engine.chat(messages, sampling, use_tqdm=False, **template)
        else:
            answers = self._engine.generate(list(prompts), sampling, use_tqdm=False)
        self.tokens.read += sum(len(answer.prompt_token_ids) for answer in answers)
        self.tokens.written += sum(len(answer.outputs[0].token_ids) for answer in answers)
        said = [answer.outputs[0] for answer in answers]
        return [one.text if one.finish_reason == "stop" else Unfinished(one.text) for one in said]

    def _sampling(self, seed: int, count: int) -> Any:
        # Some families mark their thinking by special tokens.
        values: dict[str, Any] = {**self._config.sampling(count), "skip_special_tokens": False}
        if count > 1:
            guide = self._vllm.sampling_params.StructuredOutputsParams
            values["structured_outputs"] = guide(json=caption_list(count))
        return self._vllm.SamplingParams(seed=seed % 2**63, **values)
