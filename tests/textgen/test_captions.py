"""Captions by a model that says all sorts of things."""

import json
from pathlib import Path

import pytest
from text_runs import RunText, contents, table, write_lists

from synthclip import keys
from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.recipe.textgen import CaptionsConfig
from synthclip.run.pipeline import check
from synthclip.run.store import RunDirectory
from synthclip.textgen.prompts import Prompts

REASONS = {
    "empty",
    "control characters",
    "markup",
    "too long",
    "concept missing",
    "several lines",
    "too short",
}


def test_every_answer_is_kept_or_refused_with_its_reason(run_text: RunText) -> None:
    run = run_text("concepts.limit=40")
    kept, refused = table(run, "captions"), table(run, "captions", "rejected")
    assert kept.num_rows + refused.num_rows == 40 * 6
    assert set(refused["reason"].to_pylist()) <= REASONS
    assert len(set(refused["reason"].to_pylist())) >= 6
    bank = table(run, "concepts")["text"].to_pylist()
    for row in kept.to_pylist():
        assert bank[row["concept_id"]] in row["text"]
        assert row["text"].isprintable()
        assert row["caption_id"] == keys.text_id(row["text"])
        assert (row["model"], row["template"]) == ("wordy", "plain")
    longest = max(refused["text"].to_pylist(), key=len)
    assert len(longest) >= 10_000, "what is refused is kept whole"


def test_captions_do_not_depend_on_workers_or_batches(run_text: RunText) -> None:
    one = run_text("concepts.limit=20", "llm.batch=1", out="one")
    two = run_text("concepts.limit=20", "llm.batch=7", "engine.workers=2", out="two")
    assert contents(one, "captions", "match", "balance") == contents(two, "captions", "match", "balance")


def test_lists_of_captions_do_not_depend_on_workers_or_batches_and_lose_none(run_text: RunText) -> None:
    lists = ("concepts.limit=20", "captions.per_request=4")
    one = run_text(*lists, "llm.batch=1", out="one")
    two = run_text(*lists, "llm.batch=7", "engine.workers=2", out="two")
    assert contents(one, "captions", "match") == contents(two, "captions", "match")
    refused = table(one, "captions", "rejected")["reason"].to_pylist()
    assert table(one, "captions").num_rows + len(refused) == 20 * 6
    assert "missing from the list" in refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("llm.stop=['.']", "set llm.stop="),
        ("llm={backend: llamacpp, stop: []}", "'few-shot' begins a single"),
    ],
)
def test_what_no_list_comes_of_is_refused_before_anything_is_asked(
    override: str, message: str, tmp_path: Path
) -> None:
    recipe = load_recipe("demo", [override, "captions.per_request=4"])
    with pytest.raises(SynthClipError, match=message):
        check(recipe, RunDirectory(tmp_path / "run"), ["captions"])


def test_another_seed_gives_other_captions(run_text: RunText) -> None:
    one, two = (run_text("concepts.limit=20", f"seed={seed}", out=f"seed{seed}") for seed in (0, 1))
    assert table(one, "captions")["text"] != table(two, "captions")["text"]


def test_a_longer_bank_leaves_the_shards_of_the_shorter_one(tmp_path: Path, run_text: RunText) -> None:
    bank = tmp_path / "bank.txt"
    source = f"concepts.sources=[{{kind: text, path: {bank}}}]"
    bank.write_text("dog\ncat\nbee\ncar\n")
    first = contents(run_text(source), "captions")
    before = {path: (tmp_path / "run" / path).stat().st_mtime_ns for path in first}
    bank.write_text("dog\ncat\nbee\ncar\nboat\n")
    run = run_text(source)
    assert {path: (tmp_path / "run" / path).stat().st_mtime_ns for path in first} == before
    assert len(run.manifests("captions")) == 2


def prompts(**values: object) -> Prompts:
    return Prompts(CaptionsConfig.model_validate(values), seed=0)


def test_axes_and_templates_are_drawn_by_content() -> None:
    drawn = prompts(
        templates=[
            {"name": "a", "text": "A picture:\n", "prefill": "{{ look }} {{ concept }}", "weight": 3},
            {"name": "b", "text": "{{ concept }}, {{ look }}:"},
        ],
        axes={"look": ["red", "blue", ""]},
    )
    many = [drawn.draw(concept, attempt) for concept in ("dog", "cat") for attempt in range(300)]
    assert many == [drawn.draw(concept, attempt) for concept in ("dog", "cat") for attempt in range(300)]
    share = sum(prompt.template.name == "a" for prompt in many) / len(many)
    assert 0.68 < share < 0.82
    assert {prompt.prefilled for prompt in many if prompt.template.name == "a"} == {
        f"A picture:\n{start}{noun}" for start in ("red ", "blue ", "") for noun in ("dog", "cat")
    }
    assert "dog, red:" in {prompt.prefilled for prompt in many}
    assert len({prompt.seed for prompt in many}) == len(many)


BUNDLED = ("plain", "roles", "scenes", "views", "attributes", "relations", "media")


