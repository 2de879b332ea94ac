"""What a card says follows from what the run used."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synthclip import schema
from synthclip.interop.cards import data_card, model_card
from synthclip.interop.origins import read_origins
from synthclip.run.store import Outcome, RunDirectory


def make_run(
    path: Path,
    *,
    llm: str = "mistral",
    backend: str = "diffusers",
    painter: str = "stable-diffusion",
    images: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    pairs: list[int] | None = None,
) -> RunDirectory:
    run = RunDirectory(path)
    caption = {"caption_id": 1, "concept_id": 0, "text": "A cat", "template": "t", "model": llm, "seed": 1}
    with run.begin("captions", "00000", "f") as writer:
        writer.rows("00000.parquet", schema.CAPTION, [caption])
        writer.commit(Outcome(1))
    run.write_stage_values("images", {"text_to_image": {"backend": backend}, "images": images or {}})
    with run.begin("images", "train/00000", "f") as writer:
        writer.path("train/00000.tar").write_bytes(b"")
        writer.commit(Outcome(7, {}, {"backend": painter, "licence": "CC0-1.0"}))
    if training is not None:
        run.write_stage_values("train", {"training": training})
        with run.begin("train", "all", "f") as writer:
            writer.commit(Outcome(7, notes={"pairs": pairs}))
    return run


def card_of(run: RunDirectory) -> str:
    model: Any = SimpleNamespace(model=torch.nn.Linear(2, 2))
    return model_card(run.path, model, "me/model")


def test_a_run_of_models_alone_is_synthetic(tmp_path: Path) -> None:
    run = make_run(tmp_path, training={"sources": [{"kind": "run", "weight": 1.0}]})
    card = data_card(run.path, "me/data")
    assert "All of it is synthetic" in card
    assert "- synthetic" in card
    assert "written by mistral" in card
    card = card_of(run)
    assert "synthetic captions and images of this run alone" in card
    assert "| the images of this run | 7 | 1 | CC0-1.0 |" in card


@pytest.mark.parametrize(
    ("used", "said"),
    [
        ({"llm": "imported"}, "who wrote them is not recorded"),
        (
            {"images": {"imported": "/data/photos"}, "painter": "photos"},
            "imported as photos; this run did not",
        ),
        ({"backend": "compositor", "painter": "compositor of glyphs"}, "without a generative model"),
        ({"backend": "somebodys.package", "painter": "camera"}, "The images were made by camera."),
    ],
)
def test_what_was_not_generated_is_not_called_synthetic(
    used: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, training={"sources": [{"kind": "run"}]}, **used)
    for card in (data_card(run.path, "me/data"), card_of(run)):
        assert said in card
        assert "synthetic" not in card.replace("published as synthetic", "")


def test_other_sources_and_first_weights_are_named(tmp_path: Path) -> None:
    training = {
        "sources": [
            {"kind": "run", "weight": 1.0},
            {"kind": "csv", "path": "/home/alice/photo|s.csv", "weight": 0.5},
        ],
        "init": "/home/alice/laion/model.pt",
        "teacher": {"model": "/home/alice/larger", "weight": 0.5},
    }
    run = make_run(tmp_path, training=training, pairs=[7, 200])
    card = card_of(run)
    assert "| csv: …/photo\\|s.csv | 200 | 0.5 | not recorded |" in card
    assert "Training started from the weights …/model.pt" in card
    assert "It also learnt how similar …/larger finds" in card
    assert "may hold photographs and text written by people" in card
    assert "synthetic" not in card
    assert "alice" not in card


def test_the_card_shows_what_was_trained_not_a_later_failed_command(tmp_path: Path) -> None:
    run = make_run(tmp_path, training={"epochs": 3})
    run.write_json("train/recipe.json", {"training": {"epochs": 3}})
    run.write_stage_values("train", {"training": {"epochs": 99}})
    assert "epochs: 3" in card_of(run)
    assert "epochs: 99" not in card_of(run)


def test_a_model_from_elsewhere_has_no_claims(tmp_path: Path) -> None:
    card = card_of(RunDirectory(tmp_path))
    assert "What it was trained on is not recorded in its files." in card
    assert "synthetic" not in card
    assert not read_origins(RunDirectory(tmp_path)).of_training()
