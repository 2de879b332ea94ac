"""Several painters in one run: which paints what, what is said of each, and held-out captions painted by one
that training never sees."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_runs import CAPTIONS, make_images, recipe_of, selected

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.imagegen import Images
from synthclip.imagegen.painting import chosen_painter
from synthclip.imagegen.provenance import repaint
from synthclip.plan import make_plan
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.store import RunDirectory
from synthclip.training.flops import devices_here

TWO = "text_to_image=[{backend: compositor, size_px: 64, weight: 2}, {backend: compositor, size_px: 80}]"
UNSEEN = "images.heldout_painter={backend: compositor, size_px: 96}"


def several(*overrides: str) -> Recipe:
    return load_recipe("demo", [TWO, "images={size_px: 48, per_caption: 6}", *overrides])


def rows(run: RunDirectory, split: str) -> list[dict[str, object]]:
    sidecars = sorted((run.stage("images") / split).glob("*.parquet"))
    return [row for path in sidecars for row in schema.read_table(path).to_pylist()]


def about(run: RunDirectory, split: str) -> dict[str, dict[str, object]]:
    """What `KEY.json` says of each image."""
    found = {}
    for path in sorted((run.stage("images") / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    handle = tar.extractfile(name)
                    assert handle is not None
                    found[name.removesuffix(".json")] = json.load(handle)
    return found


def test_each_image_has_one_painter_that_its_metadata_names_and_that_paints_it_again(
    run: RunDirectory, tmp_path: Path
) -> None:
    recipe = several("images.captions_per_shard=4")
    make_images(run, recipe)
    said = about(run, "train")
    sizes = Counter(entry["text_to_image"]["size_px"] for entry in said.values())  # type: ignore[index]
    assert sizes.total() == 36
    assert 18 <= sizes[64] <= 30, "a painter of twice the weight paints about two images in three"
    by_caption: dict[object, set[object]] = {}
    for entry in said.values():
        by_caption.setdefault(entry["caption_id"], set()).add(entry["text_to_image"]["size_px"])  # type: ignore[index]
    assert all(len(found) == 2 for found in by_caption.values()), "both paint some of every caption's images"
    for size in (64, 80):
        key = next(key for key, entry in said.items() if entry["text_to_image"]["size_px"] == size)  # type: ignore[index]
        assert repaint(run.path, key).same
    other = selected(tmp_path / "other", CAPTIONS[:6], CAPTIONS[6:])
    make_images(other, several("images.captions_per_shard=1"))
    digests = {row["key"]: row["sha256"] for row in rows(run, "train")}
    assert {row["key"]: row["sha256"] for row in rows(other, "train")} == digests, "whatever the shards are"


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sets(st.integers(0, 4)),
)
def test_the_painter_is_one_that_can_draw_the_caption(
    caption: int, weights: list[float], variant: int, able: set[int]
) -> None:
    shares, able = [weight / sum(weights) for weight in weights], able & set(range(len(weights)))
    painter = chosen_painter(caption, variant, shares, able, 0)
    assert painter in (able or range(len(shares)))
    assert chosen_painter(caption, variant, shares, able, 0) == painter


@pytest.mark.parametrize(("able", "expected"), [((), (0.5, 0.3, 0.2)), ((1, 2), (0, 0.6, 0.4))])
def test_painters_paint_by_their_shares(able: tuple[int, ...], expected: tuple[float, ...]) -> None:
    drawn = Counter(chosen_painter(n, v, (0.5, 0.3, 0.2), able, 0) for n in range(400) for v in range(5))
    assert np.allclose([drawn[at] / 2000 for at in range(3)], expected, atol=0.03)


def test_one_painter_in_a_list_is_that_painter(run: RunDirectory) -> None:
    alone = recipe_of()
    listed = load_recipe(
        "demo",
        ["text_to_image=[{backend: compositor, size_px: 64}]", "images={size_px: 48, per_caption: 2}"],
    )
    assert listed == alone
    shards = [Images(recipe, run) for recipe in (alone, listed)]
    assert [shards[0].fingerprint(one) for one in shards[0].shards()] == [
        shards[1].fingerprint(one) for one in shards[1].shards()
    ]


def test_a_painter_kept_from_training_paints_the_held_out_captions_alone(run: RunDirectory) -> None:
    recipe = several("images.heldout_per_caption=2", UNSEEN)
    before, after = Images(several("images.heldout_per_caption=2"), run), Images(recipe, run)
    old = {one.name: before.fingerprint(one) for one in before.shards()}
    new = {one.name: after.fingerprint(one) for one in after.shards()}
    assert old.items() < new.items(), "what is there stays current when such a painter is added"
    make_images(run, recipe)
    unseen, heldout = rows(run, schema.HELDOUT_PAINTER), rows(run, "heldout")
    assert {row["text"] for row in unseen} == set(CAPTIONS[6:])
    assert len(unseen) == len(heldout) == 4
    assert not {row["key"] for row in unseen} & {row["key"] for row in heldout}
    said = about(run, schema.HELDOUT_PAINTER).values()
    assert {entry["text_to_image"]["size_px"] for entry in said} == {96}  # type: ignore[index]
    sizes = json.loads((run.stage("images") / schema.HELDOUT_PAINTER / "sizes.json").read_text())
    assert sum(sizes.values()) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text_to_image=[]"], r"text_to_image: must be a section of keys, or a list of one or more"),
        (["text_to_image=[{backend: compositor}, {backend: diffuser, model: x}]"], r"1: unknown backend"),
        (
            ["text_to_image=[{backend: compositor}, {backend: compositor}]"],
            r"painter 1 is an earlier one again",
        ),
        (["text_to_image=[{backend: compositor, weight: 0}, {backend: compositor, size_px: 64}]"], r"weight"),
        (["text_to_image=[{backend: compositor, size: 9}, {backend: compositor}]"], r"0.size: unknown key"),
        (
            ["images.heldout_painter={backend: compositor, size: 9}"],
            r"images.heldout_painter.*unknown key 'size'",
        ),
    ],
)
def test_a_wrong_list_of_painters_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(SynthClipError, match=message):
        load_recipe("demo", overrides)


def test_a_painter_that_is_missing_or_seen_in_training_is_named_before_anything_is_spent(
    run: RunDirectory,
) -> None:
    missing = "{backend: diffusers, model: local-dir:/nowhere/sd, dtype: float32}"
    recipe = load_recipe("demo", [f"text_to_image=[{{backend: compositor}}, {missing}]"])
    with pytest.raises(SynthClipError, match=r"text_to_image\.1: .*nowhere"):
        Images(recipe, run).check()
    with pytest.raises(SynthClipError, match=r"images\.heldout_painter: .*nowhere"):
        Images(load_recipe("demo", [f"images.heldout_painter={missing}"]), run).check()
    seen = "{backend: compositor, size_px: 64}"
    for painters in (seen, f"[{{backend: compositor, artist: noto}}, {seen}]"):
        with pytest.raises(SynthClipError, match=r"training sees it"):
            Images(several(f"images.heldout_painter={painters}"), run).check()


def test_code_among_several_painters_needs_trust(tmp_path: Path) -> None:
    recipe = tmp_path / "strange.yaml"
    loaded = several(UNSEEN).to_yaml()
    assert load_recipe(_saved(tmp_path, loaded)) == several(UNSEEN), "what is written out loads again"
    recipe.write_text(loaded.replace("backend: compositor", "backend: somebodys.painter"))
    with pytest.raises(SynthClipError) as error:
        load_recipe(recipe)
    assert {"text_to_image.0.backend", "text_to_image.1.backend", "images.heldout_painter.backend"} <= {
        line.split(": ")[1] for line in str(error.value).splitlines()
    }


def test_a_key_of_several_painters_is_set_in_each() -> None:
    two = "text_to_image=[{backend: compositor, size_px: 96}, {backend: compositor, artist: material}]"
    keys = ["text_to_image.size_px=128", "text_to_image.0.size_px=64"]
    large = load_recipe("demo", [two, *keys]).text_to_image
    assert [painter.size_px for painter in large.members] == [64, 128]  # type: ignore[attr-defined]
    noto = load_recipe("demo", [two, "text_to_image.artist=noto"]).text_to_image
    assert [painter.results()["artist"] for painter in noto.members] == ["noto", "noto"]


def _saved(folder: Path, text: str) -> Path:
    path = folder / "saved.yaml"
    path.write_text(text)
    return path


def test_a_plan_adds_up_what_each_painter_costs() -> None:
    def seconds(*overrides: str) -> float:
        recipe = load_recipe("demo", ["images={size_px: 48}", *overrides])
        plan = make_plan(recipe, devices_here(), concepts=100)
        return next(stage.device_s for stage in plan.stages if stage.stage == "images")

    small, large = (seconds(f"text_to_image={{backend: compositor, size_px: {size}}}") for size in (64, 128))
    both = seconds(
        "text_to_image=[{backend: compositor, size_px: 64, weight: 3}, {backend: compositor, size_px: 128}]"
    )
    assert both == pytest.approx(0.75 * small + 0.25 * large)
    for unseen in (
        UNSEEN,
        "images.heldout_painter=[{backend: compositor}, {backend: compositor, size_px: 96}]",
    ):
        assert seconds("text_to_image={backend: compositor, size_px: 64}", unseen) > small
