"""The model card of a flow or augmentation: README.md with what its config knows, and code that runs.

Every text in it is free: whatever it holds, it stays what it is and where it is.
"""

import html
import json
import math
import re
import shlex
from typing import Any

import yaml

from ._utils.checks import is_code, is_int
from .config import FlowConfig, settings_string

HERE = "local-dir:."  # the directory that the card lies in
PREVIEW_NAME = "preview.png"
CARD = """---
{front}---

# {title}

{what} with timm.
{preview}
| | |
| --- | --- |
{table}

## Usage
{note}
```python
import torch
import timm_nfaug as nfa

images = torch.randint(0, 256, (4, {size}), dtype=torch.uint8)  # yours, or a PIL image
{usage}```
{training}"""
FLOW = """labels = torch.randint(0, {classes}, (4,))
{augment}
flow = nfa.ConditionalFlow.from_pretrained({source})
z, log_det = flow(images / 127.5 - 1{labels})  # x (B, {size}) in [-1, 1]
"""
AUGMENT = """
augment = nfa.NFAugment.from_pretrained({source}, strength=0.5, p=0.5{band})
images, labels = augment(images, labels)
"""
LATENT = """labels = torch.randint(0, {classes}, (4,))

augment = nfa.NFAugment.from_pretrained({source}, strength=0.5, p=0.5, labels="given"{more})
images, labels = augment(images, labels)

latents = augment.autoencoder.encode(images / 127.5 - 1)  # images of {size} pixels
z, log_det = augment.flow(augment.change.standardized(latents){labels})
"""
POOLED = """
augment = nfa.NFAugment.from_pretrained({source}{more})
images = augment(images)
"""
GIVEN = """labels = torch.randint(0, {classes}, (4,))

augment = nfa.NFAugment.from_pretrained({source}{more})
images, labels = augment(images, labels)
"""
FLAGS = """
In timm's train.py, of which `--aug nfa-s1` and the like change single settings:

```bash
timm-nfaug train path/to/train.py --aug nfa --nfa-flow {source}{more}
```
"""
OWN = """
It moves latents of an autoencoder of somebody's own, {name}, which is not saved here: pass yours in
its place, with the same weights.
"""
WHERE = f"""
Run this in the directory of this card, or put its path for the dot of `{HERE}`.
"""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")  # an identifier, as the Hub lists them
# code of one word, which may stay; what else means something to Markdown within a line
SPECIAL = re.compile(r"(?<!`)`[\w.-]+`(?!`)|[\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # which hides or turns text


def model_card(config: FlowConfig, name: str, source: str = HERE, preview: bool = False) -> str:
    """Writes the card of a flow, or of the augmentation whose settings its config holds.

    Args:
        name: the title.
        source: what `from_pretrained` takes: a bundled name, a Hub id; else the card's directory.
        preview: whether preview.png lies beside the card, and is shown.

    >>> text = model_card(FlowConfig("linear", (3, 8, 8), num_classes=2), "mine", "org/mine")
    >>> 'from_pretrained("org/mine")' in text
    True
    """
    note = config.info.get("training")
    training = f"\n## Training\n\n{_paragraph(note)}\n" if note else ""
    what = "A class-conditional normalizing flow of `timm_nfaug`, for augmentation"
    if config.augment:
        what = "An image augmentation of `timm_nfaug`, for training"
    return CARD.format(
        front=yaml.safe_dump(_front(config), sort_keys=False, allow_unicode=True, width=math.inf),
        title=_inline(name),
        what=what,
        preview=f"\n![Originals and augmented images]({PREVIEW_NAME})\n" * preview,
        table="\n".join(f"| {_inline(k)} | {v} |" for k, v in _rows(config)),
        note=(WHERE if source == HERE else "") + _note_of_own(config),
        size=", ".join(map(str, _image_size(config))),
        usage=_usage(config, json.dumps(source, ensure_ascii=False)),
        training=_flags(config, source) + training,
    )


def _front(config: FlowConfig) -> dict[str, Any]:
    """What the Hub reads; a licence that is none of its identifiers is "other", with a name."""
    license, own = _license(config), {}
    if LICENSE.fullmatch(license):
        own = {"license": license}
    elif license:
        name = re.sub(r"[^a-z0-9.]+", "-", license.lower())[:64].strip("-.")
        own = {"license": "other", "license_name": name or "other"}
    tags = ["normalizing-flow", "data-augmentation", "timm"]
    return own | {"library_name": "timm_nfaug", "tags": tags}


def _license(config: FlowConfig) -> str:
    return " ".join(str(config.info.get("license", "")).split())


def _usage(config: FlowConfig, source: str) -> str:
    own = _own_autoencoder(config)
    more = "" if own is None else f", autoencoder={json.dumps(own, ensure_ascii=False)}"
    labels = ", labels" if config.code_rows else ""  # which has to be encoded, too
    known = {"source": source, "classes": config.num_classes, "more": more, "labels": labels}
    if config.augment:
        usage = POOLED if config.augment.get("labels") == "none" else GIVEN
        return usage.format(**known).lstrip("\n")
    if config.latent:
        return LATENT.format(**known, size=config.latent["size"])
    band = ', labels="given"' if config.code_rows else ""
    augment = AUGMENT.format(source=source, band=band) if config.prior.get("num_modes") else ""
    size = ", ".join(map(str, config.input_size))
    return FLOW.format(**known | {"augment": augment, "size": size})


def _flags(config: FlowConfig, source: str) -> str:
    """How timm's train.py takes an augmentation."""
    own = _own_autoencoder(config)
    more = "" if own is None else f" --nfa-autoencoder {shlex.quote(own)}"
    return FLAGS.format(source=shlex.quote(source), more=more) if config.augment else ""


def _own_autoencoder(config: FlowConfig) -> str | None:
    """What stands for an autoencoder that no file may name, and that has to be passed."""
    name = config.latent.get("autoencoder", "")
    if not config.latent or (name and not is_code(name)):
        return None
    return name or "FILE.py:FUNCTION"


def _note_of_own(config: FlowConfig) -> str:
    own = _own_autoencoder(config)
    return "" if own is None else OWN.format(name=_inline(own))


def _image_size(config: FlowConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images that a flow, or the autoencoder before it, is made for."""
    side = config.latent.get("size")
    return (3, side, side) if side else config.input_size


def _rows(config: FlowConfig) -> list[tuple[str, str]]:
    """Names, and values as Markdown."""
    info = config.info
    network = f" {_inline(json.dumps(config.network))}" if config.network else ""
    own = [("settings", f"`{settings_string(config.augment)}`")] if config.augment else []
    whose = ("classes", str(config.num_classes))
    if "fixed_modes" in info:
        whose = ("modes", f"{_inline(config.title)} images, of no data")
    elif config.augment and config.num_classes == 1:
        whose = ("modes", "of all images together")
    # an augmentation's modes may not be those that the flow was measured with
    metrics = {} if config.augment else info.get("metrics", {})
    if (license := _license(config)) and not LICENSE.fullmatch(license):
        own.append(("license", _inline(license)))
    if "network" in info:
        own.append(("network trained on", _inline(info["network"])))
    return [
        *own,
        ("architecture", _code(config.architecture) + network),
        *_rows_of_images(config),
        whose,
        ("data", _data(info)),
        *((str(k).replace("_", " "), _inline(v)) for k, v in metrics.items()),
    ]


def _rows_of_images(config: FlowConfig) -> list[tuple[str, str]]:
    size = " x ".join(map(str, _image_size(config)))
    if not config.latent:
        return [("images", f"{size}, {config.bits}-bit")]
    name, revision = (config.latent.get(key) for key in ("autoencoder", "revision"))
    rows = [("images", size), ("latents", " x ".join(map(str, config.input_size)))]
    rows += [("autoencoder", _inline(name or "of somebody's own"))]
    return rows + ([("its revision", _inline(revision))] if revision else [])


def _data(info: dict[str, Any]) -> str:
    parts = [_inline(info.get("data", "not stated"))]
    known = {"classes": "{:,} classes", "images": "modes of {:,} images"}
    parts += [text.format(info[key]) for key, text in known.items() if is_int(info.get(key))]
    return "; ".join(parts)


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[\w.-]+", text) else _inline(text)


def _inline(value: Any) -> str:
    """One line of Markdown that shows the value as it is, in a cell of a table, too."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = html.escape(UNSEEN.sub("", " ".join(text.split())), quote=False)
    return SPECIAL.sub(lambda m: m[0] if len(m[0]) > 1 else f"&#{ord(m[0])};", text)


def _paragraph(text: str) -> str:
    """The same, where a line starts: no heading, list or rule."""
    line = re.sub(r"^(\d+)([.)])", lambda m: f"{m[1]}&#{ord(m[2])};", _inline(text))
    return re.sub(r"^[-+=:]", lambda m: f"&#{ord(m[0])};", line)
