"""The site builds without a warning, all of its code is run by some test, and the notebook runs."""

import re
import subprocess
import sys
import tempfile

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from benchmarks.core.common import ROOT
from tests import recipes

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NOTEBOOK = DOCS / "first_model.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: links, anchors and the names in api.md are checked by the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built_and_asks_no_other_host(site):
    pages = {p.stem: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    assert {p.stem for p in [*PAGES, NOTEBOOK]} <= set(pages)
    for name, html in pages.items():
        foreign = re.findall(r'(?:src|<link[^>]*href)="?(https?:[^" >]+)', html)
        assert not foreign, f"{name} loads {foreign}"
    assert "shrinkage" in (site / "search" / "search_index.json").read_text(encoding="utf-8")


def test_links_out_of_the_docs_lead_to_files_of_the_repository(site):
    (url,) = re.findall(r"^url = (.*)$", (ROOT / "setup.cfg").read_text(), re.M)
    html = "".join(p.read_text(encoding="utf-8") for p in site.glob("*.html"))
    found = set(re.findall(rf'{url}/blob/main/([^"#]+)', html))
    assert "benchmarks/README.md" in found and all((ROOT / path).exists() for path in found)


def test_the_api_page_has_every_public_name(site):
    html = (site / "api.html").read_text(encoding="utf-8")
    missing = [n for n in nfa.__all__ if f'id="timm_nfaug.{n}"' not in html]
    assert not missing, f"add to docs/api.md: {missing}"
    assert "&gt;&gt;&gt; " in html and "<blockquote>" not in html, "examples are shown as code"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_run_by_tests(page):
    """Each block has a mark, and a test file that reads the page names the mark."""
    tests = [p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py")]
    for mark in recipes.recipes(page.name):
        claimed = any(f'"{page.name}"' in text and f'"{mark}"' in text for text in tests)
        assert claimed, f"no test runs recipe {mark} of {page.name}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES])
def test_shell_blocks_are_valid_shell(page):
    code = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_start(toy_images):
    levels, labels = toy_images
    loader = DataLoader(TensorDataset(levels, labels), batch_size=60)
    images = recipes.run_recipe("index.md", "start", {"loader": loader})["images"]
    moved = (images != levels).flatten(1).any(1)
    assert images.dtype == torch.uint8 and 10 < int(moved.sum()) < 50, "p is 0.5"


def test_use_of_a_trained_flow(toy_images, small_flow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_flow.save_pretrained("runs/mine/flow")
    levels, labels = toy_images
    data = TensorDataset(levels, labels)
    data.classes = ["a", "b", "c"]
    names = {"images": levels, "labels": labels, "loader": DataLoader(data, batch_size=60)}
    found = recipes.run_recipe("train_flow.md", "use", names)
    assert 10 < int((found["moved"] != levels).flatten(1).any(1).sum()) < 50, "p is 0.5"
    assert not torch.equal(found["aug"].flow.prior.modes, small_flow.prior.modes), "fitted"


def gives(notebook) -> list[list[str]]:
    """What each code cell of a notebook gives: pictures, and text without its numbers."""
    return [
        [
            "picture" if "image/png" in o.get("data", {}) else re.sub(r"[\d.]+", "#", o["text"])
            for o in cell.outputs
            if o.get("name") != "stderr"
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_gives_what_its_page_shows(tmp_path, monkeypatch):
    """`python -m tests.test_site` runs it and keeps what it gives."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown, again = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    counts = [cell.execution_count for cell in shown.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "was not run from top to bottom"
    for cell in again.cells:
        cell.source = cell.source.replace("epochs=15", "epochs=1")
    run(again, tmp_path)
    assert gives(again) == gives(shown)
    assert NOTEBOOK.stat().st_size < 300_000, "pictures are small"


def run(notebook, folder) -> None:
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, coalesce_streams=True, timeout=300, resources=where).execute()


def main() -> None:
    """Runs the notebook anew and keeps its pictures and prints."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, folder)
    for cell in notebook.cells:
        cell.metadata = {}  # times
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
