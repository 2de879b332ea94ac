"""The compositor: what it reads in a caption, where it puts it, what it paints."""

from collections import Counter
from importlib import resources
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthclip_compositor import Artist, Config, build
from synthclip_compositor.artists import STYLES
from synthclip_compositor.language import Relation, Scene, Thing, codes, read, vocabulary
from synthclip_compositor.painter import Painter, Piece, Rasters, place


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(64)


def pieces(caption: str, seed: int = 0) -> list[Piece]:
    return place(read(caption), False, lambda glyph: 1.0, np.random.default_rng(seed))


def bank() -> list[str]:
    text = (resources.files("synthclip.textgen") / "nouns.txt").read_text(encoding="utf-8")
    return text.splitlines()


def test_every_noun_of_the_bundled_bank_has_a_glyph_of_its_own() -> None:
    words = vocabulary()
    glyphs = [words[tuple(noun.lower().split())].glyph for noun in bank()]
    assert max(Counter(codes()[glyph] for glyph in glyphs).values()) == 1


def test_every_glyph_of_the_bank_can_be_drawn_and_no_two_look_the_same() -> None:
    rasters = Rasters(32)
    seen = set()
    for noun in bank():
        raster = rasters.get(vocabulary()[tuple(noun.lower().split())].glyph, 32)
        assert max(raster.shape[:2]) == 32
        assert (raster[..., 3] > 0).mean() > 0.1, noun
        seen.add(raster.tobytes())
    assert len(seen) == len(bank())


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("A dog.", [Thing("dog")]),
        ("Two small red dogs run.", [Thing("dog", 2, "red", 0.75)]),
        ("Several penguins", [Thing("penguin", None)]),
        ("a flock of black birds", [Thing("bird", None, "black")]),
        ("A huge elephant and three mice", [Thing("elephant", 1, None, 1.35), Thing("mouse", 3)]),
        ("An orange on a blue plate", [Thing("orange"), Thing("plate", 1, "blue")]),
        ("an orange cat", [Thing("cat", 1, "orange")]),
        ("The car is red.", [Thing("car", 1, "red")]),
        ("The fire truck is parked.", [Thing("fire truck")]),
        ("A Christmas tree glows.", [Thing("Christmas tree")]),
        ("Wolves howl.", [Thing("wolf", None)]),
        ("A man in red holds a dog", [Thing("man"), Thing("dog")]),
        ("A dog and another dog", [Thing("dog")]),
        ("Justice is blind.", []),
        ("", []),
    ],
)
def test_it_finds_the_things_and_what_is_said_of_them(caption: str, things: list[Thing]) -> None:
    assert list(read(caption).things) == things


@pytest.mark.parametrize(
    ("caption", "relations"),
    [
        ("A cat on a sofa", [Relation(0, "on", 1)]),
        ("A cat next to a sofa", [Relation(0, "beside", 1)]),
        ("A dog under a tree", [Relation(0, "under", 1)]),
        ("A dog in front of a church", [Relation(0, "front", 1)]),
        ("A dog to the left of a car", [Relation(0, "left", 1)]),
        ("A cat between a chair and a vase", [Relation(0, "between", 1), Relation(0, "between", 2)]),
        ("A kite above a castle behind a fountain", [Relation(0, "above", 1), Relation(1, "behind", 2)]),
    ],
)
def test_it_reads_how_things_stand_to_each_other(caption: str, relations: list[Relation]) -> None:
    assert list(read(caption).relations) == relations


@pytest.mark.parametrize(
    ("caption", "setting", "time", "weather"),
    [
        ("A crab on a sunny beach", "beach", "day", "clear"),
        ("A wolf in the forest at night", "forest", "night", None),
        ("A bus on a city street in the rain", "city", None, "rain"),
        ("A ship at sunset in a stormy sea", "sea", "dusk", "storm"),
        ("A cup on a desk", "table", None, None),
        ("A dog", None, None, None),
    ],
)
def test_it_reads_where_and_when(
    caption: str, setting: str | None, time: str | None, weather: str | None
) -> None:
    scene = read(caption)
    assert (scene.setting, scene.time, scene.weather) == (setting, time, weather)


@pytest.mark.parametrize("seed", range(8))
def test_places_hold_in_the_picture(seed: int) -> None:
    def where(caption: str) -> tuple[Piece, Piece]:
        drawn = {piece.glyph: piece for piece in pieces(caption, seed)}
        first, second = read(caption).things
        return drawn[first.glyph], drawn[second.glyph]

    cat, sofa = where("a cat on a sofa")
    assert cat.base < sofa.base
    cat, sofa = where("a cat under a sofa")
    assert cat.base > sofa.base
    cat, sofa = where("a cat to the left of a sofa")
    assert cat.x < sofa.x
    cat, sofa = where("a cat to the right of a sofa")
    assert cat.x > sofa.x
    cat, sofa = where("a cat behind a sofa")
    assert cat.depth < sofa.depth
    cat, sofa = where("a cat in front of a sofa")
    assert cat.depth > sofa.depth
    assert len(pieces("three cats", seed)) == 3


