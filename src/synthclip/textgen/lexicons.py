"""Where words come from that many people use: WordNet's lemmas, and what a Wikipedia dump holds.

WordNet is read from a WNDB `dict` folder (see wndb(5WN)). Of Wikipedia its frequent words, its collocations
and its much-read titles are taken, by the thresholds of MetaCLIP (arXiv 2309.16671, section 3.1).
"""

import bz2
import gzip
import lzma
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, cast
from xml.etree import ElementTree

from synthclip.errors import SynthClipError
from synthclip.recipe.textgen import ConceptSource

DEBIAN_WORDNET = Path("/usr/share/wordnet")
_PARTS = ("noun", "verb", "adj", "adv")
_PERSON = 18  # the lexicographer file noun.person
_DOWN = {"~", "~i"}  # hyponyms, and instances
_INSTANCE_OF = "@i"
_MAX_BIGRAMS = 20_000_000  # in memory; beyond it the rare ones go
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")  # innermost ones: taken out again and again
_MARKUP = (
    (re.compile(r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|nowiki)\b.*?</\1>|\{\|.*?\|\}", re.DOTALL), " "),
    (re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"), " "),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]"), r"\1"),
    (re.compile(r"\[\w+://\S*([^\]]*)\]"), r"\1"),
    (re.compile(r"<[^>]*>|'{2,}|^[=*#:;|!].*$", re.MULTILINE), " "),
)


class _Synset:
    """One line of a data file."""

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        self.offset, self.file = fields[0], int(fields[1])
        words = int(fields[3], 16)
        self.lemmas = [_lemma(word) for word in fields[4 : 4 + 2 * words : 2]]
        start = 5 + 2 * words
        pointers = fields[start : start + 4 * int(fields[start - 1])]
        self.pointers = list(zip(pointers[::4], pointers[1::4], strict=True))

    @property
    def is_named_person(self) -> bool:
        return self.file == _PERSON and any(symbol == _INSTANCE_OF for symbol, _ in self.pointers)


