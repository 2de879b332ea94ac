"""Concept prompts in the place of captions, distorted pictures and clipped gradients: drawn by seed, epoch
and pair, the same after a stop, and nothing where they are off."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_runs import COLOURS, train, twin_runs, weights, with_training, write_heldout

from synthclip.errors import SynthClipError
from synthclip.models import open_clip
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.augment import DISTORTIONS, distort
from synthclip.training.job import build_trainer
from synthclip.training.loader import Batch


def batches(recipe: Recipe, run: RunDirectory, first: int = 0) -> list[Batch]:
    stage = Train(recipe, run)
    trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False)
    return list(trainer.loader.batches(first, 12))


def texts(found: list[Batch]) -> list[str]:
    ids = [row for batch in found for row in batch.tokens]
    words = [open_clip.decode(row[1 : int(row.argmax())]).strip() for row in ids]
    return [" ".join(text.split()) for text in words]


def test_a_share_of_the_texts_are_prompts_of_a_concept_of_their_pair(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    write_heldout(run, 6)
    recipe = with_training(tiny_recipe, concept_prompts=0.5, concept_templates=("one {}",))
    plain, drawn = texts(batches(tiny_recipe, run)), texts(batches(recipe, run))
    prompts = {f"one {colour}": colour for colour in COLOURS}
    kept = [text == whole for text, whole in zip(drawn, plain, strict=True)]
    assert all(
        same or prompts[text] in whole for same, text, whole in zip(kept, drawn, plain, strict=True)
    ), "a prompt names a concept of the bank that its own caption names"
    assert 60 < sum(kept) < 132
    assert kept[:96] != kept[96:], "every pass draws anew"
    assert texts(batches(recipe, run, first=9)) == drawn[-48:], "the same after a resume"


def test_a_share_of_the_texts_have_a_hard_negative(run: RunDirectory, tiny_recipe: Recipe) -> None:
    recipe = with_training(tiny_recipe, hard_negatives=0.5)
    plain, drawn = batches(tiny_recipe, run), batches(recipe, run)
    assert texts(drawn) == texts(plain)
    assert all(batch.edited is None for batch in plain)
    wrong = [batch.edited for batch in drawn if batch.edited is not None]
    assert len(wrong) == len(drawn)
    has = torch.cat([batch.any(dim=1) for batch in wrong])
    assert 0.3 < has.double().mean() < 0.7, "every caption of the run names a colour"
    said = texts(
        [
            Batch(batch.images, batch.edited, batch.text_ids, batch.concepts)
            for batch in drawn
            if batch.edited is not None
        ]
    )
    differ = [a.split() != b.split() for a, b in zip(said, texts(drawn), strict=True)]
    assert all(differ)
    again = batches(recipe, run, first=9)
    assert all(
        torch.equal(one.edited, other.edited)
        for one, other in zip(again, drawn[-len(again) :], strict=True)
        if one.edited is not None and other.edited is not None
    ), "the same after a resume"


def test_without_the_bank_concept_prompts_are_refused(run: RunDirectory, tiny_recipe: Recipe) -> None:
    with pytest.raises(SynthClipError, match=r"needs 'concepts', which is not there"):
        Train(with_training(tiny_recipe, concept_prompts=0.4), run).shards()
    with pytest.raises(SynthClipError, match=r"concept_templates: 'A dog' has no \{\} for the concept"):
        load_recipe("demo", ["training.concept_templates=[A dog]"])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), strength=st.floats(0.05, 1), size=st.integers(16, 72))
def test_a_distortion_follows_from_its_draws_and_grows_with_its_strength(
    seed: int, strength: float, size: int
) -> None:
    rng = np.random.default_rng(seed)
    picture = np.full((size, size, 3), (150, 110, 70), np.uint8) + rng.integers(
        0, 9, (size, size, 3), np.uint8
    )
    draws = rng.random(DISTORTIONS).tolist()
    draws[8] = 1.0  # no rectangle
    done = [picture.copy() for _ in range(3)]
    for image, how in zip(done, (strength, strength, 0.0), strict=True):
        distort(image, how, draws)
    assert np.array_equal(done[0], done[1])
    assert np.abs(done[2].astype(int) - picture).max() <= 2, "strength 0 changes nothing but rounding"


def test_each_part_of_a_distortion_does_what_it_says() -> None:
    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([x * 4, y * 4, 255 - x * 4], axis=-1).astype(np.uint8)

    def with_(**draws: float) -> np.ndarray:
        drawn = [0.5] * DISTORTIONS
        drawn[5] = drawn[6] = drawn[8] = 0.99
        for place, value in draws.items():
            drawn[int(place[1:])] = value
        image = picture.copy()
        distort(image, 1.0, drawn)
        return image

    assert np.abs(with_().astype(int) - picture).max() <= 1
    assert with_(_1=0.9).mean() > 1.3 * picture.mean()
    assert with_(_2=0.1).std() < 0.7 * picture.std()
    grey = with_(_5=0.0)
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    assert with_(_4=1.0)[..., 1].std() != pytest.approx(picture[..., 1].std(), rel=0.05)
    edges = np.zeros((64, 64, 3), np.uint8)
    edges[:, ::2] = 255
    blurred = edges.copy()
    distort(blurred, 1.0, [0.5] * 5 + [0.99, 0.0, 1.0, 0.99] + [0.5] * 7)
    assert blurred.std() < 0.9 * edges.std()
    hole = with_(_8=0.0, _9=1.0)
    assert 0.15 < (np.abs(hole.astype(int) - picture).max(axis=2) > 2).mean() < 0.22


def test_a_distorted_training_resumes_to_the_same_weights(tmp_path: Path, tiny_recipe: Recipe) -> None:
    recipe = with_training(
        tiny_recipe, distortion=0.7, concept_prompts=0.4, max_grad_norm=0.5, checkpoint_steps=5
    )
    disturbed, undisturbed = twin_runs(tmp_path)
    for run in (disturbed, undisturbed):
        write_heldout(run, 6)
    stage = Train(recipe, disturbed)
    figures: list[dict[str, float]] = []
    trainer = build_trainer(
        stage, stage.shards()[0], lambda rows, shown: figures.append(shown), lambda: len(figures) > 0
    )
    assert not trainer.fit()
    assert figures[0]["grad_norm"] > 0.5, "what is logged is the norm before it was clipped"
    train(recipe, disturbed)
    train(recipe, undisturbed)
    assert weights(disturbed) == weights(undisturbed)


def test_clipping_bounds_the_gradient(run: RunDirectory, tiny_recipe: Recipe) -> None:
    stage = Train(with_training(tiny_recipe, max_grad_norm=0.01), run)
    trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False)
    seen: list[float] = []

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        seen.append(float(torch.cat(grads).norm()))

    trainer.optimizer.register_step_pre_hook(watch)
    trainer.fit()
    assert len(seen) == 12
    assert max(seen) < 0.0101


def test_runs_made_before_these_values_existed_stay_current(run: RunDirectory, tiny_recipe: Recipe) -> None:
    write_heldout(run, 6)
    stage = Train(tiny_recipe, run)
    values = stage.values["training"]
    assert isinstance(values, dict)
    assert not {"distortion", "concept_prompts", "concept_templates", "max_grad_norm"} & values.keys()
    other = Train(with_training(tiny_recipe, concept_prompts=0.4), run)
    assert other.values["training"] == values | {"concept_prompts": 0.4}
