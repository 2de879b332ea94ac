"""A Wikipedia dump as a source of concepts: its frequent words, its collocations, its much-read titles.

The thresholds are those of MetaCLIP (arXiv 2309.16671, section 3.1).
"""

import bz2
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from synthclip.errors import SynthClipError
from synthclip.recipe.textgen import ConceptSource

_MOST_BIGRAMS = 20_000_000  # in memory; beyond it the rare ones go
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")  # innermost ones: taken out again and again
_MARKUP = (
    (re.compile(r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|nowiki)\b.*?</\1>|\{\|.*?\|\}", re.DOTALL), " "),
    (re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"), " "),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]"), r"\1"),
    (re.compile(r"\[\w+://\S*([^\]]*)\]"), r"\1"),
    (re.compile(r"<[^>]*>|'{2,}|^[=*#:;|!].*$", re.MULTILINE), " "),
)


def entries(dump: Path, source: ConceptSource) -> Iterator[str]:
    """Uni-grams, then bi-grams, by falling count, then titles in the order of the dump.

    `dump` is a `pages-articles` file, XML or bz2. Raises SynthClipError where it is neither, or cut short.
    """
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    titles: list[str] = []
    for title, text in _articles(dump):
        titles.append(title)
        tokens = _WORD.findall(_plain(text))
        words.update(tokens)
        pairs.update(pairwise(tokens))
        if len(pairs) > _MOST_BIGRAMS:
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
        with bz2.open(dump) if dump.suffix == ".bz2" else dump.open("rb") as handle:
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
            f"{dump}: no whole Wikipedia dump ({error}); last page read: {title!r}: fetch it again"
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
    """Page views by title, from Wikimedia's hourly (`en Title count bytes`) or daily files, bz2 or plain."""
    views: Counter[str] = Counter()
    with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as handle:
        for line in handle:
            fields = line.decode("utf-8", "replace").split()
            count = fields[4] if len(fields) >= 6 else fields[2] if len(fields) >= 3 else ""
            if count.isdecimal() and fields[0] in ("en", "en.m", "en.wikipedia"):
                views[fields[1].replace("_", " ")] += int(count)
    return views
