"""The model card of a flow: README.md with what its config knows, and code that runs as it stands."""

import html
import json
import math
from typing import Any

import yaml

from .config import FlowConfig

HERE = "local-dir:."  # the directory that the card lies in
CARD = """---
{front}---

# {title}

A class-conditional normalizing flow of `timm_nfaug`, for augmentation with timm.

| | |
| --- | --- |
{table}

## Usage
{note}
```python
import torch
import timm_nfaug as nfa

images = torch.randint(0, 256, (4, {size}), dtype=torch.uint8)  # yours, or a PIL image
labels = torch.randint(0, {classes}, (4,))
{augment}
flow = nfa.ConditionalFlow.from_pretrained({source})
z, log_det = flow(images / 127.5 - 1{labels})  # x (B, {size}) in [-1, 1]
```
{training}"""
AUGMENT = """
augment = nfa.NFAugment.from_pretrained({source}, strength=0.5, p=0.5)
images, labels = augment(images, labels)
"""
WHERE = f"""
Run this in the directory of this card, or put its path for the dot of `{HERE}`.
"""


def model_card(config: FlowConfig, name: str, source: str = HERE) -> str:
    """Writes the card of a flow.

    Args:
        name: the title.
        source: what `from_pretrained` takes: a bundled name, a Hub id; else the card's directory.

    >>> text = model_card(FlowConfig("linear", (3, 8, 8), num_classes=2), "mine", "org/mine")
    >>> 'from_pretrained("org/mine")' in text
    True
    """
    info, quoted = config.info, json.dumps(source, ensure_ascii=False)
    front = {
        "license": " ".join(str(info.get("license", "apache-2.0")).split()),
        "library_name": "timm_nfaug",
        "tags": ["normalizing-flow", "data-augmentation", "timm"],
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=math.inf),
        title=_inline(name),
        table="\n".join(f"| {_inline(k)} | {_inline(v)} |" for k, v in _rows(config)),
        note=WHERE if source == HERE else "",
        size=", ".join(map(str, config.input_size)),
        classes=config.num_classes,
        augment=AUGMENT.format(source=quoted) if config.prior.get("num_modes") else "",
        source=quoted,
        labels=", labels" if config.code_rows else "",
        training=f"\n## Training\n\n{info['training']}\n" if info.get("training") else "",
    )


def _rows(config: FlowConfig) -> list[tuple[str, Any]]:
    info, network = config.info, json.dumps(config.network) if config.network else ""
    return [
        ("architecture", f"`{config.architecture}` {network}"),
        ("images", f"{' x '.join(map(str, config.input_size))}, {config.bits}-bit"),
        ("classes", config.num_classes),
        ("data", info.get("data", "not stated")),
        *((str(k).replace("_", " "), v) for k, v in info.get("metrics", {}).items()),
    ]


def _inline(value: Any) -> str:
    """One line of Markdown that shows the value as it is, in a cell of a table, too."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
