"""How much of everything a recipe makes, from its concepts to its images."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from synthclip.imagegen.seeds import open_seeds
from synthclip.recipe import Recipe
from synthclip.schema import COMPOSITION, EXCHANGED, HELDOUT_PAINTER, SPLITS


@dataclass(frozen=True)
class Volumes:
    """Concepts, captions asked for, kept and selected, and images."""

    concepts: int
    asked: int
    kept: int
    selected: int
    train_images: int
    heldout_images: int
    """Of all painters."""
    unseen_images: int
    """Those of them that `images.heldout_painter` paints."""
    composition_images: int
    """Those of captions of exchanged words, to evaluate on."""
    exchanged_images: int
    """Others of them, to train on."""

    @property
    def images(self) -> int:
        return self.train_images + self.exchanged_images + self.judged_images

    @property
    def judged_images(self) -> int:
        return self.heldout_images + self.composition_images


def volumes_of(recipe: Recipe, concepts: int, kept_share: float) -> Volumes:
    """What each stage hands on, if a caption names its own concept and no other.

    Balancing then keeps `t / max(count, t)` of a concept's captions (paper, section 3.1). A caption that
    names more concepts is kept more often, so the real number is the larger. A `target` is met where
    there are that many captions.
    """
    asked = concepts * recipe.captions.per_concept
    kept = asked * kept_share
    t, target = recipe.balance.t, recipe.balance.target
    most = target if target is not None else math.inf if t is None else concepts * t
    selected = min(kept, most)
    heldout = selected * recipe.balance.heldout
    images = recipe.images
    each = round(heldout * images.heldout_per_caption)
    unseen = each if images.heldout_painter else 0
    return Volumes(
        concepts,
        asked,
        round(kept),
        round(selected),
        round((selected - heldout) * images.per_caption),
        each + unseen,
        unseen,
        2 * images.composition,
        2 * images.exchanged * images.per_caption,
    )


def volumes_of_seeds(folder: str) -> Volumes:
    """What `images.seeds` paints, by the seeds' own counts: no caption is written, all are selected."""
    rows: Counter[str] = Counter()
    for part in open_seeds(Path(folder)).parts:
        rows[part["path"].split("/")[1]] += part["rows"]
    train, heldout = (rows[split] for split in SPLITS)
    unseen = rows[HELDOUT_PAINTER]
    return Volumes(0, 0, 0, train, train, heldout + unseen, unseen, rows[COMPOSITION], rows[EXCHANGED])
