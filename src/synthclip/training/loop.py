"""The training loop: from the last checkpoint to the last step."""

import inspect
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from synthclip.errors import SynthClipError
from synthclip.evaluation.results import figure_name
from synthclip.keys import seed_of
from synthclip.models.build import LeanCLIP
from synthclip.recipe.training import TrainingConfig
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.loader import Batch, Loader
from synthclip.training.logs import Logs
from synthclip.training.losses import Gradients, build_loss
from synthclip.training.parallel import Group, build_parallel, fill, load_optimizer, whole

_LOG = logging.getLogger("synthclip.training")
_FLUSH_STEPS = 10
"""Steps whose losses stay on the device: reading one makes the host wait."""
MAX_LOGIT_SCALE = 4.6052
"""ln 100, as CLIP (arXiv 2103.00020, Section 2.5) bounds the logarithm of the inverse temperature."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Validate = Callable[[dict[str, Tensor]], list[dict[str, Any]]]
"""Gives figures of the model with these weights: rows of `schema.EVAL_RESULT`."""
Report = Callable[[int, dict[str, float]], None]
"""Called with the samples done since the last call and figures worth showing."""


@dataclass
class Trainer:
    """Trains `model` in place, in each process of the group.

    `fit` resumes from the newest checkpoint, if there is one, in any number of processes.
    """

    model: LeanCLIP
    config: TrainingConfig
    loader: Loader
    checkpoints: Checkpoints
    device: torch.device
    steps: int
    steps_per_epoch: int
    seed: int
    report: Report
    stop_asked: Callable[[], bool] = lambda: False
    group: Group = field(default_factory=Group)
    peak: Callable[[int, int], float] | None = None
    """From tokens a text and pixels of an image's edge: pairs a second at the peak arithmetic of the group's
    devices; None where that is not known."""
    log: Logs | None = None
    """Given to the first process; closed when `fit` returns."""
    validate: Validate | None = None
    """Given where `config.eval` asks for figures; all processes call it together, and get the same."""
    curve: list[tuple[float, ...]] = field(default_factory=list)
    """One row a step: step, samples seen, loss, learning rate, samples a second, share of time waiting."""
    skipped: int = 0
    """Steps that changed nothing because their loss was not finite."""
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    """The figures that `validate` gave, each with the steps done before."""
    best: "Best | None" = None
    """In the first process: the weights that `config.eval` chooses so far."""
    _grad_norm: Tensor | None = None
    """Of the last step, before it was clipped."""

    def __post_init__(self) -> None:
        config = self.config
        self.model.train()
        parallel = build_parallel(
            self.model, config.parallel, self.group, self.device, compile=config.compile
        )
        self.optimizer = build_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = (
            {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            if config.ema_decay is not None
            else None
        )
        preprocess = self.model.architecture["preprocess_cfg"]
        self._gradients = Gradients(
            parallel,
            build_loss(
                config.loss,
                config.mask_false_negatives is not None,
                config.teacher.weight if config.teacher else 0.0,
            ),
            self.group,
            self.device,
            _DTYPES[config.precision],
            config.micro_batch,
            (preprocess["mean"], preprocess["std"]),
        )

    def fit(self) -> bool:
        """Train until the last step, or until asked to stop; True when all steps are done.

        Either way the state is saved. Raises SynthClipError at a loss that is not finite, unless the recipe
        says to skip such steps: the newest checkpoint is then one whose weights still gave a loss.
        """
        step = self._resume()
        if self.log is not None:
            self.log.begin(step, self.steps)
        saved_at = time.monotonic()
        pending = _Pending()
        batches = self.loader.batches(step, self.steps)
        try:
            if step == 0 and self._evaluates_at(step):
                self._evaluate(step)
            while step < self.steps:
                waited = time.monotonic()
                batch = next(batches)
                pending.waited += time.monotonic() - waited
                lr = learning_rate(step, self.steps, self.steps_per_epoch, self.config)
                pending.losses.append(self._step(step, batch, lr))
                pending.rates.append(lr)
                step += 1
                pending.tokens += batch.tokens.shape[1]
                pending.image_size_px = batch.images.shape[1]
                counted = step == self.steps or step % (self.config.checkpoint_steps or self.steps) == 0
                judged = self._evaluates_at(step)
                if len(pending.losses) == _FLUSH_STEPS or counted or judged:
                    self._flush(step, pending)
                    if judged:
                        self._evaluate(step)
                    pending = _Pending()
                    stop = self.group.any(self.stop_asked(), self.device)
                    due = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
                    if stop or counted or self.group.any(due, self.device):
                        self._save(step)
                        saved_at = time.monotonic()
                    if stop:
                        break
        finally:
            batches.close()
            if self.log is not None:
                self.log.close()
            self.checkpoints.finish()
        return step == self.steps

    def _step(self, step: int, batch: Batch, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # What a step draws (dropout, say) follows from the step alone, so that a resumed run draws the same.
        seed = seed_of(f"{step}/{self.group.rank}", stream="step", seed=self.seed) >> 2
        loss = self._gradients.backward(batch, seed, self.scaler.scale(torch.ones((), device=self.device)))
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self._grad_norm = getattr(norm, "full_tensor", lambda: norm)()  # FSDP's are in parts
        if self.config.on_bad_loss == "stop" or bool(self.group.mean(loss).isfinite()):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        clamp_logit_scale(self.model)
        if self.average is not None:
            self._update_average(self.average)
        return loss

    @torch.no_grad()
    def _update_average(self, average: dict[str, Tensor]) -> None:
        assert self.config.ema_decay is not None
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - self.config.ema_decay)
            else:
                average[name].copy_(tensor)

    def _evaluates_at(self, step: int) -> bool:
        every = self.config.eval.every_epochs
        if every is None:
            return False
        return step == self.steps or step % max(1, round(every * self.steps_per_epoch)) == 0

    def _evaluate(self, step: int) -> None:
        """Take the figures, and the weights where they are the best so far."""
        assert self.validate is not None
        weights = whole(self.average or self.model.state_dict(), self.group, everywhere=True)
        rows = [{**row, "step": step} for row in self.validate(weights)]
        self.evaluated += rows
        figures = {figure_name(row): row["value"] for row in rows}
        value = figures[self.config.eval.metric]
        if self.log is not None:
            self.log("eval", step, figures)
        better = self.best is None or value > self.best.value
        if self.group.rank == 0 and self.config.eval.keep == "best" and better:
            kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
            self.best = Best(step, value, kept)

    def _last_figure(self) -> dict[str, float]:
        metric = self.config.eval.metric
        taken = [row["value"] for row in self.evaluated if figure_name(row) == metric]
        return {metric: taken[-1]} if taken else {}

    def _flush(self, step: int, pending: "_Pending") -> None:
        """Bring the losses of the last steps to the host, check them, report them."""
        losses = self.group.mean(torch.stack(pending.losses)).tolist()
        seconds = time.monotonic() - pending.started
        rate = len(losses) * self.config.batch_size / seconds
        wait = pending.waited / seconds
        first = step - len(losses)
        for number, (loss, lr) in enumerate(zip(losses, pending.rates, strict=True), first):
            if not math.isfinite(loss) and self.config.on_bad_loss == "stop":
                raise self._bad_loss(loss, number)
            seen = (number + 1) * self.config.batch_size
            self.curve.append((number, seen, loss, lr, rate, wait))
        figures = {"loss": losses[-1], "lr": pending.rates[-1], "samples/s": rate, "data_wait": wait}
        if self.peak is not None:
            figures["mfu"] = rate / self.peak(round(pending.tokens / len(losses)), pending.image_size_px)
        if self._grad_norm is not None:
            figures["grad_norm"] = float(self._grad_norm)
        figures["epoch"] = step / self.steps_per_epoch
        figures["logit_scale"] = float(self.model.logit_scale.detach().exp())
        figures["eta_s"] = round((self.steps - step) * seconds / len(losses))
        self.report(len(losses) * self.config.batch_size, figures | self._last_figure())
        if self.log is not None:
            self.log("train", step, figures)

    def _bad_loss(self, loss: float, step: int) -> SynthClipError:
        good = self.checkpoints.last_good(step)
        return SynthClipError(
            f"training: the loss is {loss} at step {step}; "
            + (f"the last good checkpoint is {good}: " if good else "there is no checkpoint from before: ")
            + "lower training.lr, lengthen training.warmup_epochs, or set training.on_bad_loss=skip"
        )

    def _save(self, step: int) -> None:
        bad = self.group.union(self.loader.bad.reasons)
        parts = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        trained = whole(parts, self.group)
        if self.group.rank == 0:
            self.checkpoints.save(
                step,
                {
                    "steps": self.steps,
                    "pairs": self.loader.pairs,
                    "architecture": json.dumps(self.model.architecture),
                    **trained,
                    "scaler": self.scaler.state_dict(),
                    "curve": torch.tensor(self.curve, dtype=torch.float64),
                    "bad": bad,
                    "skipped": self.skipped,
                    "evaluated": self.evaluated,
                    "best": None if self.best is None else vars(self.best),
                },
            )

    def _resume(self) -> int:
        state = self.checkpoints.latest()
        if state is None:
            return 0
        fill(self.model.state_dict(), state["model"])
        if self.average is not None:
            fill(self.average, state["average"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.curve = [tuple(row) for row in state["curve"].tolist()]
        self.loader.bad.reasons.update(state["bad"])
        self.skipped = state["skipped"]
        self.evaluated = state["evaluated"]
        self.best = None if state["best"] is None else Best(**state["best"])
        step: int = state["step"]
        if self.group.rank == 0:
            _LOG.warning("resuming from step %d of %d", step, self.steps)
        self.report(step * self.config.batch_size, {})
        return step


@dataclass
class Best:
    """Weights, on the CPU, as they were after `step` steps, and their figure by the recipe's metric."""

    step: int
    value: float
    weights: dict[str, Tensor]


