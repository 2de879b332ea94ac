"""WordNet as a source of concepts: the lemmas of a WNDB `dict` folder (see wndb(5WN))."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from synthclip.errors import SynthClipError

DEBIAN = Path("/usr/share/wordnet")
_PARTS = ("noun", "verb", "adj", "adv")
_PERSON = 18  # the lexicographer file noun.person
_DOWN = {"~", "~i"}  # hyponyms, and instances
_INSTANCE_OF = "@i"


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


def files(folder: Path) -> list[Path]:
    """The folder's data files. Raises SynthClipError where one is missing."""
    paths = [folder / f"{kind}.{part}" for part in _PARTS for kind in ("data", "index")]
    for path in paths:
        if not path.is_file():
            raise SynthClipError(
                f"{path}: no such file: give WordNet's `dict` folder as `path`, "
                "or `apt-get install wordnet-base`"
            )
    return paths


def lemmas(folder: Path, include: Sequence[str], named_people: bool) -> Iterator[str]:
    """Every lemma, nouns first, in the order of the files; a lemma of several synsets comes several times.

    With `include` only nouns below (or the same as) the most frequent sense of one of its words.
    Raises SynthClipError with file and line.
    """
    files(folder)
    if include:
        synsets = _below(folder, include)
    else:
        synsets = (synset for part in _PARTS for synset in _read(folder / f"data.{part}"))
    for synset in synsets:
        if named_people or not synset.is_named_person:
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
