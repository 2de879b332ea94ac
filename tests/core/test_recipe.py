import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, UndefinedError

from synthclip.backends import build_text_to_image
from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe, bundled, inspect_recipe, load_recipe
from synthclip.recipe.reference import explained
from synthclip.recipe.section import differences
from synthclip.recipe.textgen import Template
from synthclip.run.pipeline import run, status


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_overrides_reach_into_sections_and_lists() -> None:
    recipe = load_recipe(
        "demo",
        ["captions.per_concept=4", "training.lr=1e-3", "balance.t=null", "captions.templates.0.name=plain"],
    )
    assert recipe.captions.per_concept == 4
    assert recipe.training.lr == 1e-3
    assert recipe.balance.t is None
    assert recipe.captions.templates[0].name == "plain"


@given(st.integers(1, 10**9))
def test_numbers_may_carry_underscores(value: int) -> None:
    assert load_recipe("demo", [f"seed={value:_}"]).seed == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captions.per_concpt=4", "captions: unknown key 'per_concpt'; did you mean 'captions.per_concept'?"),
        ("per_concept=4", "unknown key 'per_concept'; did you mean 'captions.per_concept'?"),
        ("imagse.per_caption=4", "unknown key 'imagse'; did you mean 'images'?"),
        ("llm.modle=x", "llm: unknown key 'modle'; did you mean 'model'?"),
        ("llm.backend=lamacpp", "llm: unknown backend 'lamacpp'; did you mean 'llamacpp'?"),
        ("captions.per_concept=many", "captions.per_concept: must be an integer, not 'many'"),
        ("captions.per_concept=0", "captions.per_concept: must be at least 1, not 0"),
        ("concepts.sources=birds.txt", "concepts.sources: must be a list, not 'birds.txt'"),
        ("captions.templates=[]", "captions.templates: must have 1 or more items"),
        ("balance=10", "balance: must be a section of keys, not 10"),
        ("captions", "override 'captions': expected key=value"),
        ("seed.x=1", "override 'seed.x=1': 'seed' is a value, not a section"),
        ("captions.templates.9.name=x", "'9': index out of range (it has 1)"),
        ("seed=[", "override 'seed=[', line 1: not YAML"),
    ],
)
def test_a_bad_override_is_one_line_with_the_remedy(override: str, message: str) -> None:
    base = ["seed=1"] if override.startswith("seed.") else []
    with pytest.raises(SynthClipError) as caught:
        load_recipe("demo", [*base, override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_item_of_a_list_is_one_mistake() -> None:
    with pytest.raises(SynthClipError, match=r"concepts\.sources\.0\.kind: must be 'builtin'.*, not 'txt'$"):
        load_recipe("demo", ["concepts.sources=[{kind: txt, path: birds.txt}]"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "not a recipe: expected keys such as 'concepts' and 'llm' at the top"),
        ("name: [", "line 1: not YAML"),
        ("name: x", "llm: is required"),
        ("llm: {model: x}", "llm: needs a key 'backend'"),
        ("\x00", "not YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SynthClipError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_all_problems_are_named_at_once_each_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "nam: x\n"
        "concepts: {sources: []}\n"
        "llm: {backend: llamacpp, modle: x, max_tokens: many, top_p: .nan}\n"
        "captions: {templates: [{name: a, txt: b}], axes: {look: 3}}\n"
        "text_to_image: {backend: compositor}\n"
        "model: {vision: {layers: {a: 1}}}\n"
        "training: {crop_scale: [1], resolutions: [{image_size_px: 3, share: 2}]}\n"
        "engine: {workers: many}\n"
    )
    with pytest.raises(SynthClipError) as caught:
        load_recipe(path)
    assert sorted(str(caught.value).splitlines()) == sorted(
        f"{path}: {problem}"
        for problem in (
            "unknown key 'nam'; did you mean 'name'?",
            "concepts.sources: must have 1 or more items",
            "llm: unknown key 'modle'; did you mean 'model'?",
            "llm.max_tokens: must be an integer, not 'many'",
            "llm.top_p: must be a finite number, not nan",
            "captions.templates.0: unknown key 'txt'; did you mean 'text'?",
            "captions.templates.0.text: is required",
            "captions.axes.look: must be a list, not 3",
            "model.vision.layers: must be an integer or a list",
            "training.crop_scale.1: is required",
            "training.resolutions.0.image_size_px: must be at least 16, not 3",
            "training.resolutions.0.share: must be less than 1, not 2",
            "engine.workers: must be an integer or 'auto', not 'many'",
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {<<: *a}", "more than 100,000 values"),
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
            "more than 100,000 values",
        ),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
            "more than 100,000 values",
        ),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: 2024-99-99", "not YAML"),
        ("a: 1\na: 2", "line 2: not YAML: key 'a' stands twice"),
        ("#" + "x" * 5_000_000, "too large for a recipe"),
    ],
)
def test_a_hostile_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SynthClipError, match=message) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_another_backend_starts_its_section_anew() -> None:
    recipe = load_recipe("demo", ["llm.model=org/name", "llm.backend=openai"])
    assert (recipe.llm.backend, recipe.llm.model) == ("openai", "org/name")  # type: ignore[attr-defined]
    same = load_recipe("demo", ["llm.backend=llamacpp"])
    assert same == load_recipe("demo")


