"""The documentation says what the code does."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_pages_made_from_the_code_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        found = (DOCS / name).read_text(encoding="utf-8")
        assert found == text, f"docs/{name} is out of date: run `python docs/generate.py`"