@dataclass
class _Pending:
    """Steps whose losses are still on the device."""

    losses: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    tokens: int = 0
    image_size_px: int = 0
    """Of the last of them."""
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """The rate of iteration `step` of `steps`, counted from 0.

    The warm-up rises linearly from `lr_start` and reaches `lr` with its last iteration; the cosine begins at
    `lr` with the next one and would reach `lr_end` with iteration `steps` (Loshchilov and Hutter,
    arXiv 1608.03983, without restarts).
    """
    warmup = min(steps, int(config.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / max(1, warmup - 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr_end + 0.5 * (config.lr - config.lr_end) * (1 + math.cos(math.pi * progress))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors and scalars, nor to biases and norms by name."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bias", "ln", "bn"))


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Fused AdamW over two groups, with and without weight decay. The learning rate is set each step."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for name, parameter in named if decays(name, parameter)],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for name, parameter in named if not decays(name, parameter)],
            "weight_decay": 0.0,
        },
    ]
    return _AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


class _AdamW(torch.optim.AdamW):
    """Torch's, without what its methods say to torch's compiler: they import it for that, which takes 2 s."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)


def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the inverse temperature between 1 and 100; called after every step."""
    scale = model.logit_scale
    assert isinstance(scale, Tensor)
    with torch.no_grad():
        scale.clamp_(0.0, MAX_LOGIT_SCALE)
