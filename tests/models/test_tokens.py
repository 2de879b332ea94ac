"""The ids that training makes of a text, against open_clip's own tokenizer."""

import open_clip
from hypothesis import given
from hypothesis import strategies as st

from synthclip.models.build import build_encode, open_clip_config
from synthclip.recipe.training import ModelConfig, TextConfig

CONTEXT = 24
MODEL = ModelConfig(text=TextConfig(context_length=CONTEXT))
THEIRS = open_clip.SimpleTokenizer(context_length=CONTEXT)
ENCODE = build_encode(open_clip_config(MODEL)["model_cfg"])

PIECES = [
    "it's ",
    "THE",
    " 3rd",
    "don't ",
    "&amp;",
    "<start_of_text>",
    "\n",
    "é",
    "ﬁ",
    " \u00a0",
    "â€™",
    "snow-white",
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join))
def test_ids_are_open_clips(text: str) -> None:
    expected = THEIRS([text])[0].tolist()
    ids = ENCODE(text)
    assert [*ids, *[0] * (CONTEXT - len(ids))] == expected
