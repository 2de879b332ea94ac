"""How much arithmetic a CLIP does (FLOPs, two for a multiply-add), and how much a device does in a second."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from synthclip.errors import SynthClipError
from synthclip.keys import digest
from synthclip.recipe.section import nearest
from synthclip.recipe.training import ModelConfig, TrainingConfig
from synthclip.run.engine.local import query_gpus
from synthclip.run.threads import cores
from synthclip.samples.files import cache_folder
from synthclip.samples.remembered import recall, remember

if TYPE_CHECKING:
    from synthclip.models.build import LeanCLIP

PASSES_OF_A_STEP = 3
"""The arithmetic of a training step, in forward passes: the backward pass takes two (Kaplan et al., arXiv
2001.08361, section 2.1)."""

_COUNTED_BY = ("synthclip", "open_clip_torch", "timm", "torch")
"""The packages whose versions may change a count."""


def clip_pair(
    config: ModelConfig, tokens: int | None = None, image_size_px: int | None = None
) -> tuple[float, int]:
    """FLOPs of one image and its caption forward through a CLIP, and the parameters of the CLIP.

    The caption has `tokens` tokens (None: the whole context), the image is of `image_size_px` (None: the
    model's own size). Counted on the model itself, on torch's meta device, where nothing is computed.
    """
    size_px = image_size_px or config.image_size_px
    if tokens is None:
        flops, parameters = _remembered(config, size_px)
    else:
        flops, parameters = _counted(config, tokens, size_px)
    return float(flops), parameters


def teacher_pair(model: str) -> tuple[float, int] | None:
    """FLOPs of one image and its text forward through any model, and the width of its embedding; None where
    its architecture is not known before it is loaded, or none of ours."""
    import torch

    from synthclip.models.build import LeanCLIP
    from synthclip.models.load import known_architecture

    config = known_architecture(model)
    if config is None or "hf_model_name" in config["text_cfg"]:
        return None
    parts = {name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
    try:
        with torch.device("meta"):
            built = LeanCLIP({"model_cfg": parts, "preprocess_cfg": {}}).eval()
        size = config["vision_cfg"].get("image_size", 224)
        image = torch.empty(1, 3, size, size, device="meta")
        text = torch.zeros(1, built.context_length, dtype=torch.int64, device="meta")
        flops = _flops_of(lambda: (built.encode_image(image), built.encode_text(text)))
    except Exception:  # timm, open_clip and torch share no base class
        return None
    return float(flops), config["embed_dim"]


def _counted(config: ModelConfig, tokens: int | None, size_px: int) -> tuple[int, int]:
    model = _on_meta(config)
    tokens = tokens or model.architecture["model_cfg"]["text_cfg"]["context_length"]
    flops = _image_flops(config, size_px) + _text_flops(config, tokens)
    return flops, sum(weight.numel() for weight in model.parameters())


@functools.cache
def _remembered(config: ModelConfig, size_px: int) -> tuple[int, int]:
    """Counted with the whole context, once for all: a plan imports no model library for what is known."""
    memory, versions = cache_folder() / "flops", " ".join(map(_version, _COUNTED_BY))
    model = digest(config.model_dump_json(), str(size_px))
    known = recall(memory)
    by, found = known.get(model, ("", ""))
    if by != versions:
        found = " ".join(map(str, _counted(config, None, size_px)))
        remember(memory, {**known, model: (versions, found)})
    flops, parameters = map(int, found.split())
    return flops, parameters


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _on_meta(config: ModelConfig) -> "LeanCLIP":
    import torch

    from synthclip.models.build import build_model

    with torch.device("meta"):
        model = build_model(config)
    model.eval()  # in training, batch norm refuses one image of one position
    return model


@functools.cache
def _image_flops(config: ModelConfig, size_px: int) -> int:
    import torch

    image = torch.empty(1, 3, size_px, size_px, device="meta")
    return _flops_of(lambda: _on_meta(config).encode_image(image))


@functools.cache
def _text_flops(config: ModelConfig, tokens: int) -> int:
    import torch

    text = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    return _flops_of(lambda: _on_meta(config).encode_text(text))


def _flops_of(work: Callable[[], object]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def mean_pair(model: ModelConfig, training: TrainingConfig) -> float:
    """FLOPs forward of a pair with its whole context, on the average of the sizes that a training sees."""
    smaller = {stage.image_size_px: stage.share for stage in training.resolutions}
    parts = {**smaller, model.image_size_px: 1 - sum(smaller.values())}
    pair = sum(share * clip_pair(model, image_size_px=size)[0] for size, share in parts.items())
    return pair + _hard_negative(model, training)


def training_pair(model: ModelConfig, training: TrainingConfig, tokens: int, image_size_px: int) -> float:
    """FLOPs of a training step for one pair."""
    pair = clip_pair(model, tokens, image_size_px)[0]
    return PASSES_OF_A_STEP * (pair + _hard_negative(model, training, tokens))


def _hard_negative(model: ModelConfig, training: TrainingConfig, tokens: int | None = None) -> float:
    """FLOPs forward of the further text of a pair, where there is one."""
    if not training.hard_negatives:
        return 0.0
    context = _on_meta(model).architecture["model_cfg"]["text_cfg"]["context_length"]
    return float(_text_flops(model, tokens or context))


@dataclass(frozen=True)
class Device:
    """Peak dense FLOP/s of one device with 16-bit and 32-bit floats, and bytes/s that its memory yields, from
    its maker's data sheet."""

    name: str
    half_flops: float
    single_flops: float
    memory_bytes: float

    def peak(self, precision: str) -> float:
        """FLOP/s for a precision by any usual name: fp32, float32, fp16, bfloat16, …"""
        return self.single_flops if precision in ("fp32", "float32") else self.half_flops


@dataclass(frozen=True)
class Devices:
    device: Device
    count: int

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}"


