"""Imports run one way, and `import timm_nfaug` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# a module may import modules of lower rows, and of its own package
LAYERS = [
    {"_utils"},
    {"pixels", "lift", "labels", "reading", "grid"},
    {"config"},
    {"stored", "card", "remote", "of_diffusers"},
    {"hub", "autoencoder"},
    {"flows"},
    {"moves"},
    {"change"},
    {"inputs"},
    {"spec", "space", "advice"},
    {"fit", "saved", "unchanged"},
    {"augment"},
    {"from_string"},
    {"data"},
    {"integration"},
    {"pictures"},
    {"preview", "train", "copies"},
    {"commands", "plugin"},
    {"materialise"},
    {"__main__"},
]


def layer(module: str) -> int:
    part = module.partition(".")[0]
    for i, names in enumerate(LAYERS):
        if part in names:
            return i
    raise AssertionError(f"timm_nfaug.{module} stands in no layer; add it to LAYERS")


def top_level_imports(path: Path) -> set[str]:
    """Absolute names of what a file imports when it is imported itself."""
    package = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_imports_only_lower_layers():
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in (ROOT / "timm_nfaug").rglob("*.py")
    }
    checked = 0
    for path in (ROOT / "timm_nfaug").rglob("*.py"):
        if path.name == "__init__.py":
            continue
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("timm_nfaug.")
        for name in top_level_imports(path):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != "timm_nfaug.__init__":
                target = target.removeprefix("timm_nfaug.")
                same = target.partition(".")[0] == own.partition(".")[0]
                assert same or layer(target) < layer(own), f"{own} imports {target}"
                checked += 1
    assert checked > 30


def test_the_package_never_imports_trainer_or_benchmarks():
    for folder, banned in (
        ("timm_nfaug", ("train_flow", "benchmarks")),
        ("train_flow", ("benchmarks",)),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            names = {n.split(".")[0] for n in top_level_imports(path)}
            assert not names & set(banned), path


def test_import_is_light():
    code = "import sys, timm_nfaug; print([m for m in ('matplotlib', 'diffusers', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
