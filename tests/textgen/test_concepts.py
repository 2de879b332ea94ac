"""The concept bank: every source, every filter, every file that is broken."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_runs import RunText, table

from synthclip.errors import SynthClipError
from synthclip.recipe.textgen import CaptionsConfig, ConceptsConfig, Template
from synthclip.samples.csv_rows import records
from synthclip.textgen.concepts import bank, refuse_unspaced
from synthclip.textgen.matcher import ConceptMatcher
from synthclip.textgen.prompts import clean


def build(*sources: dict[str, Any], **values: Any) -> tuple[list[str], dict[str, int]]:
    """The bank's texts, and what was refused."""
    rejected: Counter[str] = Counter()
    config = ConceptsConfig.model_validate({"sources": sources or [{}], **values})
    concepts = bank(config, lambda row, reason: rejected.update([reason]))
    return [text for text, _ in concepts], dict(rejected)


def file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_the_bundled_bank_has_200_concrete_nouns() -> None:
    texts, rejected = build()
    assert len(texts) >= 200
    assert not rejected
    assert {"dog", "umbrella"} <= set(texts)


def test_sources_are_merged_in_order_and_keep_their_names(tmp_path: Path, run_text: RunText) -> None:
    text = file(tmp_path, "a.txt", "\ufeffdog\r\ncat\n")
    csv = file(tmp_path, "b.csv", 'id,name\n1,"cat"\n2,"red, blue"\n')
    entries = file(tmp_path, "metadata.json", json.dumps(["dog", "New York"]))
    sources = [
        {"kind": "text", "path": text},
        {"kind": "csv", "path": csv, "column": "name"},
        {"kind": "json", "path": entries},
    ]
    run = run_text(f"concepts.sources={json.dumps(sources)}", stages=("concepts",))
    rows = table(run, "concepts").to_pylist()
    assert [(row["concept_id"], row["text"], row["source"]) for row in rows] == [
        (0, "dog", "text"),
        (1, "cat", "text"),
        (2, "red, blue", "csv"),
        (3, "New York", "json"),
    ]
    [manifest] = run.manifests("concepts")
    assert manifest.rejected == {"duplicate": 2}


def test_entries_that_are_no_concepts_are_counted_by_reason(tmp_path: Path) -> None:
    entries = ["dog", "", "  ", 7, None, ["x"], "dog", "x" * 10_000_000, "a\tb", "cat1", " bee "]
    source = {"kind": "json", "path": file(tmp_path, "bank.json", json.dumps(entries))}
    texts, rejected = build(source, pattern="[a-z ]+")
    assert texts == ["dog", "bee"]
    assert rejected == {
        "duplicate": 1,
        "empty": 2,
        "not a string": 3,
        "pattern": 1,
        "too long": 1,
        "unprintable characters": 1,
    }


def test_blocked_words_are_found_inside_entries_in_any_case(tmp_path: Path) -> None:
    source = {"kind": "text", "path": file(tmp_path, "bank.txt", "dog\nHot Dog\nhotdog\ncat\n")}
    texts, rejected = build(source, block=[file(tmp_path, "block.txt", "DOG\n\n")])
    assert texts == ["hotdog", "cat"]
    assert rejected == {"blocked": 2}


def test_the_nsfw_list_comes_from_its_package(tmp_path: Path) -> None:
    pytest.importorskip("better_profanity", reason="needs the extra 'concepts'")
    source = {"kind": "text", "path": file(tmp_path, "bank.txt", "dog\nporn\n")}
    assert build(source, block=["nsfw"]) == (["dog"], {"blocked": 1})


def test_wordfreq_gives_the_most_frequent_words() -> None:
    pytest.importorskip("wordfreq", reason="needs the extra 'concepts'")
    texts, _ = build({"kind": "wordfreq", "top": 100})
    assert len(texts) == 100
    assert "the" in texts


NOUNS = {  # offset: (lexicographer file, words, pointers)
    100: (3, ["entity"], [("~", 200), ("~", 500)]),
    200: (13, ["food"], [("@", 100), ("~", 300)]),
    300: (13, ["red_apple", "Malus"], [("@", 200), ("~", 400)]),
    400: (13, ["pippin"], [("@", 300)]),
    500: (18, ["painter"], [("@", 100), ("~i", 600)]),
    600: (18, ["Paula_Modersohn"], [("@i", 500)]),
}


