"""For mkdocs: links to files of the repository that are no pages lead to the repository."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Rewrite links that leave the folder of the documentation."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    there = f"]({config['repo_url']}/blob/main/"
    return re.sub(r"\]\(" + re.escape(up) + r"(?!\.)", there, markdown)