def test_templates_and_axes_that_come_with_the_package_are_taken_by_name(tmp_path: Path) -> None:
    recipe = load_recipe("demo", [f"captions.templates=[{', '.join(BUNDLED)}]", "captions.axes={light: [x]}"])
    assert recipe.captions.axes["light"] == ("x",), "an axis of the recipe goes before the bundled one"
    drawn = [Prompts(recipe.captions, 0).draw("zebra", attempt) for attempt in range(200)]
    assert {prompt.template.name for prompt in drawn} == set(BUNDLED)
    assert all("zebra" in prompt.text and "{" not in prompt.text for prompt in drawn)
    roles = {prompt.text for prompt in drawn if prompt.template.name == "roles"}
    assert len(roles) == len(recipe.captions.axes["role"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    assert load_recipe(saved) == recipe, "a run's recipe holds them spelled out"
    by_name = load_recipe("demo", ["captions.axes={look: light, where: setting}"])
    assert "in a kitchen" in by_name.captions.axes["where"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captions.templates=[rolse]", "no template 'rolse' comes with the package; did you mean 'roles'"),
        ("captions.axes={where: settings}", "no axis 'settings' .* did you mean 'setting'"),
        ("captions.language=ja", "captions.language: is written without spaces"),
        ('captions.templates.0.text="{{ concpt }}"', "unknown name 'concpt'; did you mean 'concept'"),
        ('captions.templates.0.text="{{ concept"', "template 'plain', line 1"),
        ("captions.axes={look: []}", "axis 'look'"),
        ("llm.backend=lamacpp", "did you mean 'llamacpp'"),
    ],
)
def test_a_recipe_that_cannot_be_rendered_is_refused_when_it_is_read(
    run_text: RunText, override: str, message: str
) -> None:
    with pytest.raises(SynthClipError, match=message):
        run_text(override)


def test_the_papers_prompt_stands_in_its_recipe() -> None:
    recipe = load_recipe("synthci-30m")
    prompt = Prompts(recipe.captions, recipe.seed).draw("zebra", 0).text
    assert "Your concept is: zebra." in prompt
    assert "\n" not in prompt


def test_long_and_short_captions_of_one_recipe(run_text: RunText) -> None:
    long = '{name: long, text: "{{ concept }}:", sentences: 2, max_words: 40}'
    short = '{name: short, text: "{{ concept }}:", max_words: 5}'
    run = run_text("concepts.limit=20", f"captions.templates=[{long}, {short}]")
    texts: dict[str, list[str]] = {"long": [], "short": []}
    for row in table(run, "captions").to_pylist():
        texts[row["template"]].append(row["text"])
    assert max(len(text.split()) for text in texts["short"]) <= 5
    assert max(len(text.split()) for text in texts["long"]) > 5
    assert any(". " in text for text in texts["long"])
    assert not any(". " in text for text in texts["short"])


def test_a_language_that_nothing_can_tell_is_refused_before_work_begins(run_text: RunText) -> None:
    pytest.importorskip("py3langid", reason="needs py3langid: pip install 'synthclip[language]'")
    with pytest.raises(SynthClipError, match="'english': unknown"):
        run_text("concepts.limit=2", "captions.language=english")


def test_too_many_refused_captions_stop_the_stage_and_name_the_reason(run_text: RunText) -> None:
    with pytest.raises(
        SynthClipError, match=r"of 120 captions refused, most often as '.*raise captions\.max_refused"
    ):
        run_text("concepts.limit=20", "captions.max_refused=0.3", stages=("concepts", "captions"))
    with pytest.raises(SynthClipError, match=r"captions shard 00000: \d+ of 120 captions refused"):
        run_text(
            "concepts.limit=40",
            "captions.max_refused=0.3",
            "captions.concepts_per_shard=20",
            out="shards",
            stages=("concepts", "captions"),
        )
    run = run_text("concepts.limit=20", "captions.max_refused=0.8", stages=("concepts", "captions"))
    assert len(run.manifests("captions")) == 5, "the limit makes nothing stale"


def test_a_stage_that_makes_nothing_stops_there_each_time(tmp_path: Path, run_text: RunText) -> None:
    useless = ["", "two\nlines", "b\nc"]
    source = f"captions.imported={write_lists(tmp_path / 'lists', useless, 1)}"
    for _ in range(2):
        with pytest.raises(SynthClipError, match=r"stage 'captions' made no row.*'several lines' \(2\)"):
            run_text(source, "captions.max_refused=1")
    unmatched = f"captions.imported={write_lists(tmp_path / 'other', ['Nothing of it.'], 1)}"
    with pytest.raises(SynthClipError, match="none of 1 different captions is selected, 1 match no concept"):
        run_text(unmatched, out="unmatched")


@pytest.mark.parametrize("text", ["{{ concept.__class__.__mro__ }}", "{{ 1 // 0 }}", "{{ ''.__doc__ }}"])
def test_a_template_that_no_concept_can_be_rendered_with_is_refused_with_its_recipe(text: str) -> None:
    with pytest.raises(SynthClipError, match="captions: template 't': ") as caught:
        load_recipe("demo", [f"captions.templates=[{{name: t, text: {json.dumps(text)}}}]"])
    assert "\n" not in str(caught.value)


def test_a_template_that_one_concept_cannot_be_rendered_with_is_one_line() -> None:
    by_length = {"name": "t", "text": "{{ 1 // (concept|length - 3) }}"}
    with pytest.raises(SynthClipError, match="'t' cannot be rendered for 'dog'") as caught:
        prompts(templates=[by_length]).draw("dog", 0)
    assert "\n" not in str(caught.value)