def wordnet(folder: Path) -> str:
    """A WordNet of six nouns and an adjective, in the format of wndb(5WN)."""
    licence = "  1 This software and database is free.  \n"
    data = index = licence
    for offset, (lexicographer, words, pointers) in NOUNS.items():
        lemmas = " ".join(f"{word} 0" for word in words)
        targets = "".join(f"{symbol} {target:08d} n 0000 " for symbol, target in pointers)
        head = f"{offset:08d} {lexicographer:02d} n {len(words):02x}"
        data += f"{head} {lemmas} {len(pointers):03d} {targets}| gloss\n"
        index += "".join(f"{word.lower()} n 1 0 1 0 {offset:08d}  \n" for word in words)
    adjective = "00000700 00 a 01 asleep(p) 0 000 | gloss\n"
    for part, lines in {"noun": data, "adj": licence + adjective, "verb": licence, "adv": licence}.items():
        file(folder, f"data.{part}", lines)
        file(folder, f"index.{part}", index if part == "noun" else licence)
    return str(folder)


def test_wordnet_gives_its_lemmas_without_named_people(tmp_path: Path) -> None:
    source = {"kind": "wordnet", "path": wordnet(tmp_path)}
    texts, _ = build(source)
    assert texts == ["entity", "food", "red apple", "Malus", "pippin", "painter", "asleep"]
    assert "Paula Modersohn" in build({**source, "named_people": True})[0]


def test_wordnet_below_a_domain(tmp_path: Path) -> None:
    texts, _ = build({"kind": "wordnet", "path": wordnet(tmp_path), "include": ["foods"]})
    assert texts == ["food", "red apple", "Malus", "pippin"]


PAGE = "<page><title>{title}</title><ns>{space}</ns>{redirect}<revision><text>{text}</text></revision></page>"


def dump(folder: Path, name: str = "pages.xml.bz2") -> str:
    articles = [
        (
            "Dog",
            0,
            "",
            "The '''dog''' {{cite|{{x}} dog}} chases [[Cat|the cat]]. " * 3 + "[[File:a.png|thumb|junk]]",
        ),
        ("Cat", 0, "", "The cat&lt;ref&gt;junk&lt;/ref&gt; sees Hong Kong. Hong Kong sees the cat."),
        ("Talk", 1, "", "junk " * 50),
        ("Hound", 0, '<redirect title="Dog" />', "junk " * 50),
    ]
    pages = "".join(
        PAGE.format(title=title, space=space, redirect=redirect, text=text)
        for title, space, redirect, text in articles
    )
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">{pages}</mediawiki>'
    return file(folder, name, bz2.compress(xml.encode()) if name.endswith("bz2") else xml)


