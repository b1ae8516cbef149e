"""Every public class and function of the package says what it does and shows it in an example that runs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for p in (ROOT / "timm_nfaug").rglob("*.py") if p.name != "plugin.py")
# words of docstrings, comments and messages that a reader of the field would stumble over
BANNED = re.compile(
    r"\bdata sets?\b|of another make|\bmends?\b|\bsturdier\b|\bin vain\b|goes? on with (it|them)\b"
)


def public(path: Path):
    """Top-level classes and functions without a leading underscore."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_":
            yield node


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_names_have_examples(path):
    lacking = [n.name for n in public(path) if ">>>" not in (ast.get_docstring(n) or "")]
    assert not [n for n in lacking if n != "main"], f"{name(path)}: {lacking} have no example"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_docstrings_start_with_a_verb_or_a_noun_phrase(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)):
            text = ast.get_docstring(node) or ""
            assert not text.startswith(("Of ", "Whose ", "As ")), f"{name(path)}: {text[:70]}"


@pytest.mark.parametrize("folder", ["timm_nfaug", "train_flow", "benchmarks"])
def test_plain_words(folder):
    for path in (ROOT / folder).rglob("*.py"):
        found = BANNED.search(path.read_text(encoding="utf-8"))
        assert not found, f"{name(path)} says {found[0]!r}"