def open_bytes(path: Path) -> IO[bytes]:
    """A file for reading, unpacked where it begins as bzip2, gzip or xz do, whatever its name says."""
    with path.open("rb") as handle:
        start = handle.read(6)
    for magic, opened in ((b"BZh", bz2.open), (b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return cast(IO[bytes], opened(path))
    return path.open("rb")


def wordnet_files(folder: Path) -> list[Path]:
    """The folder's data files. Raises SynthClipError where one is missing."""
    paths = [folder / f"{kind}.{part}" for part in _PARTS for kind in ("data", "index")]
    for path in paths:
        if not path.is_file():
            raise SynthClipError(
                f"{path}: no such file: give WordNet's `dict` folder as `path`, "
                "or `apt-get install wordnet-base`"
            )
    return paths


def wordnet(folder: Path, source: ConceptSource) -> Iterator[str]:
    """Every lemma, nouns first, in the order of the files; a lemma of several synsets comes several times.

    With `source.include` only nouns below (or the same as) the most frequent sense of one of its words.
    Raises SynthClipError with file and line.
    """
    wordnet_files(folder)
    if source.include:
        synsets = _below(folder, source.include)
    else:
        synsets = (synset for part in _PARTS for synset in _read(folder / f"data.{part}"))
    for synset in synsets:
        if source.named_people or not synset.is_named_person:
            yield from synset.lemmas


def _below(folder: Path, include: Sequence[str]) -> Iterator[_Synset]:
    nouns = {synset.offset: synset for synset in _read(folder / "data.noun")}
    senses = _first_senses(folder / "index.noun")
    wanted = []
    for word in include:
        key = word.lower().replace(" ", "_")
        forms = (key, key.removesuffix("s"), key.removesuffix("es"))
        found = next((form for form in forms if form in senses), None)
        if found is None:
            raise SynthClipError(f"include: {word!r}: WordNet has no such noun: use a word such as 'food'")
        wanted.append(senses[found])
    reached = set()
    while wanted:
        offset = wanted.pop()
        if offset not in reached:
            reached.add(offset)
            wanted += [target for symbol, target in nouns[offset].pointers if symbol in _DOWN]
    return (synset for offset, synset in nouns.items() if offset in reached)


def _first_senses(path: Path) -> dict[str, str]:
    """The offset of each lemma's most frequent sense, which the index lists first."""
    senses = {}
    for number, line in _lines(path):
        fields = line.split()
        try:
            senses[fields[0]] = fields[-int(fields[2])]
        except (IndexError, ValueError):
            raise SynthClipError(f"{path}, line {number}: not a line of a WordNet index") from None
    return senses


def _read(path: Path) -> Iterator[_Synset]:
    for number, line in _lines(path):
        try:
            yield _Synset(line)
        except (IndexError, ValueError):
            raise SynthClipError(f"{path}, line {number}: not a line of WordNet data: cut short?") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.startswith("  "):  # the licence
                yield number, line


def _lemma(word: str) -> str:
    """Without the marker of an adjective's position, such as `(a)`."""
    return word.partition("(")[0].replace("_", " ")


def wikipedia(dump: Path, source: ConceptSource) -> Iterator[str]:
    """Uni-grams, then bi-grams, by falling count, then titles in the order of the dump.

    `dump` is a `pages-articles` file, compressed or not. Raises SynthClipError for another or a cut file.
    """
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    titles: list[str] = []
    for title, text in _articles(dump):
        titles.append(title)
        tokens = _WORD.findall(_plain(text))
        words.update(tokens)
        pairs.update(pairwise(tokens))
        if len(pairs) > _MAX_BIGRAMS:
            pairs = Counter({pair: count for pair, count in pairs.items() if count > 1})
    yield from (word for word, count in words.most_common() if count >= source.min_count)
    total = sum(words.values())
    for (first, second), count in pairs.most_common():
        # Pointwise mutual information in bits; both words must be frequent, or chance finds rule the list.
        if min(words[first], words[second]) >= source.min_count:
            information = math.log2(count * total / (words[first] * words[second]))
            if information >= source.min_pmi:
                yield f"{first} {second}"
    if source.views is not None:
        views = _views(Path(source.views).expanduser())
        yield from (title for title in titles if views[title] >= source.min_views)


def _articles(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, wikitext) of every article that is no redirect."""
    title = text = space = ""
    redirect = False
    try:
        with open_bytes(dump) as handle:
            stream = ElementTree.iterparse(handle, events=("start", "end"))
            _, root = next(stream)
            for event, element in stream:
                if event == "start":
                    continue
                tag = element.tag.rpartition("}")[2]
                if tag == "title":
                    title = element.text or ""
                elif tag == "ns":
                    space = element.text or ""
                elif tag == "redirect":
                    redirect = True
                elif tag == "text":
                    text = element.text or ""
                elif tag == "page":
                    if space == "0" and not redirect:
                        yield title, text
                    redirect = False
                    root.clear()
    except (ElementTree.ParseError, EOFError, StopIteration) as error:
        raise SynthClipError(
            f"{dump}: not a complete Wikipedia dump ({error}); last page read: {title!r}: fetch it again"
        ) from None
    except OSError as error:
        raise SynthClipError(f"{dump}: cannot be read: {error}: give a pages-articles.xml.bz2") from None


def _plain(text: str) -> str:
    """Wikitext without markup, well enough to count words."""
    found = 1
    while found:
        text, found = _TEMPLATE.subn(" ", text)
    for pattern, into in _MARKUP:
        text = pattern.sub(into, text)
    return text


def _views(path: Path) -> Counter[str]:
    """Page views by title, from Wikimedia's hourly (`en Title count bytes`) or daily files."""
    views: Counter[str] = Counter()
    with open_bytes(path) as handle:
        for line in handle:
            fields = line.decode("utf-8-sig", "replace").split()
            count = fields[4] if len(fields) >= 6 else fields[2] if len(fields) >= 3 else ""
            if count.isdecimal() and fields[0] in ("en", "en.m", "en.wikipedia"):
                views[fields[1].replace("_", " ")] += int(count)
    if not views:
        raise SynthClipError(
            f"{path}: no page views of the English Wikipedia in it: give an hourly or daily file of Wikimedia"
        )
    return views
