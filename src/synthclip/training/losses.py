"""Contrastive losses over the pairs of a global batch, and their gradient, of the whole batch or in parts.

Shapes: B pairs of this process, N pairs of all processes, E the embedding's width. Each loss is the mean over
this process's rows against all N columns, so no process holds more than [B, N] logits; the mean of it over
the processes, which is what data-parallel training descends, is the loss of the whole batch.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

from synthclip.models.build import IMAGE_MEAN, IMAGE_STD
from synthclip.recipe.training import LossName
from synthclip.training.loader import Batch
from synthclip.training.parallel import Group, Parallel


@dataclass(frozen=True)
class Features:
    """What a loss sees of the pairs of this process.

    `image_BE` and `text_BE` are float, L2-normalised; `scale` is the inverse temperature; `bias` is added to
    the logits (SigLIP). `text_id_B` int64 is equal for equal texts. `concept_BK` int64 lists each pair's rare
    concepts, padded with -1. `edited_BE` are the texts with something said wrongly, negatives of all images,
    `is_edited_B` bool where there is one; None where nobody asks. `taught_B2E` are the image and the text
    features of a teacher, whose products are its logits.
    """

    image_BE: Tensor
    text_BE: Tensor
    scale: Tensor
    bias: Tensor | None
    text_id_B: Tensor
    concept_BK: Tensor
    edited_BE: Tensor | None = None
    is_edited_B: Tensor | None = None
    taught_B2E: Tensor | None = None


Loss = Callable[[Features, Group], Tensor]


def build_loss(name: LossName, mask_false_negatives: bool, teacher_weight: float = 0.0) -> Loss:
    """The loss of that name. With `mask_false_negatives`, pairs that share their text or a rare concept are
    left out of each other's negatives. `teacher_weight` is the part of the divergence from a teacher."""
    compute = {"clip": _clip, "siglip": _siglip, "multi-positive": _multi_positive}[name]

    def loss(mine: Features, group: Group) -> Tensor:
        rows = _rows(mine, group, mask_false_negatives)
        if not teacher_weight or mine.taught_B2E is None:
            return compute(rows)
        divergence = _divergence(rows, mine.taught_B2E, group)
        return (1 - teacher_weight) * compute(rows) + teacher_weight * divergence

    return loss


@dataclass(frozen=True)
class _Rows:
    """This process's rows of the global batch. `own_B` is each row's own column; columns of equal text are
    `same_BN`; `ignored_BN` are no negatives."""

    mine: Features
    image_NE: Tensor
    text_NE: Tensor
    own_B: Tensor
    same_BN: Tensor
    ignored_BN: Tensor
    wrong_BM: Tensor
    """Logits of this process's images with the edited texts of all, -inf where there is none; M is 0 or N."""

    def by_image(self) -> Tensor:
        return self.mine.scale * self.mine.image_BE @ self.text_NE.T

    def by_text(self) -> Tensor:
        return self.mine.scale * self.mine.text_BE @ self.image_NE.T


def _rows(mine: Features, group: Group, mask_false_negatives: bool) -> _Rows:
    B = len(mine.image_BE)
    own_B = group.rank * B + torch.arange(B, device=mine.image_BE.device)
    same_BN = mine.text_id_B[:, None] == group.gather(mine.text_id_B)[None, :]
    ignored_BN = torch.zeros_like(same_BN)
    if mask_false_negatives:
        ignored_BN = same_BN | _share_concept(group.gather(mine.concept_BK), own_B)
        ignored_BN.scatter_(1, own_B[:, None], False)
    image_NE, text_NE = group.gather(mine.image_BE), group.gather(mine.text_BE)
    return _Rows(mine, image_NE, text_NE, own_B, same_BN, ignored_BN, _wrong(mine, group))


def _wrong(mine: Features, group: Group) -> Tensor:
    if mine.edited_BE is None or mine.is_edited_B is None:
        return mine.image_BE[:, :0]
    logits_BN = mine.scale * mine.image_BE @ group.gather(mine.edited_BE).T
    return logits_BN.masked_fill(~group.gather(mine.is_edited_B)[None, :], -torch.inf)


