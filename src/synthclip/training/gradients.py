"""The gradient of a batch, whole or in parts."""

import contextlib

import torch
from torch import Tensor

from synthclip.models.build import IMAGE_MEAN, IMAGE_STD
from synthclip.training.distributed import Group
from synthclip.training.loader import Batch
from synthclip.training.losses import Features, Loss
from synthclip.training.parallel import Parallel


class Gradients:
    """Runs a model over this process's part of a batch and leaves the global batch's gradient in `.grad`.

    With `micro_batch`, no more than so many pairs hold activations at a time (GradCache, Gao et al.,
    arXiv 2101.06983): features are computed without a graph, the loss gives their gradients, and a second
    pass carries these into the weights. Both passes of a part draw the same random numbers.
    """

    def __init__(
        self,
        parallel: Parallel,
        loss: Loss,
        group: Group,
        device: torch.device,
        precision: torch.dtype,
        micro_batch: int | None,
    ) -> None:
        self._parallel, self._loss, self._group = parallel, loss, group
        self._device, self._precision, self._micro_batch = device, precision, micro_batch
        mean = torch.tensor(IMAGE_MEAN, device=device).view(1, 3, 1, 1)
        std = torch.tensor(IMAGE_STD, device=device).view(1, 3, 1, 1)
        self._shift, self._scale = -mean / std, 1 / (255 * std)

    def backward(self, batch: Batch, seed: int, grad_scale: Tensor) -> Tensor:
        """The loss over this process's rows, detached; its gradient, times `grad_scale`, is added to `.grad`.

        Everything random in the model follows from `seed`.
        """
        B = len(batch.tokens)
        if self._micro_batch is None or self._micro_batch >= B:
            outputs = self._forward(batch, slice(0, B), seed)
            loss = self._of(batch, *outputs)
            (loss * grad_scale).backward()
            self._parallel.finish_backward()
            return loss.detach()
        parts = [slice(at, min(B, at + self._micro_batch)) for at in range(0, B, self._micro_batch)]
        with torch.no_grad():
            seen = [self._forward(batch, part, seed + at) for at, part in enumerate(parts)]
        leaves = [
            torch.cat([outputs[0] for outputs in seen]),
            torch.cat([outputs[1] for outputs in seen]),
            *seen[0][2:],
        ]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = self._of(batch, *leaves)
        (loss * grad_scale).backward()
        image_grad, text_grad, *scalar_grads = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves
        ]
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            with contextlib.nullcontext() if last else self._parallel.accumulating():
                image, text, *scalars = self._forward(batch, part, seed + at)
                # What the scalars got counts once; in the other parts they are only kept in the graph.
                of_scalars = [grad if last else torch.zeros_like(grad) for grad in scalar_grads]
                grads = [image_grad[part], text_grad[part], *of_scalars]
                torch.autograd.backward([image, text, *scalars], grads)
        self._parallel.finish_backward()
        return loss.detach()

    def _forward(self, batch: Batch, part: slice, seed: int) -> tuple[Tensor, ...]:
        """Image and text features float32 [P, E], inverse temperature, and logit bias where there is one."""
        torch.manual_seed(seed)
        images = batch.images[part].to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        pixels = torch.addcmul(self._shift, images.float(), self._scale)
        tokens = batch.tokens[part].to(self._device, non_blocking=True)
        enabled = self._precision is not torch.float32
        with torch.autocast(self._device.type, self._precision, enabled=enabled):
            outputs = self._parallel.module(pixels, tokens)
        return tuple(output.float() for output in outputs)

    def _of(
        self, batch: Batch, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        text_id_B = batch.text_ids.to(self._device, non_blocking=True)
        concept_BK = batch.concepts.to(self._device, non_blocking=True)
        return self._loss(Features(image, text, scale, bias, text_id_B, concept_BK), self._group)