@pytest.mark.parametrize("noun", ["dog", "two cats", "three birds", "a lemon and a key"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_painted_is_large_enough_to_be_recognised(noun: str, seed: int) -> None:
    for piece in pieces(noun, seed):
        assert 0.25 <= piece.side <= 0.9
        assert 0 <= piece.base - piece.side / 2 <= 1
        assert 0 <= piece.x <= 1


def test_colour_shows(painter: Painter) -> None:
    def cast(colour: str) -> np.ndarray:
        pictures = [painter.paint(f"a {colour} sofa", seed).astype(float) for seed in range(12)]
        return np.asarray(np.mean([picture[16:48, 16:48].mean((0, 1)) for picture in pictures], axis=0))

    red, blue = cast("red"), cast("blue")
    assert red[0] - blue[0] > 30
    assert blue[2] - red[2] > 30


def test_night_is_darker_and_snow_brighter(painter: Painter) -> None:
    def brightness(caption: str) -> float:
        return float(np.mean([painter.paint(caption, seed).mean() for seed in range(8)]))

    assert brightness("a field at night") + 40 < brightness("a field")
    assert brightness("a snowy field") > brightness("a field")


def test_seeds_vary_the_picture_and_nothing_else_does(painter: Painter) -> None:
    caption = "A giraffe beside a palm tree."
    first = painter.paint(caption, 5)
    painter.paint("Something else entirely.", 6)
    np.testing.assert_array_equal(first, painter.paint(caption, 5))
    np.testing.assert_array_equal(first, Painter(64).paint(caption, 5))
    assert (first != painter.paint(caption, 6)).mean() > 0.3


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "dogs",
                    "a",
                    "two",
                    "of",
                    "red",
                    "tiny",
                    "on",
                    "under",
                    "between",
                    "and",
                    "in",
                    "sofa",
                    ",",
                    "cat",
                    "behind",
                    "baby",
                    "orange",
                    "front",
                    "left",
                    "six",
                    "trees",
                    "night",
                    "sea",
                    "rain",
                    "birds",
                ]
            ),
            max_size=14,
        ).map(" ".join),
    ),
    st.integers(0, 2**64 - 1),
)
def test_any_text_gives_a_picture(painter: Painter, caption: str, seed: int) -> None:
    picture = painter.paint(caption, seed)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 1
    assert isinstance(read(caption), Scene)


ARTISTS = get_args(Artist)


@pytest.mark.parametrize("artist", ARTISTS)
def test_every_artist_draws_what_it_is_said_to_draw_in_a_style_of_its_own(artist: Artist) -> None:
    concepts = bank()
    lacking = Config(backend="compositor", artist=artist).undrawable(concepts)
    assert len(concepts) - len(lacking) >= {"fontawesome": 90, "material": 150}.get(artist, 223)
    rasters, look = Rasters(32, artist), STYLES[artist].look
    for concept in concepts[::7]:
        if concept not in lacking:
            raster = rasters.get(read(concept).things[0].glyph, 32).astype(int)
            assert (raster[..., 3] > 0).mean() > 0.05, concept
            if look != "coloured":
                assert np.ptp(raster[..., :3], axis=2).max() == 0, "one colour, so that any can be laid over"


@pytest.mark.parametrize("artist", ARTISTS)
def test_a_colour_is_laid_over_every_artists_drawing(artist: Artist) -> None:
    painter = Painter(64, artist)
    blue, red = (painter.paint(f"A {colour} apple in the snow.", 3).astype(int) for colour in ("blue", "red"))
    changed = np.abs(blue - red).max(axis=2) > 40
    assert changed.mean() > 0.1
    assert (red - blue)[changed][:, 0].mean() > 50
    np.testing.assert_array_equal(painter.paint("A dog.", 5), Painter(64, artist).paint("A dog.", 5))


def test_a_thing_that_an_artist_does_not_draw_is_refused_alone() -> None:
    config = Config(backend="compositor", artist="fontawesome", size_px=64)
    assert config.undrawable(["A cat.", "A cat and a mango.", "mango", "Nothing."]) == [
        "A cat and a mango.",
        "mango",
        "Nothing.",
    ]
    painted = build(config).generate(["A cat.", "A mango.", "A dog."], [1, 2, 3])
    assert painted.refused == {1: "no drawing of mango"}
    assert len(painted.images) == 3
