"""Any causal language model that transformers loads, in batches.

Each text draws from a random stream of its own, so its batch decides nothing but, through the order of
floating-point sums, a rare near-tie.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from synthclip.backends import LocalSamplingConfig, Tokens, Unfinished, loading
from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.recipe.section import runtime


class Config(LocalSamplingConfig):
    packages: ClassVar[dict[str, str]] = {"torch": "transformers", "transformers": "transformers"}
    gpus: ClassVar[int] = 1
    model: str
    """A name on the Hugging Face hub, or a folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    gguf_file: str | None = None
    """The file inside `model` where that holds GGUF weights."""
    max_tokens: int = Field(64, ge=1)
    dtype: str = "auto"
    """Arithmetic of the model, such as `bfloat16`; `auto` for that of its weights."""
    device: str | None = runtime(None)
    """None for the GPU where there is one."""
    batch_size: int = runtime(32, ge=1)
    """Prompts at once."""

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
        self.tokens = Tokens()
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
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        if config.revision:
            self.name += f"@{config.revision}"
        self.batch_size = config.batch_size
        self.continues = not config.chat

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str]:
        import torch

        config = self._config
        limits = [config.max_tokens * count for count in counts or [1] * len(prompts)]
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
                    max_new_tokens=max(limits),
                    logits_processor=self._sampling(seeds, start),
                    pad_token_id=self._tokenizer.pad_token_id,
                    stopping_criteria=[stopped] if config.stop else None,
                )
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
            raise SynthClipError(
                f"llm.model: {config.model}: {reason}: lower llm.batch_size (now {config.batch_size})"
            ) from None
        self.tokens.read += int(encoded["attention_mask"].sum())
        rows = tokens[:, start:].tolist()
        return [self._said(row[:limit]) for row, limit in zip(rows, limits, strict=True)]

    def _said(self, tokens: list[int]) -> str:
        """The text of an answer, up to its end. Some families mark their thinking by special tokens."""
        length = next((at for at, token in enumerate(tokens) if token in self._ends), len(tokens))
        self.tokens.written += length
        text = str(self._tokenizer.decode(tokens[:length]))
        cut = self._cut(text)
        return cut if cut != text or length < len(tokens) else Unfinished(text)

    def _in_template(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, **self._config.chat_template_kwargs
            )
        )

    def _sampling(self, seeds: Sequence[int], start: int) -> list[Any]:
        """Sampling as a greedy choice among logits with Gumbel noise (Gumbel, 1954): the noise of a row comes
        from its own seed, which the sampler of transformers cannot do. Answers begin at token `start`."""
        import torch
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        config, own = self._config, self._model.generation_config
        temperature = (own.temperature or 1.0) if config.temperature is None else config.temperature
        top_p = (own.top_p or 1.0) if config.top_p is None else config.top_p
        presence, frequency = config.presence_penalty or 0.0, config.frequency_penalty or 0.0

        def penalized(tokens_BL: Any, logits_BV: Any) -> Any:
            tokens = tokens_BL[:, start:]
            counts = torch.zeros_like(logits_BV).scatter_add_(
                1, tokens, torch.ones_like(tokens, dtype=logits_BV.dtype)
            )
            return logits_BV - frequency * counts - presence * (counts > 0)

        processors: list[Any] = [penalized] if frequency or presence else []
        if not temperature:
            return processors
        streams = [torch.Generator(self._device).manual_seed(seed % 2**63) for seed in seeds]

        def gumbel(_: Any, logits_BV: Any) -> Any:
            uniform_BV = torch.stack(
                [torch.rand(logits_BV.shape[1], generator=stream, device=self._device) for stream in streams]
            )
            return logits_BV - torch.log(-torch.log(uniform_BV.clamp_min(1e-20)))

        processors.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
        return [*processors, gumbel]

    def _cut(self, answer: str) -> str:
        """Up to the first stop string."""
        ends = [answer.find(stop) for stop in self._config.stop if stop in answer]
        return answer[: min(ends)] if ends else answer