def test_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(SynthClipError, match="dmo: no such recipe or file; did you mean 'demo'"):
        load_recipe("dmo")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match=r"not a run directory: it holds no recipe.yaml"):
        load_recipe(tmp_path)


def test_a_file_without_a_name_takes_its_own(tmp_path: Path) -> None:
    lines = load_recipe("demo").to_yaml().splitlines(keepends=True)
    (tmp_path / "birds.yaml").write_text("".join(line for line in lines if not line.startswith("name:")))
    assert load_recipe(tmp_path / "birds.yaml").name == "birds"


def test_runtime_fields_are_no_part_of_the_results() -> None:
    fast, slow = load_recipe("demo", ["engine.workers=2"]), load_recipe("demo", ["engine.workers=1"])
    assert fast.section_results("engine") == slow.section_results("engine") == {}
    assert "per_concept" in fast.section_results("captions")
    assert "model" in fast.section_results("llm")


def test_a_recipe_is_frozen() -> None:
    recipe: Recipe = load_recipe("demo")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_differences_are_named_by_their_dotted_keys() -> None:
    old = {"training": {"lr": 1, "eps": 2}, "seed": 0, "sources": [{"kind": "csv", "path": "a"}], "stop": []}
    new = {
        "training": {"lr": 3, "eps": 2},
        "new": 1,
        "sources": [{"kind": "csv", "path": "b"}],
        "stop": ["."],
    }
    assert list(differences(old, new)) == [
        ("new", None, 1),
        ("seed", 0, None),
        ("sources.0.path", "a", "b"),
        ("stop.0", None, "."),
        ("training.lr", 1, 3),
    ]


HOSTILE = """
from pathlib import Path
Path({marker!r}).touch()
from synthclip.recipe.backends import BackendConfig
class Config(BackendConfig):
    size: int = 3
def build(config):
    raise NotImplementedError
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose backend touches the file `ran` when it is imported."""
    package = tmp_path / "stranger"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "painter.py").write_text(HOSTILE.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        monkeypatch.delitem(sys.modules, name)
    plain = yaml.safe_load(load_recipe("demo").to_yaml())
    plain["text_to_image"] = {"backend": "stranger.painter", "size": 4}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(plain))
    return tmp_path / "run"


def test_a_strangers_recipe_runs_no_code(stranger: Path) -> None:
    with pytest.raises(SynthClipError, match=r"text_to_image\.backend: 'stranger\.painter' is code.*--trust"):
        load_recipe(stranger)
    assert {state.state for state in status(stranger).stages} == {"new"}
    with pytest.raises(SynthClipError, match="--trust"):
        run(inspect_recipe(stranger), stranger.parent / "out")
    with pytest.raises(SynthClipError, match="--trust"):
        build_text_to_image(inspect_recipe(stranger).text_to_image)
    assert "size: 4" in inspect_recipe(stranger).to_yaml()
    assert not (stranger.parent / "ran").exists()
    assert not (stranger.parent / "out").exists()


def test_a_strangers_recipe_is_explained_without_its_code(stranger: Path) -> None:
    assert "text_to_image.size: 4" in explained([str(stranger), "text_to_image"])
    assert not (stranger.parent / "ran").exists()


def test_what_is_trusted_or_typed_by_the_user_is_imported(stranger: Path) -> None:
    assert load_recipe(stranger, trust=True).text_to_image.model_dump()["size"] == 4
    assert load_recipe(stranger, ["text_to_image.backend=stranger.painter"]).text_to_image.results()
    assert (stranger.parent / "ran").exists()


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("llm: {backend: openai, model: m, base_url: 'http://evil.example/v1'}", "would receive the key in"),
        ("llm: {backend: openai, model: m, api_key_variable: CLOUD_SECRET}", "CLOUD_SECRET would be sent to"),
        ("llm: {backend: openai, model: m, base_url: 'http://['}", "would receive the key in"),
        ("engine: {kind: ray, ray: {address: 'evil.example:6379'}}", "is a cluster that may run code here"),
    ],
)
def test_a_strangers_recipe_sends_no_key_and_joins_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, why: str
) -> None:
    for name in ("OPENAI_API_KEY", "CLOUD_SECRET"):
        monkeypatch.setenv(name, "secret")
    plain = yaml.safe_load(load_recipe("demo").to_yaml()) | yaml.safe_load(section)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(SynthClipError, match=why) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "secret" not in str(caught.value).replace("CLOUD_SECRET", "")
    if "[" not in section:  # which is no address at all
        assert load_recipe(tmp_path / "mine.yaml", trust=True)


def test_a_key_goes_where_the_user_types_or_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert load_recipe("one-gpu")
    assert load_recipe("one-gpu", ["llm.base_url=http://gpu7:8000/v1"])


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "..", "", ".hidden", "-o", "a\\nb", "x" * 101])
def test_a_name_cannot_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    plain = yaml.safe_load(load_recipe("demo").to_yaml()) | {"name": name}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(SynthClipError, match=r"mine\.yaml: name: ") as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ concept.__class__.__mro__ }}",
        "{{ ''.join.__globals__ }}",
        "{{ concept.__init__.__globals__['os'].system('id') }}",
    ],
)
def test_a_template_reaches_nothing_but_its_names(text: str) -> None:
    prompt, _ = Template(name="x", text=text).compile()
    with pytest.raises((SecurityError, UndefinedError)):
        prompt.render(concept="dog")
