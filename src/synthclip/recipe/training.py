"""The recipe's sections for training and evaluation."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from synthclip.recipe.section import Section, later, nearest, runtime

PAPER_MODEL = "synthclip-vitb16"
LossName = Literal["clip", "siglip", "multi-positive"]
LoggerName = Literal["tensorboard", "wandb", "trackio"]
ParallelName = Literal["ddp", "fsdp"]


class VisionConfig(Section):
    """The image tower, in open_clip's terms."""

    image_size_px: int = Field(224, ge=16)
    """Side of the pictures that the tower reads."""
    layers: int | tuple[int, int, int, int] = 12
    """One number: a ViT with that many layers. Four: a ResNet with that many blocks in each stage."""
    width: int = Field(768, ge=8)
    """Features inside the tower; of a ResNet, those of its first stage."""
    head_width: int = Field(64, ge=1)
    """Features of one attention head."""
    patch_size_px: int | None = 16
    """A ViT's patch; a ResNet has none."""
    timm: str | None = None
    """A timm model's name: it replaces `layers`, `width` and `patch_size_px`."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a ViT's patches left out in training (FLIP, arXiv 2212.00794)."""

    @model_validator(mode="after")
    def _is_buildable(self) -> "VisionConfig":
        if self.timm is None and isinstance(self.layers, int):
            if self.patch_size_px is None:
                raise ValueError("a ViT needs patch_size_px")
            if self.image_size_px % self.patch_size_px:
                raise ValueError(
                    f"image_size_px={self.image_size_px} is no multiple of patch_size_px={self.patch_size_px}"
                )
            if self.width % self.head_width:
                raise ValueError(f"width={self.width} is no multiple of head_width={self.head_width}")
        return self


class TextConfig(Section):
    """The text tower, in open_clip's terms."""

    context_length: int = Field(77, ge=4)
    """Tokens that are read of a text."""
    width: int = Field(512, ge=8)
    """Features inside the tower."""
    heads: int = Field(8, ge=1)
    """Attention heads of a layer."""
    layers: int = Field(12, ge=1)
    """Layers of the transformer."""

    @model_validator(mode="after")
    def _is_buildable(self) -> "TextConfig":
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        return self


class ModelConfig(Section):
    name: str | None = None
    """`synthclip-vitb16` is the paper's; None builds it from what follows."""
    embed_dim: int = Field(512, ge=2)
    """Features of the embedding that both towers end in."""
    vision: VisionConfig = VisionConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""
    logit_scale: float = math.log(1 / 0.07)
    """The logarithm of the inverse temperature at the start."""
    logit_bias: float | None = None
    """What the siglip loss adds to every logit, at the start; its paper begins with -10 and `logit_scale`
    2.3026."""

    @model_validator(mode="after")
    def _is_known(self) -> "ModelConfig":
        if self.name not in (None, PAPER_MODEL):
            raise ValueError(f"unknown model {self.name!r}; known: {PAPER_MODEL}, or leave the name out")
        return self

    @property
    def image_size_px(self) -> int:
        """The edge of the pictures that the image tower is made for."""
        return 224 if self.name == PAPER_MODEL else self.vision.image_size_px


OWN = ("run", "exchanged")
"""The kinds of sources whose images are the run's."""


class SourceConfig(Section):
    """Where training pairs come from; batches mix the sources by weight."""

    kind: Literal["run", "exchanged", "webdataset", "csv", "parquet"] = "run"
    """`run`: the run's own images. `exchanged`: those of `images.exchanged`, both of a pair in one batch.
    `webdataset`: tars of `KEY.jpg` and `KEY.txt`. `csv`: of
    image paths and captions. `parquet`: in Hugging Face's layout."""
    path: str | None = None
    """Files here or at a URL; `*` and WebDataset's braces (`{000..127}`) name several."""
    weight: float = Field(1.0, gt=0)
    """Share of a batch, compared with the weights of the other sources."""
    root: str | None = None
    """The folder of the images that a table names, which lie in it; the table's own unless given."""
    image_column: str | None = None
    """The column of image files (Parquet, `image` unless given) or of their paths (CSV, `image_path` or
    `filepath`)."""
    separator: str | None = Field(None, min_length=1, max_length=1)
    """Between the columns of a CSV; unless given the tab, comma, semicolon or bar that fits its header."""
    text_column: str | None = None
    """The column that holds captions (Parquet: `text` unless given, CSV: `caption` or `title`); in Parquet
    also lists of captions, of which each pass draws one, or classes where there is a template.
    WebDataset: the key of the caption in `KEY.json` where there is no `KEY.txt`; `caption` unless given."""
    template: str | None = None
    """The caption of a class, such as `a photo of a {}.`"""

    @model_validator(mode="after")
    def _has_a_path(self) -> "SourceConfig":
        if (self.kind in OWN) != (self.path is None):
            raise ValueError("a source of kind 'run' or 'exchanged' has no path, every other has one")
        return self


