"""The Croissant description of a run's images, read by MLCommons' own library."""

import json
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
from image_runs import CAPTIONS, make_images, recipe_of, selected
from test_cards import make_run
from typer.testing import CliRunner

from synthclip import schema
from synthclip.cli import app
from synthclip.errors import SynthClipError
from synthclip.interop.croissant import croissant
from synthclip.run.store import RunDirectory


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = selected(tmp_path_factory.mktemp("painted") / "run", CAPTIONS[:3], CAPTIONS[3:4])
    recipe = recipe_of(
        "text_to_image=[{backend: compositor, size_px: 32},"
        " {backend: compositor, size_px: 32, artist: noto}]",
        "images.per_caption=3",
    )
    run.write_stage_values("images", make_images(run, recipe).values)
    return run


def agents(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made = [one["prov:wasAssociatedWith"] for one in described["prov:wasGeneratedBy"]]
    return {agent["prov:label"]: agent for agent in made}


def test_the_reference_library_reads_every_image(painted: RunDirectory, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "card", str(painted.path), str(tmp_path / "card")])
    assert done.exit_code == 0, done.output
    file = tmp_path / "card" / "croissant.json"
    dataset = mlcroissant.Dataset(file, mapping={"repo": str(painted.path / "images")})
    assert not dataset.metadata.ctx.issues.errors
    expected = {
        row["key"]: row | {"split": split}
        for split in ("train", "heldout")
        for path in schema.split_tables(painted.stage("images"), split)
        for row in schema.read_table(path).to_pylist()
    }
    found = {record["images/key"].decode(): record for record in dataset.records("images")}
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        for name in ("text", "split", "sha256", "backend", "shard"):
            assert found[key][f"images/{name}"].decode() == row[name]
        for name in ("concept_ids", "variant", "seed", "width_px", "offset", "length"):
            assert found[key][f"images/{name}"] == row[name]


def test_every_painter_is_named_with_its_own_licence(painted: RunDirectory, tmp_path: Path) -> None:
    described = croissant(painted.path, "me/birds")
    assert {name.split(" ")[2]: one["license"] for name, one in agents(described).items()} == {
        "OpenMoji": "CC-BY-SA-4.0 (OpenMoji)",
        "Noto": "OFL-1.1 (Noto Emoji)",
    }
    assert all(one["digitalSourceType"].endswith("/composite") for one in agents(described).values())
    assert "rai:hasSyntheticData" not in described, "glyphs that people drew"
    card = (tmp_path / "card").joinpath("README.md")
    CliRunner().invoke(app, ["export", "card", str(painted.path), str(card.parent)])
    assert "OFL-1.1 (Noto Emoji) | [composite](http://cv.iptc.org/newscodes/digital" in card.read_text()


def test_generated_pictures_are_declared_as_such(tmp_path: Path) -> None:
    run = make_run(tmp_path, painter=f"stabilityai/sdxl-turbo@{'0f' * 20}", llm="mistral")
    described = json.loads(json.dumps(croissant(run.path, "https://example.org/data/birds")))
    assert not mlcroissant.Dataset(described).metadata.ctx.issues.errors
    assert described["url"] == "https://example.org/data/birds"
    assert described["name"] == "birds"
    assert described["rai:hasSyntheticData"] is True
    assert described["rai:dataCollectionType"] == ["Synthetic"]
    agent = agents(described)[f"stabilityai/sdxl-turbo@{'0f' * 20}"]
    assert agent["digitalSourceType"].endswith("/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
    assert "forbids training a generative foundation model" in agent["usageInfo"]
    assert "forbids training a generative foundation model" in described["rai:dataLimitations"]
    assert agents(described)["mistral"] == {"@type": "prov:SoftwareAgent", "prov:label": "mistral"}


def test_imported_pictures_carry_no_claims(tmp_path: Path) -> None:
    run = make_run(tmp_path, images={"imported": "/home/alice/photos"}, painter="photos")
    described = json.dumps(croissant(run.path, "me/photos"))
    for claim in ("digitalSourceType", "Synthetic", "alice", "synthetic"):
        assert claim not in described
    with pytest.raises(SynthClipError, match="holds no images"):
        croissant(tmp_path / "nothing", "me/none")
