"""A minute of the real work on one device of this machine: a GPU, or a core where there is none."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice

import numpy as np

from synthclip import keys
from synthclip.backends import TextToImage, build_llm, build_text_to_image
from synthclip.models import cuda_or_cpu
from synthclip.plan import Rates
from synthclip.recipe import Recipe

_SAMPLE = 64


def measure(recipe: Recipe, seconds: float = 20.0, report: Callable[[str], None] = print) -> Rates:
    """Write captions, paint images and train for `seconds` each, on models loaded and warm.

    Raises SynthClipError where a model cannot be loaded.
    """
    import cv2
    import torch

    from synthclip.textgen.concepts import bank

    if not torch.cuda.is_available():
        os.environ["OMP_NUM_THREADS"] = "1"  # for what is loaded from here on: the rate is that of one core
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    texts = [text for text, _ in bank(recipe.concepts)]
    concepts = [texts[at] for at in np.linspace(0, len(texts) - 1, min(_SAMPLE, len(texts))).astype(int)]
    report("measuring captions")
    captions_per_s, captions, kept = _write(recipe, concepts, seconds)
    report("measuring images")
    images_per_s, image_bytes = _paint(recipe, captions or concepts, seconds)
    report("measuring training")
    return Rates(captions_per_s, kept, images_per_s, image_bytes, _train(recipe, seconds))


def _write(recipe: Recipe, concepts: Sequence[str], seconds: float) -> tuple[float, list[str], float]:
    """Captions a second, those that cleaning kept, and their share."""
    from synthclip.textgen.prompts import Prompts, answered

    llm, prompts = build_llm(recipe.llm), Prompts(recipe.captions, recipe.seed)
    asked = (prompts.draw(concept, round) for round in range(10**6) for concept in concepts)
    kept: list[str] = []

    def step() -> int:
        batch = list(islice(asked, llm.batch_size))
        for judged in answered(llm, batch, recipe.captions):
            kept.extend(text for text, reason in judged if reason is None)
        return sum(prompt.count for prompt in batch)

    rate, done = _timed(step, seconds)
    return rate, kept, len(kept) / done


def _paint(recipe: Recipe, captions: Sequence[str], seconds: float) -> tuple[float, float]:
    """Images a second, encoded, and the bytes of one."""
    from synthclip.samples.pictures import encode, fit

    config, several = recipe.images, recipe.text_to_image
    prompts: Iterator[str] = cycle(captions)
    sizes: list[int] = []

    def step(painter: TextToImage) -> int:
        batch = list(islice(prompts, painter.batch_size))
        seeds = [keys.seed_of(prompt, stream="image", seed=recipe.seed) for prompt in batch]
        for image in painter.generate(batch, seeds).images:
            sizes.append(len(encode(fit(image, config.size_px), config.jpeg_quality)))
        return len(batch)

    image_s = 0.0
    for member, share in zip(several.members, several.shares, strict=True):
        painter = build_text_to_image(member)
        image_s += share / _timed(partial(step, painter), seconds * share)[0]
    return 1 / image_s, float(np.mean(sizes))


def _train(recipe: Recipe, seconds: float) -> float:
    """Pairs a second of forward, backward and AdamW, on noise: what is in an image costs nothing more."""
    import torch

    from synthclip.models.build import build_model, open_clip_config

    shape = open_clip_config(recipe.model)["model_cfg"]
    device = cuda_or_cpu()
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.training.precision)
    model = build_model(recipe.model).to(device)
    optimiser = torch.optim.AdamW(model.parameters())
    pairs = min(recipe.training.batch_size, 256 if device.type == "cuda" else 32)
    size, length = shape["vision_cfg"]["image_size"], shape["text_cfg"]["context_length"]
    images = torch.randn(pairs, 3, size, size, device=device)
    tokens = torch.randint(1, shape["text_cfg"]["vocab_size"], (pairs, length), device=device)
    answers = torch.arange(pairs, device=device)

    def step() -> int:
        with torch.autocast(device.type, kind, enabled=kind is not None):
            image_BE = model.encode_image(images, normalize=True)
            text_BE = model.encode_text(tokens, normalize=True)
            logits_BB = model.logit_scale.exp() * image_BE @ text_BE.T
            loss = torch.nn.functional.cross_entropy(logits_BB, answers)
            loss = (loss + torch.nn.functional.cross_entropy(logits_BB.T, answers)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return pairs

    return _timed(step, seconds)[0]


def _timed(step: Callable[[], int], seconds: float) -> tuple[float, int]:
    """Items a second over at least `seconds`, the first step left out; and all items done."""
    total = step()
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        done += step()
    return done / (time.monotonic() - started), total + done
