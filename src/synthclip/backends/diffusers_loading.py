"""A pipeline of the library diffusers on its device: from the hub, a folder or a single file; parts from
elsewhere, weights quantised, memory saved."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthclip.backends import loading
from synthclip.backends.diffusers_config import Config
from synthclip.backends.single_files import is_local, repository_and_file, single_file
from synthclip.errors import SynthClipError, first_line, hub_errors, needs_extra
from synthclip.keys import digest
from synthclip.recipe.section import nearest


def load(config: Config) -> tuple[Any, str]:
    """The pipeline on its device, and its revision."""
    with needs_extra("diffusers", "text_to_image.backend=diffusers"):
        import torch

        from synthclip.models import default_device, diffusers, transformers
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    if config.quantize in ("int8", "nf4") and not torch.accelerator.is_available():
        raise SynthClipError(
            f"text_to_image.quantize: {config.quantize} is bitsandbytes', which needs a GPU: "
            "take torchao-int8"
        )
    device = str(default_device()) if config.device == "auto" else config.device
    dtype = getattr(torch, config.dtype)
    with loading(f"text_to_image.model: {config.model}"):
        whole = single_file(config.model)
        folder, revision = _fetch(config, whole)
        pipeline = _assembled(config, folder, whole, dtype)
        if config.adapter:
            repository, file = repository_and_file(config.adapter)
            pipeline.load_lora_weights(repository, **({"weight_name": file} if file else {}))
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
        if config.scheduler is not None or config.scheduler_values:
            pipeline.scheduler = _scheduler(config, pipeline)
        if config.offload is None:
            pipeline.to(device)
        elif config.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.enable_sequential_cpu_offload(device=device)
        if config.cache is not None:
            _cache(pipeline, config.cache)
    pipeline.set_progress_bar_config(disable=True)
    if config.compile:
        denoiser(pipeline).compile()
    return pipeline, revision


def denoiser(pipeline: Any) -> Any:
    """The model that is evaluated in every step."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None) or pipeline.decoder


def _cache(pipeline: Any, threshold: float) -> None:
    """Raise SynthClipError where this pipeline cannot use the first-block cache."""
    from synthclip.models import diffusers

    # Between its evaluations with and without the prompt a pipeline has to change caches.
    usable = "cache_context" in inspect.getsource(type(pipeline).__call__)
    try:
        if usable:
            denoiser(pipeline).enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
    except (AttributeError, IndexError, ValueError):
        usable = False
    if not usable:
        raise SynthClipError(
            f"text_to_image.cache: diffusers' {type(pipeline).__name__} cannot use it: leave it out"
        )


def _assembled(config: Config, folder: str, whole: Path | None, dtype: Any) -> Any:
    """The pipeline, on the CPU. `whole` is the model where it is a single file."""
    from synthclip.models import diffusers

    values = diffusers.DiffusionPipeline.load_config(folder)
    kind = _class(config, values)
    given: dict[str, Any] = {}
    if "safety_checker" in values and not config.safety_checker:
        given = {"safety_checker": None, "requires_safety_checker": False}
    if config.quantize is not None:
        given["quantization_config"] = _quantization(config.quantize, values, dtype)
    types = kind._get_signature_types()
    parts = dict(config.parts)
    if whole is not None and whole.suffix == ".gguf":
        parts["unet" if "unet" in values else "transformer"] = str(whole)
        whole = None
    for name, source in parts.items():
        if name not in types:
            raise SynthClipError(
                f"text_to_image.parts: {kind.__name__} has no part {name!r}{nearest(name, sorted(types))}"
            )
        given[name] = _part(name, source, values, types[name][0], folder, dtype)
    if whole is not None:
        return kind.from_single_file(str(whole), config=folder, dtype=dtype, **given)
    given |= {"dtype": dtype, "variant": config.variant}
    try:
        # It also finds the pipeline that paints from text in a folder that was saved for another task.
        return diffusers.AutoPipelineForText2Image.from_pretrained(folder, **given)
    except ValueError as error:
        if "AutoPipeline can't find" not in str(error):
            raise
    if "prompt" not in inspect.signature(kind.__call__).parameters:
        raise SynthClipError(f"text_to_image.model: {config.model}: {kind.__name__} paints no text")
    return diffusers.DiffusionPipeline.from_pretrained(folder, **given)


def _class(config: Config, values: Mapping[str, Any]) -> Any:
    """The pipeline's class. Raises SynthClipError where this diffusers is too old for it."""
    from synthclip.models import diffusers

    name = values["_class_name"]
    if not isinstance(name, str) or not hasattr(diffusers, name):
        by = values.get("_diffusers_version", "")
        raise SynthClipError(
            f"text_to_image.model: {config.model}: diffusers {diffusers.__version__} has no pipeline {name}"
            + (
                f", which diffusers {by} saved: pip install -U 'diffusers>={by.removesuffix('.dev0')}'"
                * bool(by)
            )
        )
    return getattr(diffusers, name)


