"""Runs the code that stands in a page under ``<!-- recipe: NAME -->``."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def recipes(page: str) -> dict[str, str]:
    """The code of each recipe of a page, by its name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"<!-- recipe: (\w+) -->\n```python\n(.*?)```", text, re.S)
    assert len(found) == text.count("```python") == len(dict(found)), "each block has its own mark"
    return dict(found)


def run_recipe(page: str, name: str, names: dict) -> dict:
    """Runs a recipe with these names defined; returns them with what it defined."""
    names = dict(names)
    exec(compile(recipes(page)[name], f"recipe {name}", "exec"), names)
    return names
