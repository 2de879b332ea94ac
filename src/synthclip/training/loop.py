"""The training loop: from the last checkpoint to the last step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from synthclip.errors import SynthClipError
from synthclip.keys import seed_of
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.config import TrainingConfig
from synthclip.training.loader import Batch, Loader
from synthclip.training.losses import clip_loss
from synthclip.training.model import IMAGE_MEAN, IMAGE_STD
from synthclip.training.optimizer import build_optimizer, clamp_logit_scale, learning_rate

_FLUSH_STEPS = 10
"""Losses stay on the device for so many steps: reading one makes the host wait."""

Report = Callable[[int, dict[str, float]], None]
"""Called with the samples done since the last call and figures worth showing."""


@dataclass
class Trainer:
    """Trains `model` in place. `fit` goes on from the newest checkpoint, if there is one."""

    model: nn.Module
    config: TrainingConfig
    loader: Loader
    checkpoints: Checkpoints
    device: torch.device
    steps: int
    steps_per_epoch: int
    seed: int
    report: Report
    stop_asked: Callable[[], bool] = lambda: False
    curve: list[tuple[float, ...]] = field(default_factory=list)
    """One row a step: step, samples seen, loss, learning rate, samples a second, share of time waiting."""

    def __post_init__(self) -> None:
        self.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, self.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        mean = torch.tensor(IMAGE_MEAN, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(IMAGE_STD, device=self.device).view(1, 3, 1, 1)
        self._shift, self._scale = -mean / std, 1 / (255 * std)

    def fit(self) -> bool:
        """Train until the last step, or until asked to stop; True when all steps are done.

        Either way the state is saved. Raises SynthClipError at a loss that is not finite: the newest
        checkpoint is then from before it.
        """
        step = self._resume()
        if step == self.steps:
            return True
        self.model.train()
        saved_at = time.monotonic()
        pending = _Pending()
        batches = self.loader.batches(step, self.steps)
        try:
            while step < self.steps:
                waited = time.monotonic()
                batch = next(batches)
                pending.waited += time.monotonic() - waited
                lr = learning_rate(step, self.steps, self.steps_per_epoch, self.config)
                pending.losses.append(self._step(step, batch, lr))
                pending.rates.append(lr)
                step += 1
                if len(pending.losses) == _FLUSH_STEPS or step == self.steps or self.stop_asked():
                    self._flush(step, pending)
                    pending = _Pending()
                    if self.stop_asked():
                        break
                    if time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes:
                        self._save(step)
                        saved_at = time.monotonic()
        finally:
            batches.close()
        self._save(step)
        return step == self.steps

    def _step(self, step: int, batch: Batch, lr: float) -> Tensor:
        # What a step draws (dropout, say) follows from the step alone, so that a resumed run draws the same.
        torch.manual_seed(seed_of(str(step), stream="step", seed=self.seed) >> 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        pixels = torch.addcmul(self._shift, images.float(), self._scale)
        tokens = batch.tokens.to(self.device, non_blocking=True)
        with self._autocast():
            image, text, scale = self.model(pixels, tokens)
        loss = clip_loss(image.float(), text.float(), scale.float())
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        clamp_logit_scale(self.model)
        return loss.detach()

    def _autocast(self) -> Any:
        kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.config.precision]
        return torch.autocast(self.device.type, kind, enabled=kind is not torch.float32)

    def _flush(self, step: int, pending: "_Pending") -> None:
        """Bring the losses of the last steps to the host, check them, report them."""
        losses = torch.stack(pending.losses).tolist()
        seconds = time.monotonic() - pending.started
        rate = len(losses) * self.config.batch_size / seconds
        wait = pending.waited / seconds
        first = step - len(losses)
        for number, (loss, lr) in enumerate(zip(losses, pending.rates, strict=True), first):
            if loss != loss or abs(loss) == float("inf"):
                raise SynthClipError(
                    f"training: the loss is {loss} at step {number}; the newest checkpoint is older: "
                    "lower training.lr or lengthen training.warmup_epochs"
                )
            seen = (number + 1) * self.config.batch_size
            self.curve.append((number, seen, loss, lr, rate, wait))
        figures = {"loss": losses[-1], "samples/s": rate, "data_wait": wait}
        self.report(len(losses) * self.config.batch_size, figures)

    def _save(self, step: int) -> None:
        self.checkpoints.save(
            step,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "curve": self.curve,
                "bad": dict(self.loader.bad.reasons),
            },
        )

    def _resume(self) -> int:
        state = self.checkpoints.latest()
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.curve = [tuple(row) for row in state["curve"]]
        self.loader.bad.reasons.update(state["bad"])
        step: int = state["step"]
        self.report(step * self.config.batch_size, {})
        return step


@dataclass
class _Pending:
    """Steps whose losses are still on the device."""

    losses: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)