def _share_concept(concept_NK: Tensor, own_B: Tensor) -> Tensor:
    """Whether each of the rows `own_B` shares a concept with each pair, bool [B, N]."""
    if not concept_NK.shape[1]:
        return torch.zeros(len(own_B), len(concept_NK), dtype=torch.bool, device=concept_NK.device)
    known_U, number_NK = torch.unique(concept_NK, return_inverse=True)
    has_NU = torch.zeros(len(concept_NK), len(known_U), device=concept_NK.device)
    has_NU.scatter_(1, number_NK, 1.0)
    has_NU[:, known_U == -1] = 0.0
    return has_NU[own_B] @ has_NU.T > 0


def _clip(rows: _Rows) -> Tensor:
    """Symmetric cross-entropy (CLIP, arXiv 2103.00020, Figure 3)."""
    image_BN = rows.by_image().masked_fill(rows.ignored_BN, -torch.inf)
    text_BN = rows.by_text().masked_fill(rows.ignored_BN, -torch.inf)
    if rows.wrong_BM.shape[1]:
        image_BN = torch.cat([image_BN, rows.wrong_BM], dim=1)
    return 0.5 * (cross_entropy(image_BN, rows.own_B) + cross_entropy(text_BN, rows.own_B))


def _multi_positive(rows: _Rows) -> Tensor:
    """Cross-entropy to the uniform distribution over all pairs of equal text (StableRep, arXiv 2306.00984,
    Section 3, here between images and texts)."""
    target_BN = rows.same_BN / rows.same_BN.sum(dim=1, keepdim=True)
    ignored_BN = rows.ignored_BN & ~rows.same_BN

    def half(logits_BN: Tensor, more_BM: Tensor) -> Tensor:
        all_logits = torch.cat([logits_BN.masked_fill(ignored_BN, -torch.inf), more_BM], dim=1)
        log_p_BN = log_softmax(all_logits, dim=1)[:, : logits_BN.shape[1]]
        return -torch.where(rows.same_BN, target_BN * log_p_BN, 0.0).sum(dim=1).mean()

    return 0.5 * (half(rows.by_image(), rows.wrong_BM) + half(rows.by_text(), rows.wrong_BM[:, :0]))


def _siglip(rows: _Rows) -> Tensor:
    """Each image with each text by itself (SigLIP, arXiv 2303.15343, Algorithm 1)."""
    sign_BN = torch.full_like(rows.same_BN, -1, dtype=rows.mine.image_BE.dtype)
    sign_BN.scatter_(1, rows.own_B[:, None], 1.0)
    logits_BN = rows.by_image()
    wrong_BM = rows.wrong_BM
    if rows.mine.bias is not None:
        logits_BN, wrong_BM = logits_BN + rows.mine.bias, wrong_BM + rows.mine.bias
    each_BN = logsigmoid(sign_BN * logits_BN).masked_fill(rows.ignored_BN, 0.0)
    return -(each_BN.sum(dim=1) + logsigmoid(-wrong_BM).sum(dim=1)).mean()


