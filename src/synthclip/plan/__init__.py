"""Estimates a run before it starts: tokens, images, device-hours, time, disk and money."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import identity
from synthclip.evaluation.suites import plan_of_names
from synthclip.imagegen.vision import expected
from synthclip.models.load import refuse_missing
from synthclip.plan.diffusion import diffusion_image
from synthclip.plan.language import gguf_bytes, llm_parameters, transformer
from synthclip.plan.volumes import Volumes, volumes_of, volumes_of_seeds
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.imagegen import TAR_BYTES
from synthclip.recipe.training import HELDOUT
from synthclip.samples import files
from synthclip.textgen.spending import caption_tokens, cost_of, rounded
from synthclip.training.flops import PASSES_OF_A_STEP, Devices, clip_pair, mean_pair, teacher_pair

_LLM_UTILISATION = 0.2
_MEMORY_UTILISATION = 0.5
_STATE_READS = 2
"""Passes over the weights before llama.cpp writes: the cached prompt's last token, and what follows it."""
_DIFFUSION_UTILISATION = 0.3
_TRAINING_UTILISATION = 0.3
_KEPT = 0.9
_COMPOSITOR_PIXELS_PER_S = 125 * 224**2
_MATCHED_PER_S = 100_000
_CAPTION_BYTES, _MATCH_BYTES, _SELECTED_BYTES = 90, 16, 70
_CHECKPOINT_BYTES = 12
"""Of each parameter: the weight and AdamW's two moments."""
_FEATURE_BYTES = 2
"""Of each number of a teacher's features: float16."""
_DAY_S = 86_400.0
"""Within which a batch endpoint answers."""
_START_S = 5.0
"""Until the workers of a stage have imported their libraries and loaded a small model."""
_NOT_COUNTED = "the work of a server whose model is not known is not counted"


@dataclass(frozen=True)
class Rates:
    """What was measured on one device; None where it was not."""

    captions_per_s: float | None = None
    """Captions asked for."""
    kept: float | None = None
    """Share of the captions that cleaning keeps."""
    images_per_s: float | None = None
    image_bytes: float | None = None
    pairs_per_s: float | None = None
    """Pairs that training takes."""


@dataclass(frozen=True)
class StageCost:
    """`device_s` is summed over devices; a stage that needs none has the wall time of this machine."""

    stage: str
    makes: str
    device_s: float
    wall_s: float
    disk_bytes: float
    basis: str
    money: float | None = None
    """What a service asks, beside the devices."""