EvaluatorName = Literal["zero_shot", "retrieval", "linear_probe", "few_shot", "composition"]

HELDOUT = "heldout"
"""The run's own held-out captions and images, by the name that results give them."""

RECALL_AT = (1, 5, 10)
_RECALL = tuple(f"R@{k}" for k in RECALL_AT)
METRICS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "zero_shot": {"zero_shot": ("top1", "top5", "mean_per_class")},
    "retrieval": {"image_retrieval": _RECALL, "text_retrieval": _RECALL},
    "linear_probe": {"linear_probe": ("top1", "mean_per_class")},
    "few_shot": {"few_shot": ("top1",)},
    "composition": {"composition": ("text_score", "image_score", "group_score", "text_only_score")},
}
"""What each evaluator measures: metrics by task. A set may be too small for some of them."""


class InTrainingEvalConfig(Section):
    """Figures taken while the model is trained, of the averaged weights where there are such."""

    every_epochs: float | None = Field(None, gt=0)
    """Before the first step, every N epochs, and at the end; null disables."""
    suite: tuple[str, ...] = Field((HELDOUT,), min_length=1)
    """On what: `heldout` are the run's own captions and images (`evaluation` says how many, and the prompts);
    all others are data sets and suites as `synthclip eval --suite` names them."""
    data: str | None = None
    """The folder of the data sets, as `synthclip eval --data` names it."""
    evaluators: tuple[EvaluatorName, ...] = Field(("zero_shot", "retrieval"), min_length=1)
    """The tasks that each data set is put to, where it has what they take."""
    metric: str = "zero_shot/top1"
    """Chooses the best weights: `task/metric` of the held-out set, `set/task/metric` of a data set."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the run's model: those with the highest `metric`, the earliest of equals, or those
    after the last step."""

    @property
    def data_sets(self) -> tuple[str, ...]:
        """What `suite` names beside the held-out set."""
        return tuple(name for name in self.suite if name != HELDOUT)

    @field_validator("suite", mode="before")
    @classmethod
    def _with_commas(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_consistent(self) -> "InTrainingEvalConfig":
        if self.data_sets and self.data is None:
            raise ValueError(f"suite names {self.data_sets[0]!r}: data=ROOT must say where the data sets are")
        tasks = [item for evaluator in METRICS.values() for item in evaluator.items()]
        known = [f"{task}/{metric}" for task, metrics in tasks for metric in metrics]
        if not self.metric.endswith(tuple(known)):
            raise ValueError(f"unknown metric {self.metric!r}{nearest(self.metric, known)}")
        return self


class ResolutionConfig(Section):
    """Steps at a smaller picture size than the model's own."""

    image_size_px: int = Field(ge=16)
    """Side of the pictures during these steps."""
    share: float = Field(gt=0, lt=1)
    """Of all steps."""


class TeacherConfig(Section):
    """A model whose similarities are learnt beside the pairs (MobileCLIP, arXiv 2311.17049, Section 3)."""

    model: str = Field(min_length=1)
    """Whatever `synthclip.load_model` reads: a run, a folder, `NAME:TAG` of open_clip, `hf-hub:ORG/REPO`."""
    weight: float = Field(0.5, ge=0, le=1)
    """The teacher's part of the loss; `training.loss` has the rest."""


class TrainingConfig(Section):
    """The defaults are the paper's (arXiv 2402.01832, Section 4 and its code); `training: paper` in a recipe
    says so."""

    sources: tuple[SourceConfig, ...] = Field((SourceConfig(),), min_length=1)
    """The run's own images unless given: with others, real pictures say, in one batch by weight."""
    seed: int | None = later(None)
    """Of the first weights, the order and every draw of training; null: the recipe's seed."""
    share: float = later(1.0, gt=0, le=1)
    """Of the run's own captions, with all their images, drawn by content: a smaller share is a subset of a
    larger one."""
    epochs: float = Field(40, gt=0)
    """Passes over the first source."""
    batch_size: int = Field(4096, ge=2)
    """Pairs a step, over all processes."""
    lr: float = Field(5e-4, gt=0)
    """The highest learning rate, where the warm-up ends."""
    lr_start: float = Field(1e-6, ge=0)
    """Where the linear warm-up begins."""
    lr_end: float = Field(1e-5, ge=0)
    """Where the cosine ends."""
    warmup_epochs: float = Field(1, ge=0)
    """Length of the warm-up."""
    loss: LossName = "clip"
    """`multi-positive` counts all pairs of the same caption as positives."""
    mask_false_negatives: float | None = Field(None, gt=0, le=1)
    """Two pairs are not each other's negatives where they share a caption, or a concept that at most this
    share of all captions names. None: all are."""
    weight_decay: float = Field(0.5, ge=0)
    """AdamW's decay, of weight matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient's mean."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """AdamW's decay of the squared gradient's mean."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's term against a division by zero."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """RandomResizedCrop's range of area."""
    horizontal_flip: float = Field(0.0, ge=0, le=1)
    """The probability that a picture is mirrored, drawn anew each time. Captions that say left or right, and
    pictures of writing, are then wrong."""
    distortion: float = later(0.0, ge=0, le=1)
    """How strongly pictures are changed beyond their crop, drawn anew each time: colour, grey, blur, a
    rectangle erased (`training.augment.distort`); 1 is as strong as in SimCLR (arXiv 2002.05709)."""
    resolutions: tuple[ResolutionConfig, ...] = ()
    """Smaller pictures for the first steps, in ascending order; the steps that remain see the model's own
    size (progressive learning: EfficientNetV2, arXiv 2104.00298, Section 4; for CLIP: CLIPA, arXiv
    2305.07017). Position embeddings are interpolated to each size; the weights kept are for the own one."""
    sub_captions: int | None = Field(None, ge=1)
    """How many sentences of a caption are read each time, drawn anew (DreamLIP, arXiv 2403.17007). None: the
    whole caption."""
    text_masking: float = Field(0.0, ge=0, lt=1)
    """Share of a text's tokens left out, drawn anew each time (CLIPA, arXiv 2305.07017, random masking)."""
    concept_prompts: float = later(0.0, ge=0, le=1)
    """Share of pairs whose text is a short prompt of one of the caption's concepts in place of the caption,
    drawn anew each time. Beside it `mask_false_negatives` keeps two pairs of one concept from being each
    other's negatives."""
    concept_templates: tuple[str, ...] = later(("A {}.",), min_length=1)
    """The prompts of `concept_prompts`; `{}` is the concept."""
    hard_negatives: float = later(0.0, ge=0, le=1)
    """Share of pairs of which a copy of the text with a colour, a number, a size or a place changed, where it
    names one, is a further negative of all pictures of the batch (NegCLIP, arXiv 2210.01936, Section 4)."""
    teacher: TeacherConfig | None = later(None)
    """Learn the similarities of a larger model too; null: of none."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Arithmetic of the towers; weights and optimiser stay fp32. `fp16` scales the loss."""
    max_grad_norm: float | None = later(None, gt=0)
    """Longer gradients are scaled down to this norm; their norm is logged as `grad_norm`. None: neither."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """The model kept is an exponential moving average of the weights, with this decay a step."""
    init: str | None = None
    """Weights to start from: whatever `synthclip.load_model` reads, a checkpoint, a folder or a run say."""
    eval: InTrainingEvalConfig = InTrainingEvalConfig()
    """Evaluation during training."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Samples that cannot be used are skipped, up to this share of all."""
    on_bad_loss: Literal["stop", "skip"] = runtime("stop")
    """What follows a loss that is not finite: the training stops, the last good checkpoint kept, or that step
    changes nothing and is counted. Skipping makes the host wait for every step."""
    processes: int = runtime(1, ge=1)
    """Processes of each node, which share every batch; one a GPU where there are GPUs."""
    nodes: int = runtime(1, ge=1)
    """Machines to train on: of the Ray cluster with `engine.kind=ray`, of an allocation with `slurm`."""
    parallel: ParallelName = runtime("ddp")
    """What each process holds: `ddp` the whole model, `fsdp` a part of each weight, gradient and optimiser
    state, for models too large for one GPU."""
    micro_batch: int | None = runtime(None, ge=1)
    """Pairs that one process holds activations of at a time; the gradient stays that of the whole batch
    (GradCache, arXiv 2101.06983). None: all of its share."""
    compile: bool = runtime(False)
    """`torch.compile` the model: minutes at the start, faster steps on a GPU."""
    checkpoint_minutes: float = runtime(5.0, gt=0)
    """A checkpoint is written after this many minutes; at most these are lost by a kill."""
    checkpoint_steps: int | None = runtime(None, ge=1)
    """Checkpoints every N steps too; null disables."""
    keep_checkpoints: int = runtime(2, ge=2)
    """Two at least: the newest may hold weights that give no loss any more."""
    loggers: tuple[LoggerName, ...] = runtime(("tensorboard",))
    """Beside `metrics.jsonl`; TensorBoard's files stand in `logs` of the run."""
    data_threads: int | Literal["auto"] = runtime("auto")
    """Threads that decode pictures, of each process; `auto` for its share of the cores, 6 at most."""

    @model_validator(mode="before")
    @classmethod
    def _paper(cls, value: Any) -> Any:
        return {} if value == "paper" else value

    @field_validator("concept_templates")
    @classmethod
    def _with_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [template for template in templates if "{}" not in template]:
            raise ValueError(f"{bad[0]!r} has no {{}} for the concept")
        return templates

    @model_validator(mode="after")
    def _is_consistent(self) -> "TrainingConfig":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two shares of the area, the lower first")
        if self.batch_size % (self.nodes * self.processes):
            times = f"nodes={self.nodes} times " if self.nodes > 1 else ""
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of {times}processes={self.processes}"
            )
        sizes = [stage.image_size_px for stage in self.resolutions]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"resolutions: sizes {sizes} must ascend")
        if self.teacher is not None and self.sub_captions is not None:
            raise ValueError("teacher: its features are of whole captions: leave out sub_captions")
        if sum(stage.share for stage in self.resolutions) >= 1:
            raise ValueError(
                "resolutions: the shares must leave steps at the model's own size: below 1 in sum"
            )
        return self


