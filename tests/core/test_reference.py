"""What `show --explain`, editors and docs/recipe.md say of each value."""

from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from synthclip.errors import SynthClipError
from synthclip.recipe import bundled, load_recipe
from synthclip.recipe.reference import entries, explained, json_schema


def test_every_value_has_a_meaning() -> None:
    assert [(entry.key, entry.backend) for entry in entries() if not entry.meaning] == []


def test_every_value_that_is_explained_is_an_override_of_itself(tmp_path: Path) -> None:
    recipe = load_recipe("one-gpu")
    (tmp_path / "one-gpu.yaml").write_text(recipe.to_yaml())
    shown = [f"{entry.key}={entry.value}" for entry in entries(recipe) if not entry.holds_others]
    assert load_recipe(tmp_path / "one-gpu.yaml", shown) == recipe
    assert len(shown) > 100


def test_what_a_recipe_changes_is_marked() -> None:
    lines = explained(["demo", "training.lr", "training.beta1", "training.epochs=2"], width=200).splitlines()
    assert lines[0] == "* training.lr: 0.002"
    assert "default 0.0005" in lines[1]
    assert "training.beta1: 0.9" in lines
    assert not any("epochs" in line for line in lines)


def test_without_a_recipe_the_keys_of_every_backend_are_explained() -> None:
    text = explained(["llm"])
    assert text.count("\nllm.temperature: 0.7") == 4
    assert "backend vllm" in text
    assert explained(["captions.templates.3.weight"]).startswith("captions.templates.N.weight: 1.0\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "training.lrr"], "unknown key 'training.lrr'; did you mean 'training.lr'?"),
        (["trainng"], "trainng: no such recipe or file"),
        (["training.lr=3"], "training.lr=3: an override needs a recipe before it"),
    ],
)
def test_a_key_that_is_none_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(SynthClipError) as caught:
        explained(words)
    assert str(caught.value).startswith(message)


def test_the_schema_takes_recipes_and_refuses_what_they_refuse(tmp_path: Path) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in bundled():
        file = resources.files("synthclip.recipe") / "presets" / f"{name}.yaml"
        assert validator.is_valid(yaml.safe_load(file.read_text(encoding="utf-8"))), name
        assert validator.is_valid(yaml.safe_load(load_recipe(name).to_yaml())), name
    painters = ["text_to_image=[{backend: compositor}, {backend: diffusers, preset: sdxl, weight: 2}]"]
    plain = yaml.safe_load(load_recipe("demo", painters).to_yaml())
    assert validator.is_valid(plain)
    assert validator.is_valid({**plain, "training": "paper"})
    assert validator.is_valid({**plain, "captions": {"templates": ["roles"], "axes": {"x": "light"}}})
    for wrong in (
        {"training": {"lrr": 1}},
        {"training": {"lr": -1}},
        {"captions": {"templates": ["rolse"]}},
        {"llm": {"backend": "openai"}},
        {"llm": {"backend": "llamacpp", "temprature": 1}},
        {"text_to_image": {"backend": "paint"}},
    ):
        assert not validator.is_valid({**plain, **wrong}), wrong
