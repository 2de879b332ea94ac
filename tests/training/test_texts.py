"""Which sentences of a caption a step reads."""

from hypothesis import given
from hypothesis import strategies as st

from synthclip.training.loader import SENTENCES, sub_caption

SENTENCE = st.from_regex(r"[A-Z][a-z ]{0,8}[a-z]!", fullmatch=True)
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=SENTENCES, max_size=SENTENCES)


@given(st.lists(SENTENCE, min_size=1, max_size=6, unique=True), st.integers(1, 7), DRAWS)
def test_so_many_sentences_in_their_order(sentences: list[str], count: int, draws: list[float]) -> None:
    drawn = sub_caption(" ".join(sentences), count, draws)
    kept = [sentence for sentence in sentences if sentence in drawn.replace("! ", "!\n").splitlines()]
    assert drawn == " ".join(kept)
    assert len(kept) == min(count, len(sentences))


def test_every_sentence_has_its_turn() -> None:
    caption = "A dog runs. It is brown! Where to? Home."
    seen = set()
    for first in range(4):
        draws = [0.9] * SENTENCES
        draws[first] = 0.1
        seen.add(sub_caption(caption, 1, draws))
    assert seen == {"A dog runs.", "It is brown!", "Where to?", "Home."}
    assert sub_caption(caption, 2, [0.5, 0.9, 0.7, 0.1] + [0.0] * 28) == "A dog runs. Home."
    assert sub_caption("One sentence with no end", 1, [0.5] * SENTENCES) == "One sentence with no end"
