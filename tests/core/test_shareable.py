"""What is passed on names no machine, no person and no key, whatever stands in the recipe."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.recipe import bundled, load_recipe
from synthclip.recipe.shareable import HIDDEN, shareable

SECRETS = ("alice", "corp.example", "hunter2", "node17", "10.1.2.3", "s3cr3t", "physics")


@pytest.mark.parametrize(
    "value",
    [
        "/home/alice/data/captions.csv",
        "~alice/models/model.gguf",
        "C:\\Users\\alice\\captions.csv",
        "\\\\corp.example\\share\\captions.csv",
        "../../alice/captions.csv",
        "local-dir:/mnt/alice/My Model/model",
        "file:///srv/alice/captions.csv",
        "https://alice:hunter2@corp.example/a/{000..127}.tar?X-Amz-Signature=s3cr3t",
        "s3://corp.example-alice/a/*.tar",
        "pipe:aws s3 cp s3://corp.example/alice/0.tar -",
        "http://10.1.2.3:8000/v1",
        "node17:6379",
        "10.1.2.3:8000",
        "alice@corp.example",
        "alice@node17",
        "could not open '/mnt/alice/x.csv' of alice@corp.example",
        {"api_key": "s3cr3t"},
        {"headers": {"Authorization": "Basic s3cr3t"}},
        {"account": "physics", "partition": "physics", "user": "alice"},
        {"hf_token": "s3cr3t"},
        ["/home/alice"],
    ],
)
def test_hostile_values_lose_what_tells_of_a_machine_or_a_person(value: object) -> None:
    shown = json.dumps(shareable(value))
    assert not [secret for secret in SECRETS if secret in shown]


@pytest.mark.parametrize(
    "key", ["hf_abcdefghijklmnop", "sk-proj-abcdef123456", "AKIAABCDEFGHIJKLMNOP", "ghp_abcdefghijkl1234"]
)
def test_keys_are_hidden_wherever_they_stand(key: str) -> None:
    assert shareable(f"refused: {key}, try again") == f"refused: {HIDDEN}, try again"


@pytest.mark.parametrize(
    "text",
    [
        "mistralai/Mistral-7B-Instruct-v0.2",
        "hf-hub:hammh0a/SynthCLIP",
        "stabilityai/sdxl-turbo@main",
        "stabilityai/sdxl-turbo@462165984030d82259a11f4367a4eed129e94a7b + latent-consistency/lcm-lora",
        "tiny-pipeline@0123456789ab",
        "ViT-B-32:laion2b_s34b_b79k",
        "a photo of a {concept} and/or a {style}",
        "</s><s>[INST] Write a caption. [/INST]",
        "synthclip_compositor",
        "16:9, at 12:30",
        "",
    ],
)
def test_names_of_models_and_prompts_stay(text: str) -> None:
    assert shareable(text) == text


def test_the_last_part_of_a_path_stays() -> None:
    assert shareable("/home/alice/captions.csv") == "…/captions.csv"
    assert shareable("https://corp.example/a/0.tar?x=1") == "https://…/0.tar"


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_are_shown_as_they_are(name: str) -> None:
    values = load_recipe(name).results()
    if name != "synthci-30m":  # it names local files
        assert shareable(values) == json.loads(json.dumps(values))


@given(
    st.lists(st.sampled_from(["alice", "x.csv", "My Data", "ü"]), min_size=2),
    st.sampled_from(["/", "~/", "../", "C:\\"]),
)
def test_no_folder_of_a_path_is_shown(parts: list[str], start: str) -> None:
    shown = shareable(start + "/".join([*parts, "last"]))
    assert shown == "…/last"


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_can_be_shown_twice(value: object) -> None:
    assert shareable(shareable(value)) == shareable(value)