def _divergence(rows: _Rows, taught_B2E: Tensor, group: Group) -> Tensor:
    """The mean of both directions' KL(teacher || student) over the batch, each by its own temperature
    (MobileCLIP, arXiv 2311.17049, Section 3, of one teacher)."""
    (image_BE, text_BE), (image_NE, text_NE) = (
        both.unbind(dim=1) for both in (taught_B2E, group.gather(taught_B2E))
    )

    def half(student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        log_q_BN, log_p_BN = (
            log_softmax(logits.masked_fill(rows.ignored_BN, -torch.inf), dim=1)
            for logits in (student_BN, teacher_BN)
        )
        each_BN = log_p_BN.exp() * (log_p_BN - log_q_BN)
        return torch.where(rows.ignored_BN, 0.0, each_BN).sum(dim=1).mean()

    by_image = half(rows.by_image(), image_BE @ text_NE.T)
    return 0.5 * (by_image + half(rows.by_text(), text_BE @ image_NE.T))


class Gradients:
    """Runs a model over this process's part of a batch and leaves the global batch's gradient in `.grad`.

    With `micro_batch`, at most that many pairs hold activations at a time (GradCache, Gao et al.,
    arXiv 2101.06983): features are computed without a graph, the loss gives their gradients, and a second
    pass carries these into the weights. Both passes of a part draw the same random numbers. `normalisation`
    is the mean and standard deviation of each colour, on a scale of 0 to 1.
    """

    def __init__(
        self,
        parallel: Parallel,
        loss: Loss,
        group: Group,
        device: torch.device,
        precision: torch.dtype,
        micro_batch: int | None,
        normalisation: tuple[Sequence[float], Sequence[float]] = (IMAGE_MEAN, IMAGE_STD),
    ) -> None:
        self._parallel, self._loss, self._group = parallel, loss, group
        self._device, self._precision, self._micro_batch = device, precision, micro_batch
        mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in normalisation)
        self._shift, self._scale = -mean / std, 1 / (255 * std)

    def backward(self, batch: Batch, seed: int, grad_scale: Tensor) -> Tensor:
        """The loss over this process's rows, detached; its gradient, times `grad_scale`, is added to `.grad`.

        Everything random in the model follows from `seed`.
        """
        B = len(batch.tokens)
        if self._micro_batch is None or self._micro_batch >= B:
            loss = self._of(batch, *self._forward(batch, slice(0, B), seed))
            (loss * grad_scale).backward()
            self._parallel.finish_backward()
            return loss.detach()
        parts = [slice(at, min(B, at + self._micro_batch)) for at in range(0, B, self._micro_batch)]
        with torch.no_grad():
            seen = [self._forward(batch, part, seed + at) for at, part in enumerate(parts)]
        rows = [torch.cat(of_parts) for of_parts in zip(*(rows for rows, _ in seen), strict=True)]
        leaves = [leaf.detach().requires_grad_() for leaf in (*rows, *seen[0][1])]
        loss = self._of(batch, leaves[: len(rows)], leaves[len(rows) :])
        (loss * grad_scale).backward()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        row_grads, scalar_grads = grads[: len(rows)], grads[len(rows) :]
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            with contextlib.nullcontext() if last else self._parallel.accumulating():
                outputs, scalars = self._forward(batch, part, seed + at)
                # What the scalars got counts once; in the other parts they are only kept in the graph.
                of_scalars = [grad if last else torch.zeros_like(grad) for grad in scalar_grads]
                of_rows = [grad[part] for grad in row_grads]
                torch.autograd.backward([*outputs, *scalars], [*of_rows, *of_scalars])
        self._parallel.finish_backward()
        return loss.detach()

    def _forward(self, batch: Batch, part: slice, seed: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """(image, text and, where there are such, edited text features, each float32 [P, E]; inverse
        temperature, and logit bias where there is one)."""
        torch.manual_seed(seed)
        images = batch.images[part].to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        pixels = torch.addcmul(self._shift, images.float(), self._scale)
        tokens = batch.tokens[part].to(self._device, non_blocking=True)
        if batch.edited is not None:
            tokens = torch.cat([tokens, batch.edited[part].to(self._device, non_blocking=True)])
        enabled = self._precision is not torch.float32
        with torch.autocast(self._device.type, self._precision, enabled=enabled):
            outputs = self._parallel.module(pixels, tokens)
        image, text, *scalars = (output.float() for output in outputs)
        return (image, *text.split(len(image))), scalars

    def _of(self, batch: Batch, rows: Sequence[Tensor], scalars: Sequence[Tensor]) -> Tensor:
        image, text, *edited = rows
        text_id_B = batch.text_ids.to(self._device, non_blocking=True)
        concept_BK = batch.concepts.to(self._device, non_blocking=True)
        bias = scalars[1] if len(scalars) > 1 else None
        features = Features(image, text, scalars[0], bias, text_id_B, concept_BK)
        if batch.edited is not None:
            is_edited_B = batch.edited.any(dim=1).to(self._device, non_blocking=True)
            features = replace(features, edited_BE=edited[0], is_edited_B=is_edited_B)
        if batch.taught is not None:
            features = replace(features, taught_B2E=batch.taught.to(self._device, non_blocking=True))
        return self._loss(features, self._group)