@dataclass(frozen=True)
class Plan:
    devices: Devices
    stages: tuple[StageCost, ...]
    assumptions: tuple[str, ...]
    volumes: Volumes
    pairs: float
    """That training sees in one epoch."""
    own_pairs: float
    """Of them those of the run's own captions."""
    epochs: float
    notes: tuple[str, ...] = ()
    """What the user should know before the run begins."""
    price: float | None = None
    """Of an hour of one device."""

    @property
    def device_hours(self) -> float:
        return sum(stage.device_s for stage in self.stages) / 3600

    @property
    def wall_s(self) -> float:
        return sum(stage.wall_s for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        return sum(stage.disk_bytes for stage in self.stages)

    def cost(self, stage: StageCost) -> float | None:
        """Of the devices and of services; None where neither has a price."""
        if self.price is None:
            return stage.money
        return stage.device_s / 3600 * self.price + (stage.money or 0.0)

    @property
    def costs(self) -> float | None:
        """Of all stages."""
        known = [cost for stage in self.stages if (cost := self.cost(stage)) is not None]
        return sum(known) if known else None


def make_plan(
    recipe: Recipe,
    devices: Devices,
    *,
    concepts: int | None = None,
    llm_params: float | None = None,
    image_flops: float | None = None,
    price: float | None = None,
    rates: Rates | None = None,
) -> Plan:
    """What the recipe will take on the devices. A rate that was measured goes before an estimate.

    `concepts` stands in for a bank whose files are not here; `llm_params` and `image_flops` (of one image)
    for models that are not known. Raises SynthClipError where one of them is needed, or where the recipe
    cannot work.
    """
    seeds = recipe.images.seeds  # then no caption is written or selected
    known = (0 if seeds else count_concepts(recipe)) if concepts is None else concepts
    planner = _Planner(recipe, devices, rates or Rates(), known)
    _refuse_impossible(recipe, planner.volumes, planner.pairs)
    stages = (
        *(() if seeds else (planner.captions(llm_params), planner.match_and_balance())),
        planner.images(image_flops),
        *planner.teacher(),
        *planner.train_and_evaluate(),
    )
    painter, assumed = recipe.text_to_image, tuple(planner.assumed)
    notes = () if recipe.images.imported is not None else tuple(painter.notes())
    pairs, own, epochs = planner.pairs, planner.own_pairs, recipe.training.epochs
    return Plan(devices, stages, assumed, planner.volumes, pairs, own, epochs, notes, price)


def _refuse_impossible(recipe: Recipe, volumes: Volumes, pairs: float) -> None:
    """Raise SynthClipError for what would stop the run only after its captions and images are paid for."""
    config = recipe.training
    if not volumes.selected:
        raise SynthClipError(
            f"no caption would be selected of {volumes.kept:,} kept: raise balance.t or balance.target"
        )
    if config.sources[0].kind == "run" and round(pairs) < config.batch_size:
        raise SynthClipError(
            f"training.batch_size={config.batch_size} is more than the {round(pairs):,} images "
            "expected: lower it, or raise captions.per_concept or images.per_caption"
        )
    for source in config.sources:
        if source.path is not None:
            files.expand(source.path)
    if config.init is not None:
        refuse_missing(config.init, "training.init")
    if config.teacher is not None:
        refuse_missing(config.teacher.model, "training.teacher.model")
    if config.eval.every_epochs is not None:
        if HELDOUT in config.eval.suite and not volumes.heldout_images:
            raise SynthClipError(
                "training.eval.suite names the held-out set, but no image would be held out: raise "
                "balance.heldout, or leave out training.eval.every_epochs"
            )
        for name in plan_of_names(config.eval.data_sets, config.eval.evaluators):
            identity(name, Path(config.eval.data or "").expanduser())


def count_concepts(recipe: Recipe) -> int:
    """The size of the bank. Raises SynthClipError where a source's file is not here."""
    from synthclip.textgen.concepts import bank, refuse_unspaced

    try:
        concepts = [text for text, _ in bank(recipe.concepts)]
    except SynthClipError as error:
        raise SynthClipError(f"{error}, or give --concepts N") from None
    if recipe.captions.imported is None:
        refuse_unspaced(concepts)
    return len(concepts)


class _Planner:
    """Goes through the stages and gathers what was assumed on the way."""

    def __init__(self, recipe: Recipe, devices: Devices, rates: Rates, concepts: int) -> None:
        self._recipe, self._devices, self._rates = recipe, devices, rates
        kept = _KEPT if rates.kept is None else rates.kept
        self.assumed = [f"wall time: {_START_S:.0f} s a stage until its workers are ready"]
        if recipe.images.seeds is not None:
            self.volumes = volumes_of_seeds(recipe.images.seeds)
            return
        self.volumes = volumes_of(recipe, concepts, kept)
        self.assumed += [
            f"cleaning keeps {kept:.0%} of the captions ({'assumed' if rates.kept is None else 'measured'})",
            "a caption names its own concept and no other; where it names more, balancing keeps more",
        ]

    @property
    def pairs(self) -> float:
        """That training sees in one epoch, a pass over the first source; those of other sources included."""
        weights = [source.weight for source in self._recipe.training.sources]
        return self.own_pairs * sum(weights) / weights[0]

    @property
    def own_pairs(self) -> float:
        """Of them those of the run's own captions."""
        return self._recipe.training.share * self.volumes.train_images

    def captions(self, llm_params: float | None) -> StageCost:
        recipe, asked = self._recipe, self.volumes.asked
        tokens = caption_tokens(recipe, asked)
        read, written = tokens["read"] / asked, tokens["written"] / asked
        prompt = read * recipe.captions.per_request
        each = (
            f"captions: {written:.0f} tokens each after a prompt of {prompt:.0f} for "
            f"{recipe.captions.per_request}"
        )
        makes = f"{rounded(asked)} captions, {rounded(asked * written)} tokens"
        disk = asked * _CAPTION_BYTES
        money = cost_of(recipe.llm, tokens)
        if money is not None:
            self.assumed.append(
                f"{each}, at llm.prices; thinking would come on top; the service's devices and its time are "
                "not counted"
            )
            wall_s = _DAY_S if getattr(recipe.llm, "batch", False) else _START_S
            return StageCost("captions", makes, 0.0, wall_s, disk, "prices", money)
        if self._rates.captions_per_s:
            return self._stage("captions", makes, asked / self._rates.captions_per_s, disk, "measured")
        if recipe.llm.backend == "llamacpp":
            return self._by_memory(makes, asked, written, gguf_bytes(recipe, llm_params), disk)
        try:
            params = llm_params or llm_parameters(recipe.llm)
        except SynthClipError:
            if not _is_served(recipe.llm):
                raise
            self.assumed.append(
                f"{each}; {_NOT_COUNTED}: --llm-params or --probe counts it, llm.prices its money"
            )
            return StageCost("captions", makes, 0.0, _START_S, disk, "not counted")
        flops = asked * transformer(params, read + written)
        self.assumed.append(
            f"{each}; {params / 1e9:.3g}B parameters at {_LLM_UTILISATION:.0%} of the peak, as of vLLM with "
            "many prompts at once"
        )
        return self._by_flops("captions", makes, flops, "float16", _LLM_UTILISATION, disk)

    def _by_memory(
        self, makes: str, captions: float, written: float, weights: float, disk: float
    ) -> StageCost:
        """Prompt after prompt, a token costs one pass over the weights, which memory bounds."""
        rate = self._devices.device.memory_bytes * _MEMORY_UTILISATION
        self.assumed.append(
            f"captions: {written:.0f} tokens each, one prompt at a time, its beginning cached; each token "
            f"reads {weights / 1e9:.3g} GB of weights at {rate / 1e9:.3g} GB/s, "
            f"{_MEMORY_UTILISATION:.0%} of the peak"
        )
        device_s = captions * (written + _STATE_READS) * weights / rate
        return self._stage("captions", makes, device_s, disk, "estimate")

    def match_and_balance(self) -> StageCost:
        kept, selected = self.volumes.kept, self.volumes.selected
        disk = kept * _MATCH_BYTES + selected * _SELECTED_BYTES
        makes = f"{rounded(selected)} captions selected"
        self.assumed.append(f"matching: {rounded(_MATCHED_PER_S)} captions/s on one core of this machine")
        return StageCost("match, balance", makes, 0.0, kept / _MATCHED_PER_S, disk, "estimate")

    def images(self, image_flops: float | None) -> StageCost:
        recipe = self._recipe
        count = self.volumes.images
        size, rate = recipe.images.size_px, self._rates.images_per_s
        jpeg = self._rates.image_bytes or recipe.images.jpeg_bytes
        disk = count * (jpeg + TAR_BYTES)
        makes = f"{rounded(count)} images of {size} px"
        if self._rates.image_bytes is None:
            self.assumed.append(
                f"images: {jpeg / 1e3:.0f} kB as JPEG of quality {recipe.images.jpeg_quality}"
            )
        if rate:
            device_s, basis = count / rate, "measured"
        else:
            device_s = sum(images * self._image_s(one, image_flops) for one, images in self._painters())
            basis = "estimate" if device_s else "not counted"
        looked, money = self._vision()
        return replace(self._stage("images", makes + looked, device_s, disk, basis), money=money)

    def _vision(self) -> tuple[str, float | None]:
        """What the vision model is asked, in words, and what that costs where it has prices."""
        images, volumes = self._recipe.images, self.volumes
        if images.vision is None:
            return "", None
        found = expected(images.vision, images.size_px, volumes.images, volumes.train_images)
        read, written = (rounded(found.tokens[name]) for name in ("read", "written"))
        money = cost_of(images.vision.llm, found.tokens)
        priced = "with no prices" if money is None else "at images.vision.llm.prices"
        self._assume(
            f"vision: {rounded(found.requests)} requests, {read} tokens read, {written} written, {priced}; "
            "what is painted again is asked again on top; the server's devices and its time are not counted"
        )
        return f", {rounded(found.requests)} vision requests", money

    def _painters(self) -> list[tuple[BackendConfig, float]]:
        """Each text-to-image model, and how many images it paints."""
        recipe, unseen = self._recipe, self.volumes.unseen_images
        parts = [(recipe.text_to_image, self.volumes.images - unseen)]
        if recipe.images.heldout_painter:
            parts.append((recipe.images.heldout_painter, unseen))
        return [
            (one, images * share)
            for painter, images in parts
            for one, share in zip(painter.members, painter.shares, strict=True)
        ]

    def _image_s(self, painter: BackendConfig, image_flops: float | None) -> float:
        """Device-seconds of one image."""
        if painter.backend == "compositor":
            size = getattr(painter, "size_px", self._recipe.images.size_px)
            rate = _COMPOSITOR_PIXELS_PER_S / size**2
            self._assume(f"images: {rate:.0f} a second and core, composed of glyphs on the CPU")
            return 1 / rate
        try:
            flops = image_flops or diffusion_image(painter)
        except SynthClipError:
            if not _is_served(painter):
                raise
            self._assume(f"images: {_NOT_COUNTED}: --image-flops or --probe counts it")
            return 0.0
        precision = getattr(painter, "dtype", "float16")
        self._assume(
            f"images: {flops / 1e12:.3g} TFLOP each at {_DIFFUSION_UTILISATION:.0%} of the peak in "
            f"{precision}: the share that gives the paper's 0.9 s an image on an A100"
        )
        return flops / (self._devices.device.peak(precision) * _DIFFUSION_UTILISATION)

    def _assume(self, text: str) -> None:
        if text not in self.assumed:
            self.assumed.append(text)

    def teacher(self) -> Iterator[StageCost]:
        """The teacher's pass over all that training sees in an epoch, where there is a teacher."""
        config = self._recipe.training.teacher
        if config is None:
            return
        makes, known = f"features of {rounded(self.pairs)} pairs", teacher_pair(config.model)
        if known is None:
            self._assume("teacher: its architecture is not known before it is loaded, so it is not counted")
            yield StageCost("teacher", makes, 0.0, _START_S, 0.0, "not counted")
            return
        forward, width = known
        disk = self.pairs * 2 * width * _FEATURE_BYTES
        yield self._by_flops("teacher", makes, self.pairs * forward, "fp32", _TRAINING_UTILISATION, disk)

    def train_and_evaluate(self) -> tuple[StageCost, StageCost]:
        recipe, volumes = self._recipe, self.volumes
        pairs = recipe.training.epochs * self.pairs
        precision = recipe.training.precision
        forward, params = clip_pair(recipe.model)
        disk = params * (4 + _CHECKPOINT_BYTES * recipe.training.keep_checkpoints)
        makes = f"{rounded(pairs)} pairs seen"
        seen = mean_pair(recipe.model, recipe.training)
        judged = self._by_flops(
            "eval",
            f"{rounded(volumes.judged_images)} images judged",
            volumes.judged_images * forward,
            precision,
            _TRAINING_UTILISATION,
            0.0,
        )
        if self._rates.pairs_per_s:
            return self._stage("train", makes, pairs / self._rates.pairs_per_s, disk, "measured"), judged
        self.assumed.append(
            f"training: {seen / 1e9:.3g} GFLOP forward a pair, three times that with backward, at "
            f"{_TRAINING_UTILISATION:.0%} of the peak in {precision}"
        )
        flops = pairs * seen * PASSES_OF_A_STEP
        return self._by_flops("train", makes, flops, precision, _TRAINING_UTILISATION, disk), judged

    def _by_flops(
        self, stage: str, makes: str, flops: float, precision: str, utilisation: float, disk: float
    ) -> StageCost:
        device_s = flops / (self._devices.device.peak(precision) * utilisation)
        return self._stage(stage, makes, device_s, disk, "estimate")

    def _stage(self, stage: str, makes: str, device_s: float, disk: float, basis: str) -> StageCost:
        return StageCost(stage, makes, device_s, device_s / self._devices.count + _START_S, disk, basis)


def _is_served(config: BackendConfig) -> bool:
    """Whether the model runs on a server, which may be elsewhere."""
    return hasattr(config, "base_url")