def _part(name: str, source: str, values: Mapping[str, Any], kind: Any, folder: str, dtype: Any) -> Any:
    """A component from a repository, a folder or a file."""
    from synthclip.models import diffusers, transformers

    library, class_name = values.get(name) or ("", "")
    if library in ("diffusers", "transformers"):
        kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
    file = single_file(source)
    if file is None:
        given = {} if name.startswith(("tokenizer", "scheduler")) else {"dtype": dtype}
        return kind.from_pretrained(repository_and_file(source)[0], **given)
    given = {"config": folder, "subfolder": name, "dtype": dtype}
    if file.suffix == ".gguf":
        given["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    return kind.from_single_file(str(file), **given)


def _quantization(name: str, values: Mapping[str, Any], dtype: Any) -> Any:
    """For the denoiser and the text encoders; the decoder keeps its precision."""
    from synthclip.models import diffusers, transformers

    given: dict[str, Any]
    if name.startswith("torchao"):
        with needs_extra("quantize", f"text_to_image.quantize={name}"):
            from torchao import quantization
        kind = "TorchAoConfig"
        weights = "Float8WeightOnlyConfig" if name == "torchao-fp8" else "Int8WeightOnlyConfig"
        given = {"quant_type": getattr(quantization, weights)()}
    else:
        kind, given = "BitsAndBytesConfig", {"load_in_8bit": True}
        if name == "nf4":
            given = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    libraries = {"diffusers": diffusers, "transformers": transformers}
    return diffusers.PipelineQuantizationConfig(
        quant_mapping={
            part: getattr(libraries[value[0]], kind)(**given)
            for part, value in values.items()
            if part.startswith(("transformer", "unet", "text_encoder")) and value[0] in libraries
        }
    )


def _scheduler(config: Config, pipeline: Any) -> Any:
    from synthclip.models import diffusers

    name = config.scheduler or type(pipeline.scheduler).__name__
    known = [other for other in dir(diffusers) if other.endswith("Scheduler")]
    if name not in known:
        raise SynthClipError(f"text_to_image.scheduler: diffusers has no {name!r}{nearest(name, known)}")
    return getattr(diffusers, name).from_config(pipeline.scheduler.config, **config.scheduler_values)


def _fetch(config: Config, whole: Path | None) -> tuple[str, str]:
    """The folder with the pipeline's configuration, and a digest of the model's files; of a model of the
    hub, which it downloads, the commit. `whole` is the model where it is a single file."""
    from synthclip.models import diffusers

    if is_local(config.model):
        revision = digest(json.dumps(config.inputs(), sort_keys=True))[:12]
        folder = str(Path(config.model).expanduser())
        return (folder if whole is None else _base(config, whole)), revision
    if whole is not None:
        return _base(config, whole), _commit(whole.parent, config)
    without = dict.fromkeys([*config.parts, *([] if config.safety_checker else ["safety_checker"])])
    with hub_errors(config.model, "text_to_image.model: "):
        config.check()
        try:
            snapshot = diffusers.DiffusionPipeline.download(
                config.model, revision=config.revision, variant=config.variant, **without
            )
        except ValueError as error:  # of diffusers: a variant that the repository does not have, say
            raise SynthClipError(f"text_to_image.model: {config.model}: {first_line(error)}") from None
    return str(snapshot), _commit(Path(snapshot), config)


def _commit(snapshot: Path, config: Config) -> str:
    found = re.search(r"/snapshots/([0-9a-f]{40})", snapshot.as_posix())
    return found[1] if found else config.revision or "main"


def _base(config: Config, file: Path) -> str:
    """The folder with what a single file lacks: configuration, tokenizers, of GGUF all but the denoiser."""
    from synthclip.models import diffusers

    base, is_gguf = config.base, file.suffix == ".gguf"
    if base is None and is_gguf:
        raise SynthClipError(
            "text_to_image.base: a GGUF file holds the denoiser alone: give the repository or folder of the "
            "pipeline that it belongs to"
        )
    if base is None:
        from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

        base = str(
            fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]
        )
    if is_local(base):
        return str(Path(base).expanduser())
    with hub_errors(base, "text_to_image.base: "):
        if is_gguf:
            return str(diffusers.DiffusionPipeline.download(base, transformer=None, unet=None))
        from huggingface_hub import snapshot_download

        return str(snapshot_download(base, allow_patterns=["*.json", "*.txt", "*.model"]))