@pytest.mark.parametrize("name", ["pages.xml", "pages.xml.bz2"])
def test_wikipedia_words_pairs_and_titles(tmp_path: Path, name: str) -> None:
    views = file(
        tmp_path, "views", "en.wikipedia Cat 1 desktop 50 A1\nen.wikipedia Cat 1 web 40 A1\nen Dog 10 0\n"
    )
    texts, _ = build(
        {"kind": "wikipedia", "path": dump(tmp_path, name), "min_count": 2, "min_pmi": 3.5, "views": views}
    )
    assert {"dog", "cat", "Hong", "Kong", "Hong Kong", "Cat"} <= set(texts)
    assert not {"junk", "cite", "the cat", "Dog"} & set(texts)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "json", "content": '["a", "b'}, "not JSON"),
        ({"kind": "json", "content": '{"a": 1}'}, "expected a JSON list"),
        ({"kind": "csv", "content": "a,b\n1,2\n"}, "no column 'text'"),
        ({"kind": "text", "content": b"dog\n\xff\n"}, "not UTF-8"),
        ({"kind": "wikipedia", "content": "<mediawiki><page>"}, "not a complete Wikipedia dump"),
        ({"kind": "wikipedia", "content": "not xml"}, "not a complete Wikipedia dump"),
    ],
)
def test_a_broken_source_is_named(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    path = file(tmp_path, "bank", source.pop("content"))
    with pytest.raises(SynthClipError, match=message) as error:
        build({**source, "path": path})
    assert path in str(error.value)


def test_a_dump_that_is_cut_short_is_named(tmp_path: Path) -> None:
    whole = Path(dump(tmp_path)).read_bytes()
    path = file(tmp_path, "cut.xml.bz2", whole[: len(whole) // 2])
    with pytest.raises(SynthClipError, match="not a complete Wikipedia dump"):
        build({"kind": "wikipedia", "path": path})


def test_a_wordnet_without_its_index_is_named(tmp_path: Path, run_text: RunText) -> None:
    folder = wordnet(tmp_path)
    (tmp_path / "index.noun").unlink()
    with pytest.raises(SynthClipError, match=r"index\.noun: no such file"):
        run_text(f"concepts.sources=[{{kind: wordnet, path: {folder}}}]", stages=("concepts",))


def test_an_empty_bank_stops_the_run(tmp_path: Path, run_text: RunText) -> None:
    path = file(tmp_path, "bank.txt", "\n\n")
    with pytest.raises(SynthClipError, match=r"the concept bank is empty \(2 empty\)"):
        run_text(f"concepts.sources=[{{kind: text, path: {path}}}]", stages=("concepts",))


def test_a_missing_file_is_named_before_work_starts(tmp_path: Path, run_text: RunText) -> None:
    with pytest.raises(SynthClipError, match="No such file"):
        run_text(f"concepts.sources=[{{kind: text, path: {tmp_path}/none.txt}}]", stages=("concepts",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("concepts.sources=[{kind: text}]", "needs a path"),
        ("concepts.sources=[{kind: builtin, path: x}]", "takes no path"),
        ("concepts.pattern='['", "not a regular expression"),
    ],
)
def test_a_source_that_cannot_be_is_refused_when_the_recipe_is_read(
    run_text: RunText, override: str, message: str
) -> None:
    with pytest.raises(SynthClipError, match=message):
        run_text(override, stages=("concepts",))


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("packed", [bytes, bz2.compress, gzip.compress, lzma.compress])
def test_a_mark_before_the_text_and_a_packed_file_change_nothing(tmp_path: Path, packed: Any) -> None:
    block = file(tmp_path, "block.txt", BOM + b"dog\n")
    for kind, content in {
        "text": "dog\ncat\n",
        "csv": "text,id\ndog,1\ncat,2\n",
        "json": '["dog", "cat"]',
    }.items():
        path = file(tmp_path, f"bank.{kind}", packed(BOM + content.encode()))
        assert build({"kind": kind, "path": path})[0] == ["dog", "cat"]
        assert build({"kind": kind, "path": path}, block=[block]) == (["cat"], {"blocked": 1})


def test_a_damaged_package_is_one_line(tmp_path: Path) -> None:
    path = file(tmp_path, "bank.txt", gzip.compress(b"dog\n" * 1000)[:-12])
    with pytest.raises(SynthClipError, match="compressed data is damaged"):
        build({"kind": "text", "path": path})


def test_a_stray_quote_costs_its_own_row_alone(tmp_path: Path) -> None:
    rows = ["text", *(f"word{n}" for n in range(10)), '"stray quote', *(f"other{n}" for n in range(989))]
    path = file(tmp_path, "bank.csv", "\n".join(rows) + "\n")
    kept: list[dict[str, str]] = []
    config = ConceptsConfig.model_validate({"sources": [{"kind": "csv", "path": path}]})
    concepts = bank(config, lambda row, reason: kept.append({**row, "reason": reason}))
    assert len(concepts) == 999
    assert kept == [{"text": "bank.csv, line 12", "source": "csv", "reason": "quotes do not match"}]


def test_a_quoted_field_may_go_over_lines_and_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "bank.csv", 'id,text\n1,"red\nball"\n2\n\n3,"a ""b"", c"\n4,dog\n')
    assert build({"kind": "csv", "path": path}) == (
        ['a "b", c', "dog"],
        {"unprintable characters": 1, "wrong number of columns": 1},
    )


@given(
    st.lists(
        st.lists(st.text(alphabet='ab",\n\r é\u2028', max_size=6), min_size=2, max_size=2),
        min_size=1,
        max_size=12,
    )
)
def test_what_a_writer_of_csv_wrote_is_read_back(rows: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    found = list(records(io.BytesIO(out.getvalue().encode()), ","))
    assert [fields for _, _, fields in found] == [["x", "y"], *rows]


WORDS = st.text(alphabet="aéeñüÅΩ한글ไทย́̈", min_size=1, max_size=6)


@given(WORDS, WORDS, st.sampled_from(["NFC", "NFD"]), st.sampled_from(["NFC", "NFD"]))
def test_a_concept_matches_however_its_accents_are_written(
    first: str, other: str, one: Any, two: Any
) -> None:
    written = unicodedata.normalize(one, first)
    with tempfile.TemporaryDirectory() as folder:
        concepts, _ = build({"kind": "text", "path": file(Path(folder), "bank.txt", f"{written}\n")})
    template = Template(name="t", text="x", min_words=1)
    config = CaptionsConfig(templates=(template,), min_words=1)
    for concept in concepts:
        said = unicodedata.normalize(two, f"one {first} and {other} here")
        caption, reason = clean(said, concept, config, template)
        assert reason is None
        offsets, _ = ConceptMatcher(concepts).match([caption])
        assert offsets[-1] == 1


@pytest.mark.parametrize(
    "concept",
    [
        "ice\u00a0cream",
        "می\u200cخواهم",
        "👩\u200d🚀",
        "❤\ufe0f",
        "क्\u200dष",
    ],  # NBSP, ZWNJ, ZWJ of emoji, VS16, ZWJ
)
def test_joiners_and_hard_spaces_are_no_control_characters(tmp_path: Path, concept: str) -> None:
    texts, rejected = build({"kind": "text", "path": file(tmp_path, "bank.txt", f"{concept}\n")})
    assert (texts, rejected) == ([concept.replace("\u00a0", " ")], {})
    template = Template(name="t", text="x")
    said = f"Here is {concept} today"
    assert clean(said, texts[0], CaptionsConfig(templates=(template,)), template)[1] is None


@pytest.mark.parametrize(
    ("concept", "said"),
    [
        ("Hund", "Ein Hund läuft durch den Schnee."),
        ("vélo", "Un vélo rouge contre un mur."),
        ("perro", "Un perro corre por la playa."),
        ("собака", "Рыжая собака лежит на траве."),
        ("γάτα", "Μια γάτα κοιμάται στον ήλιο."),
        ("كلب", "يجري كلب على الشاطئ الآن"),
        ("סוס", "סוס לבן עומד בשדה ירוק"),
        ("कुत्ता", "एक कुत्ता समुद्र तट पर दौड़ता है"),
        ("con mèo", "Một con mèo ngủ trên ghế."),
        ("kedi", "Küçük bir kedi uyuyor."),
    ],
)
def test_languages_with_spaces_are_matched(concept: str, said: str) -> None:
    template = Template(name="t", text="x")
    caption, reason = clean(said, concept, CaptionsConfig(templates=(template,)), template)
    assert reason is None
    assert ConceptMatcher([concept]).match([caption])[0][-1] == 1


@pytest.mark.parametrize(
    ("concepts", "said"),
    [
        (["狗", "猫"], "一只棕色的狗在海滩上奔跑，海浪拍打着岸边。"),
        (["いぬ", "ねこ"], "茶色い犬が海辺を走っている。"),
        (["สุนัข", "แมว"], "สุนัขสีน้ำตาลวิ่งเล่นบนชายหาดในตอนเช้า"),
        (["ឆ្កែ", "ឆ្មា"], "ឆ្កែពណ៌ត្នោតកំពុងរត់នៅលើឆ្នេរខ្សាច់"),
    ],
)
def test_languages_without_spaces_are_refused_in_one_line(
    concepts: list[str], said: str, tmp_path: Path, run_text: RunText
) -> None:
    path = file(tmp_path, "bank.txt", "\n".join(concepts))
    with pytest.raises(SynthClipError, match=r"2 of 2, such as .* without spaces between words") as caught:
        run_text(f"concepts.sources=[{{kind: text, path: {path}}}]", stages=("concepts",))
    assert "\n" not in str(caught.value)
    template = Template(name="t", text="x", min_words=1)
    config = CaptionsConfig(templates=(template,), must_contain_concept=False)
    assert clean(said, concepts[0], config, template)[1] == "no spaces between words"
    refuse_unspaced([*concepts, "dog", "cat"])  # half of a bank may be in such a script


def test_a_joiner_does_not_hide_a_blocked_word(tmp_path: Path) -> None:
    source = {"kind": "text", "path": file(tmp_path, "bank.txt", "do\u200dg\n")}
    assert build(source, block=[file(tmp_path, "block.txt", "dog\n")]) == ([], {"blocked": 1})


def test_page_views_that_are_none_are_named(tmp_path: Path) -> None:
    views = file(tmp_path, "views.bz2", gzip.compress(b"de Hund 10 0\n"))
    with pytest.raises(SynthClipError, match="no page views of the English Wikipedia"):
        build({"kind": "wikipedia", "path": dump(tmp_path), "views": views, "min_count": 2})
    packed = file(tmp_path, "other.bz2", gzip.compress(b"en Dog 100 0\n"))
    assert "Dog" in build({"kind": "wikipedia", "path": dump(tmp_path), "views": packed, "min_count": 2})[0]
