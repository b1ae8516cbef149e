"""What the site needs beyond Markdown: links out of docs/, notebooks as pages, examples as code."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Leads links out of docs/ to the repository, and those to a notebook to its page."""
    outside = rf"\1{config.extra['repository']}/blob/main/"
    markdown = re.sub(r"(\]\()\.\./", outside, markdown)
    return re.sub(r"(\]\([\w/]+)\.ipynb\)", r"\1.md)", markdown)


def on_files(files: Files, config: Any) -> Files:
    """Adds a page NAME.md, and its pictures, for each NAME.ipynb."""
    for notebook in [f for f in files if f.src_uri.endswith(".ipynb")]:
        for path, content in _pages(Path(notebook.abs_src_path)).items():
            files.append(File.generated(config, path, content=content))
    return files


def _pages(notebook: Path) -> dict[str, str | bytes]:
    """The Markdown of a notebook with its outputs, and its pictures, by path."""
    parts, pictures = [], {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            found = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in found:
                path = f"{notebook.stem}_{len(pictures)}.png"
                pictures[path] = base64.b64decode(found["image/png"])
                parts.append(f"![Drawn by the code above]({path})")
            else:
                parts.append(f"```text\n{''.join(found['text/plain']).rstrip()}\n```")
    parts.append(f'<a href="{notebook.name}" download>{notebook.name}</a>: this page, to run.')
    return {f"{notebook.stem}.md": "\n\n".join(parts), **pictures}


class Examples(griffe.Extension):
    """Shows the examples (`>>>`) of docstrings as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            found = r"^( *)(>>> .*?)(?=\n\s*\n|\Z)"
            code = r"\1```pycon\n\1\2\n\1```"
            obj.docstring.value = re.sub(found, code, obj.docstring.value, flags=re.S | re.M)