class EvaluationConfig(Section):
    untrained: bool = later(False)
    """Evaluate a model of the same architecture with random weights too: what is above chance by itself."""
    templates: tuple[str, ...] = Field(("a photo of a {}.",), min_length=1)
    """Zero-shot prompts; `{}` is the class name. Their embeddings are averaged."""
    captions: int = Field(5000, ge=1)
    """Held-out captions at most, drawn by content. Recall depends on how many there are to choose
    from: 5,000 is the size of COCO's usual test split."""
    batch_size: int = runtime(256, ge=1)
    """Images or texts that are encoded at once."""


def check_resolutions(model: ModelConfig, training: TrainingConfig) -> None:
    """Raises ValueError where a size of `training.resolutions` is none of the model's image tower."""
    vision = VisionConfig() if model.name == PAPER_MODEL else model.vision
    for size in (stage.image_size_px for stage in training.resolutions):
        problem = None
        if size >= model.image_size_px:
            problem = f"is not below the model's {model.image_size_px}"
        elif vision.timm is None and isinstance(vision.layers, int) and size % (vision.patch_size_px or 1):
            problem = f"is no multiple of the model's patch_size_px={vision.patch_size_px}"
        elif vision.timm is None and not isinstance(vision.layers, int) and (size < 32 or size % 2):
            problem = "is odd or below 32, which a ResNet does not take"
        if problem:
            raise ValueError(f"training.resolutions: image_size_px={size} {problem}")
