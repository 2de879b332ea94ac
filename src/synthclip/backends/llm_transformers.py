"""Any causal language model that transformers loads, in batches.

Each text draws from a random stream of its own, so its batch decides nothing but, through the order of
floating-point sums, a rare near-tie.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from synthclip.backends import SamplingConfig, loading
from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.recipe.section import runtime


class Config(SamplingConfig):
    packages: ClassVar[dict[str, str]] = {"torch": "transformers", "transformers": "transformers"}
    gpus: ClassVar[int] = 1
    model: str
    """A name on the Hugging Face hub, or a folder."""
    revision: str | None = None
    gguf_file: str | None = None
    """The file inside `model` where that holds GGUF weights."""
    dtype: str = "auto"
    device: str | None = runtime(None)
    """None for the GPU where there is one."""
    batch_size: int = runtime(32, ge=1)

    def inputs(self) -> dict[str, str]:
        if self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().is_dir():
            raise SynthClipError(f"llm.model: {self.model}: no such folder: give one, or a name on the hub")
        return {}


def build(config: Config) -> "Transformers":
    return Transformers(config)


class Transformers:
    """`LLM` on transformers."""

    def __init__(self, config: Config) -> None:
        with needs_extra("transformers", "llm.backend transformers"):
            import torch

            from synthclip.models import transformers
        source = str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model
        where: dict[str, Any] = {"revision": config.revision, "gguf_file": config.gguf_file}
        where = {name: value for name, value in where.items() if value is not None}
        self._config = config
        self._device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with loading(f"llm.model: {config.model}"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left", **where)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=config.dtype, **where)
            self._model = model.to(self._device).eval()
        if config.chat and not self._tokenizer.chat_template:
            raise SynthClipError(f"llm.model: {config.model}: has no chat template: set llm.chat to false")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.name = Path(config.model).name if Path(config.model).exists() else config.model
        if config.revision:
            self.name += f"@{config.revision}"
        self.batch_size = config.batch_size
        self.continues = not config.chat

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        import torch

        config = self._config
        if config.chat:
            prompts = [self._in_template(prompt) for prompt in prompts]
        encoded = self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, add_special_tokens=not config.chat
        ).to(self._device)
        start = encoded["input_ids"].shape[1]

        def stopped(tokens_BL: Any, _: Any) -> Any:
            texts = self._tokenizer.batch_decode(tokens_BL[:, start:])
            return torch.tensor([self._cut(text) != text for text in texts], device=self._device)

        try:
            with torch.inference_mode():
                tokens = self._model.generate(
                    **encoded,
                    do_sample=False,
                    max_new_tokens=config.max_tokens,
                    logits_processor=self._sampling(seeds, start),
                    pad_token_id=self._tokenizer.pad_token_id,
                    stopping_criteria=[stopped] if config.stop else None,
                )
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
            raise SynthClipError(
                f"llm.model: {config.model}: {reason}: lower llm.batch_size (now {config.batch_size})"
            ) from None
        answers = self._tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
        return [self._cut(answer) for answer in answers]

    def _in_template(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _sampling(self, seeds: Sequence[int], start: int) -> list[Any]:
        """Sampling as a greedy choice among logits with Gumbel noise (Gumbel, 1954): the noise of a row comes
        from its own seed, which the sampler of transformers cannot do. Answers begin at token `start`."""
        import torch
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        config = self._config

        def penalized(tokens_BL: Any, logits_BV: Any) -> Any:
            tokens = tokens_BL[:, start:]
            counts = torch.zeros_like(logits_BV).scatter_add_(
                1, tokens, torch.ones_like(tokens, dtype=logits_BV.dtype)
            )
            return logits_BV - config.frequency_penalty * counts - config.presence_penalty * (counts > 0)

        processors: list[Any] = [penalized] if config.frequency_penalty or config.presence_penalty else []
        if not config.temperature:
            return processors
        streams = [torch.Generator(self._device).manual_seed(seed % 2**63) for seed in seeds]

        def gumbel(_: Any, logits_BV: Any) -> Any:
            uniform_BV = torch.stack(
                [torch.rand(logits_BV.shape[1], generator=stream, device=self._device) for stream in streams]
            )
            return logits_BV - torch.log(-torch.log(uniform_BV.clamp_min(1e-20)))

        processors.append(TemperatureLogitsWarper(config.temperature))
        if config.top_p < 1:
            processors.append(TopPLogitsWarper(config.top_p))
        return [*processors, gumbel]

    def _cut(self, answer: str) -> str:
        """Up to the first stop string."""
        ends = [answer.find(stop) for stop in self._config.stop if stop in answer]
        return answer[: min(ends)] if ends else answer
