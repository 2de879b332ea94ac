"""From a recipe and a run to a trainer, in this process or in several that torchrun starts.

`torchrun … -m synthclip.training.job RUN` is one process of several that train one model, up to its last
checkpoint; `synthclip train RUN` then writes the model from it. The first process prints a line of JSON for
each report: `{"rows": 640, "figures": {"loss": 2.1, …}}`.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from synthclip import schema
from synthclip.errors import SynthClipError, first_line
from synthclip.keys import seed_of
from synthclip.models import open_clip
from synthclip.models.build import PREPROCESS_KEYS, LeanCLIP, build_model
from synthclip.recipe import Recipe, inspect_recipe
from synthclip.recipe.reference import entries
from synthclip.recipe.training import TrainingConfig
from synthclip.run.engine import Shard
from synthclip.run.engine.ray import in_ray, node_address, on_other_nodes
from synthclip.run.engine.worker import asked_to_stop
from synthclip.run.stage import Stage
from synthclip.run.store import RunDirectory
from synthclip.textgen.concepts import read_bank
from synthclip.training import Train, build_order, open_sources
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.flops import devices_here, training_pair
from synthclip.training.loader import BadSamples, Loader
from synthclip.training.logs import Logs
from synthclip.training.loop import Report, Trainer
from synthclip.training.parallel import Group, free_port, join
from synthclip.training.teacher import open_features
from synthclip.training.validation import Validation

_REPORT = "synthclip-train "
"""How a line of a process for its launcher begins."""
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def build_trainer(stage: Stage, shard: Shard, report: Report, stop_asked: Callable[[], bool]) -> Trainer:
    """A trainer for the train stage's shard. Under torchrun, one of the group's."""
    group, device = join()
    recipe, config = stage.recipe, stage.recipe.training
    if config.batch_size % group.world_size:
        raise SynthClipError(
            f"training.batch_size={config.batch_size} is no multiple of the {group.world_size} processes: "
            "change one of them"
        )
    sources = open_sources(recipe, stage.run, shard.payload["tables"])
    sizes = [len(source) for source in sources]
    bad_rows = {where: reason for source in sources for where, reason in source.bad_rows.items()}
    order = build_order(recipe, sizes)
    steps = max(1, int(config.epochs * order.steps_per_epoch))
    model = untrained(recipe)
    if config.loss == "siglip" and model.logit_bias is None:
        raise SynthClipError("training.loss=siglip needs a bias: set model.logit_bias=-10 and no model.name")
    _check_sizes(model.architecture, config)
    loader = Loader(
        config,
        model.architecture,
        sources,
        order,
        BadSamples(int(config.max_bad_share * sum(sizes)), bad_rows),
        steps=steps,
        seed=recipe.training_seed,
        rare=_rare_concepts(stage),
        concepts=read_bank(stage.run) if config.concept_prompts else (),
        teacher=None if config.teacher is None else open_features(recipe, stage.run, sizes),
        group=group,
        pin_memory=device.type == "cuda",
    )
    return Trainer(
        model=model,
        config=config,
        loader=loader,
        checkpoints=Checkpoints(stage.partial(shard), config.keep_checkpoints),
        device=device,
        steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        seed=recipe.training_seed,
        report=report,
        stop_asked=stop_asked,
        group=group,
        peak=_peak(recipe, group) if device.type == "cuda" else None,
        validate=_validation(stage, model, group),
        log=_logs(stage, shard) if group.rank == 0 else None,
    )


def untrained(recipe: Recipe) -> LeanCLIP:
    """The model as training begins with it."""
    torch.manual_seed(seed_of("weights", stream="init", seed=recipe.training_seed) >> 1)
    model = build_model(recipe.model)
    return model if recipe.training.init is None else _start_from(recipe.training.init, model)


def _logs(stage: Stage, shard: Shard) -> Logs:
    values = {entry.key: entry.value for entry in entries(stage.recipe) if not entry.holds_others}
    return Logs(stage.recipe.training.loggers, stage.run, stage.fingerprint(shard)[:12], values)


def _validation(stage: Stage, model: LeanCLIP, group: Group) -> Validation | None:
    if stage.recipe.training.eval.every_epochs is None:
        return None
    return Validation(stage.recipe, stage.run, model.architecture, group)


def _check_sizes(architecture: dict[str, Any], config: TrainingConfig) -> None:
    """Raises SynthClipError where the image tower cannot take one of the recipe's sizes: some of timm's."""
    vision = architecture["model_cfg"]["vision_cfg"]
    if not config.resolutions and "timm_model_name" not in vision:
        return
    sizes = {stage.image_size_px: "training.resolutions" for stage in config.resolutions}
    with torch.device("meta"), torch.no_grad():
        tower = LeanCLIP(architecture).eval()
        for size, setting in {vision["image_size"]: "model.vision.image_size_px", **sizes}.items():
            try:
                tower.encode_image(torch.empty(1, 3, size, size))
            except (AssertionError, RuntimeError) as error:
                raise SynthClipError(
                    f"{setting}: the image tower takes no pictures of {size} px "
                    f"({first_line(error)}): choose another size, or another tower"
                ) from None


def _peak(recipe: Recipe, group: Group) -> Callable[[int, int], float] | None:
    known = devices_here().device
    if known.name == "cpu":
        return None
    model, training = recipe.model, recipe.training
    flops = group.world_size * known.peak(training.precision)
    return lambda tokens, image_size_px: flops / training_pair(model, training, tokens, image_size_px)


def _start_from(init: str, model: LeanCLIP) -> LeanCLIP:
    """The model that `training.init` names, with all that its weights need beside them: activations, heads,
    normalisation, interpolation. Raises SynthClipError where it is not of the recipe's architecture, or
    computes what training does not."""
    from synthclip.models.load import open_model
    from synthclip.models.weights import differences

    given = open_model(init)
    state, wanted = given.model.state_dict(), model.state_dict()
    if "logit_bias" in wanted:  # a model of another loss has none
        state.setdefault("logit_bias", wanted["logit_bias"])
    misfit = differences(state, wanted)
    own = model.architecture["model_cfg"]
    size = given.config["vision_cfg"].get("image_size", 224)
    if not misfit and size != own["vision_cfg"]["image_size"]:
        misfit = f"it takes images of {size} px, not {own['vision_cfg']['image_size']}"
    if misfit:
        raise SynthClipError(
            f"training.init={init}: another architecture than the recipe's model: {misfit}: "
            "change model or training.init"
        )
    preprocess = {key: given.preprocess[key] for key in PREPROCESS_KEYS}
    model_cfg = {
        **given.config,
        "vision_cfg": {**given.config["vision_cfg"], "image_size": size},
        "text_cfg": {**given.config["text_cfg"], "context_length": given.model.context_length},
    }
    if own.get("init_logit_bias") is not None:
        model_cfg["init_logit_bias"] = own["init_logit_bias"]
    architecture = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    reason = None
    if preprocess["interpolation"] not in ("bilinear", "bicubic"):
        reason = f"its images are resized by {preprocess['interpolation']}"
    elif not isinstance(given.tokenizer, open_clip.SimpleTokenizer):
        reason = "its tokenizer is not CLIP's"
    else:
        try:
            model = LeanCLIP(architecture)
            model.load_state_dict(state)
            if not _same_features(given.model, model, size):
                reason = "its towers compute other features in training"
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            reason = first_line(error)[:200]
    if reason:
        raise SynthClipError(f"training.init={init}: cannot be trained further: {reason}")
    return model


@torch.no_grad()
def _same_features(one: Any, other: LeanCLIP, size: int) -> bool:
    """Whether two models give the same features, up to rounding, for an image and a text."""
    image = torch.linspace(-2, 2, 3 * size * size).sin().view(1, 3, size, size)
    text = torch.tensor([[49406, 320, 1929, 49407] + [0] * (one.context_length - 4)])
    pairs = [
        (one.encode_image(image), other.eval().encode_image(image)),
        (one.encode_text(text), other.encode_text(text)),
    ]
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max())) for a, b in pairs)


def _rare_concepts(stage: Stage) -> frozenset[int]:
    """The concepts of at most a given share of the selected captions; none where no masking is asked for."""
    share = stage.recipe.training.mask_false_negatives
    if share is None:
        return frozenset()
    path = stage.run.file("balance", "counts.parquet")
    try:
        counts = schema.read_table(path, columns=["concept_id", "selected"])
    except FileNotFoundError:
        raise SynthClipError(
            f"training.mask_false_negatives needs {path}, which is not there: run `synthclip balance`, "
            "or leave it out"
        ) from None
    captions = sum(manifest.rows for manifest in stage.run.manifests("balance"))
    pairs = zip(counts["concept_id"].to_pylist(), counts["selected"].to_pylist(), strict=True)
    return frozenset(concept for concept, selected in pairs if selected <= share * captions)


def torchrun(run: Path, nodes: int, processes: int, report: Report) -> None:
    """Train the recipe of a run with `processes` on each node, to the last step or until asked to stop."""
    workers = [f"--nproc-per-node={processes}", "-m", "synthclip.training.job", str(run)]
    if nodes == 1:
        _run(run, [*_TORCHRUN, "--standalone", *workers], report)
    elif int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) >= nodes:
        _run(run, [*_srun(nodes), *workers], report)
    elif in_ray():
        meet = [f"--nnodes={nodes}", f"--master-addr={node_address()}", f"--master-port={free_port()}"]
        commands = [[*_TORCHRUN, *meet, f"--node-rank={rank}", *workers] for rank in range(nodes)]
        with on_other_nodes(commands[1:], gpus=processes) as outputs:
            _run(run, commands[0], report, outputs)
    else:
        raise SynthClipError(
            f"training.nodes={nodes}: this machine is not in a SLURM allocation of that many nodes: set "
            "engine.kind to slurm or ray, or start torchrun on each node as `synthclip train --help` says"
        )


def _run(
    run: Path, command: Sequence[str], report: Report, elsewhere: Callable[[], Iterable[str]] = tuple
) -> None:
    """Run a command that starts processes and prints their reports; `elsewhere` gives what others printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    error = None
    with process, asked_to_stop(then=process.terminate) as stop:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(_REPORT):
                sys.stderr.write(line)
                continue
            said = json.loads(line.removeprefix(_REPORT))
            error = said.get("error", error)
            if "rows" in said:
                report(said["rows"], said["figures"])
    for line in "".join(elsewhere()).splitlines():
        if line.startswith(_REPORT):
            error = error or json.loads(line.removeprefix(_REPORT)).get("error")
    if error:
        raise SynthClipError(error)
    if process.returncode and not stop():
        raise SynthClipError(
            f"{run}: a training process died (torchrun ended with code {process.returncode}; its "
            "messages stand above): the same command resumes from the last checkpoint"
        )


def _srun(nodes: int) -> list[str]:
    """One torchrun on each node of the allocation that this process is in; they meet on this machine."""
    # This process holds CPUs and GPUs of the first node: the new step shares them.
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}", "--kill-on-bad-exit=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{free_port()}"]
    return [*srun, *_TORCHRUN, f"--nnodes={nodes}", *meet]


def main(path: Path) -> None:
    stage = Train(inspect_recipe(path), RunDirectory(path))

    def report(rows: int, figures: dict[str, float]) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(_REPORT + json.dumps({"rows": rows, "figures": figures}), flush=True)

    try:
        with asked_to_stop() as stop:
            build_trainer(stage, stage.shards()[0], report, stop).fit()
    except SynthClipError as error:
        print(_REPORT + json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
