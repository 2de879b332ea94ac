"""Evaluation spread over processes gives the figures of one; where one fails, none waits for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from member_killed import killed_in_the_second
from shape_runs import COLOURS
from shape_runs import picture as drawn
from typer.testing import CliRunner

from small_inputs import MODEL_CONFIG, save_model
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.evaluation.encoder import Encoded, Encoder
from synthclip.models.build import LeanCLIP, open_clip_config
from synthclip.models.load import as_loaded
from synthclip.recipe.training import ModelConfig, TextConfig, VisionConfig
from synthclip.training.parallel import Group
from synthclip.training.shared import SharedEncoder, in_processes

pytestmark = pytest.mark.slow

TINY = ModelConfig(
    embed_dim=8,
    vision=VisionConfig(image_size_px=16, layers=1, width=16, head_width=8, patch_size_px=8),
    text=TextConfig(width=16, heads=2, layers=1),
)


class Meeting(Group):
    """A group of threads in the place of processes."""

    def __init__(self, rank: int, world_size: int, brought: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, world_size)
        self.__dict__.update(brought=brought, barrier=barrier)

    def all(self, mine: Any) -> list[Any]:
        self.__dict__["brought"][self.rank] = mine
        self.__dict__["barrier"].wait()
        found = list(self.__dict__["brought"])
        self.__dict__["barrier"].wait()
        return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("unreadable", [(), (0, 3), (1, 4), tuple(range(1, 8))])
def test_an_encoder_spread_over_processes_gives_the_features_of_one(
    world: int, unreadable: tuple[int, ...]
) -> None:
    model = as_loaded(LeanCLIP(open_clip_config(TINY)))
    draw = np.random.default_rng(0)
    pictures = [
        cv2.imencode(".png", draw.integers(0, 256, (9, 9, 3), np.uint8))[1].tobytes() for _ in range(8)
    ]
    for number in unreadable:
        pictures[number] = b"no picture"
    texts = ["a", "a bird", "a bird on a tree", "two", "five"]
    alone = Encoder(*model)
    brought: list[Any] = [None] * world
    barrier = threading.Barrier(world)
    groups = [Meeting(rank, world, brought, barrier) for rank in range(world)]

    def encode(group: Group) -> tuple[Encoded, torch.Tensor]:
        encoder = SharedEncoder(group, *model, batch_size=2)
        return encoder.images(iter(pictures)), encoder.texts(texts)

    with ThreadPoolExecutor(world) as pool:
        for images, of_texts in pool.map(encode, groups):
            torch.testing.assert_close(images.features, alone.images(pictures).features)
            assert images.unreadable == unreadable
            torch.testing.assert_close(of_texts, alone.texts(texts))


def test_what_one_process_refuses_is_raised_in_all() -> None:
    brought: list[Any] = [None] * 2
    barrier = threading.Barrier(2)

    def work(rank: int) -> int:
        if rank == 1:
            raise SynthClipError("the GPU's memory is short")
        return rank

    def refused(rank: int) -> str:
        with pytest.raises(SynthClipError) as error:
            Meeting(rank, 2, brought, barrier).each(lambda: work(rank))
        return str(error.value)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(refused, range(2))) == ["the GPU's memory is short"] * 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set `colours` of training and test images, one of which cannot be read, and `blank` of none
    that can."""
    rng = np.random.default_rng(0)
    for colour in COLOURS:
        blank = tmp_path / "data" / "blank" / "test" / colour
        blank.mkdir(parents=True)
        (blank / "0.png").write_bytes(b"no picture")
        for split, each in (("train", 5), ("test", 7)):
            folder = tmp_path / "data" / "colours" / split / colour
            folder.mkdir(parents=True)
            for number in range(each):
                cv2.imwrite(str(folder / f"{number}.png"), drawn(colour, "circle", rng))
    (folder / "0.png").write_bytes(b"no picture")
    return tmp_path / "data"


def evaluated(model: Path, root: Path, name: str, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The figures, and what was refused."""
    where = [
        "--data",
        str(root),
        "--out",
        str(root.parent / name),
        "--cache",
        str(root.parent / f"{name}-cache"),
    ]
    command = ["eval", str(model), "--suite", "colours,blank", "--episodes", "20", *where, *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, SynthClipError), result.output
    table = root.parent / name / "suites" / "colours+blank" / "results.parquet"
    return list(pq.read_table(table).to_pylist()), str(result.exception)


def test_the_command_in_two_processes_gives_the_figures_and_the_refusals_of_one(
    tmp_path: Path, root: Path
) -> None:
    model = save_model(tmp_path / "model", **MODEL_CONFIG)
    alone, refused = evaluated(model, root, "alone")
    assert len(alone) > 3
    assert refused.startswith("blank, zero_shot: none of 6 images can be read")
    both, refused_by_both = evaluated(model, root, "both", "--gpus", "2")
    for one, other in zip(alone, both, strict=True):
        assert other == {k: pytest.approx(v, abs=1e-6) if isinstance(v, float) else v for k, v in one.items()}
    assert refused_by_both == refused


def test_a_process_that_is_killed_ends_all_with_one_line() -> None:
    with pytest.raises(SynthClipError, match=r"process 1 of 2 died \(SIGKILL\): run the same command again"):
        in_processes(2, killed_in_the_second)