# TFLOP/s with 16 and 32 bits, GB/s.
_PEAKS = {
    "A10": (125, 31.2, 600),
    "A100": (312, 19.5, 2039),
    "A6000": (155, 38.7, 768),
    "B200": (2250, 80, 8000),
    "H100": (989, 67, 3350),
    "H200": (989, 67, 4800),
    "L4": (121, 30.3, 300),
    "L40S": (362, 91.6, 864),
    "MI300X": (1307, 163, 5300),
    "RTX3090": (71, 35.6, 936),
    "RTX4090": (165, 82.6, 1008),
    "T4": (65, 8.1, 320),
    "V100": (125, 15.7, 900),
    # One core at 3 GHz with two 256-bit multiply-add units; the memory that one core alone can draw on.
    "cpu": (0.1, 0.1, 20),
}


def parse_devices(text: str) -> Devices:
    """`8xA100`, `A100`, or `16xcpu` for cores. Raises SynthClipError for a device that is not known."""
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?(\S+)", text.strip(), re.IGNORECASE)
    count = int(match[1] or 1) if match else 0
    if match is None or count < 1:
        raise SynthClipError(f"--devices {text!r}: expected a count and a name, such as 8xA100")
    by_lower = {name.lower(): name for name in _PEAKS}
    name = by_lower.get(match[2].lower())
    if name is None:
        raise SynthClipError(f"--devices: unknown device {match[2]!r}{nearest(match[2], sorted(_PEAKS))}")
    return Devices(_device(name), count)


def devices_here() -> Devices:
    """The GPUs of this machine that are known, else its cores."""
    listed = query_gpus("name")
    for name in sorted(_PEAKS, key=len, reverse=True):
        if listed and name in re.split(r"[\s-]", listed[0].replace("RTX ", "RTX")):
            return Devices(_device(name), len(listed))
    return Devices(_device("cpu"), cores())


def _device(name: str) -> Device:
    half, single, memory = _PEAKS[name]
    return Device(name, half * 1e12, single * 1e12, memory * 1e9)
