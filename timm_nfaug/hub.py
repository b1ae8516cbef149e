"""Flows on disk and on the Hugging Face Hub: config.json, model.safetensors and a model card."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ._utils.checks import closest
from ._utils.files import write_atomically
from .config import FlowConfig
from .stored import CONFIG_NAME, WEIGHTS_NAME, read_flow, write_flow

if TYPE_CHECKING:
    from .flows.model import ConditionalFlow

BUNDLED = Path(__file__).parent / "checkpoints"
Name = str | os.PathLike


def bundled_flows() -> list[str]:
    """Lists the names of the flows that come with the package.

    >>> "linear.cifar10_jpeg" in bundled_flows()
    True
    """
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG_NAME}"))


def resolve(name: Name, revision: str | None = None) -> Path:
    """Finds the local directory of a flow, downloaded first where it is on the Hub.

    `name` is a bundled name, a directory, ``local-dir:PATH`` or, with or without ``hf-hub:``, an id
    ``org/name[@revision]`` on the Hub. `revision` overrides ``@revision``.

    >>> resolve("linear.cifar10_jpeg").name
    'linear.cifar10_jpeg'
    """
    text = name if isinstance(name, str) else f"local-dir:{os.fspath(name)}"
    bundled, on_hub = text in bundled_flows(), text.startswith("hf-hub:")
    path = BUNDLED / text if bundled else Path(text.removeprefix("local-dir:")).expanduser()
    if not on_hub and (text.startswith("local-dir:") or path.is_dir()):
        if revision is not None:
            what = f"{text} is a {'bundled flow' if bundled else 'directory'}; drop {revision=!r}"
            raise ValueError(f"a revision goes with a Hub id such as hf-hub:org/name, {what}")
        return _checked_directory(path)
    if not on_hub and (text.count("/") != 1 or text.startswith((".", "/", "~"))):
        raise ValueError(
            f"no flow named {text!r}{closest(text, bundled_flows())}; expected a bundled name "
            f"({', '.join(bundled_flows())}), a directory, local-dir:PATH, or a Hub id org/name"
        )
    from huggingface_hub import hf_hub_download

    repo, _, at = text.removeprefix("hf-hub:").partition("@")
    load = lambda file: hf_hub_download(repo, file, revision=revision or at or None)
    return [Path(load(file)).parent for file in (CONFIG_NAME, WEIGHTS_NAME)][-1]


def _checked_directory(path: Path) -> Path:
    for file, other in ((CONFIG_NAME, WEIGHTS_NAME), (WEIGHTS_NAME, CONFIG_NAME)):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path} holds no {file}; a flow needs it and {other}")
    return path


class HubMixin(torch.nn.Module):
    """Loads, saves and uploads a module that `from_config` makes of its `config`.

    >>> from timm_nfaug import ConditionalFlow
    >>> ConditionalFlow.from_pretrained("linear.cifar10_jpeg").num_classes
    10
    """

    config: FlowConfig
    from_config: Callable[[FlowConfig], "ConditionalFlow"]

    @classmethod
    def from_pretrained(cls, name: Name, revision: str | None = None) -> "ConditionalFlow":
        """Loads a flow in evaluation mode; `name` and `revision` are those of `hub.resolve`."""
        return read_flow(resolve(name, revision), cls.from_config)

    def save_pretrained(self, directory: Name, half=False, name: str | None = None) -> Path:
        """Writes config.json, model.safetensors and the model card README.md, titled `name`.

        `half` stores modes and kernels of the couplings' networks in float16, loaded as float32.
        """
        directory = Path(directory)
        card = _card(self.config, name or Path(os.path.abspath(directory)).name)
        write_flow(self, directory, half)  # type: ignore[arg-type]
        write_atomically(directory / "README.md", lambda p: p.write_text(card, encoding="utf-8"))
        return directory

    def push_to_hub(
        self, repo_id: str, private=False, revision: str | None = None, commit_message="Upload flow"
    ) -> str:
        """Uploads flow and card, to a repository made if missing; returns the commit's URL."""
        from huggingface_hub import HfApi

        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            more: dict[str, Any] = {"revision": revision, "commit_message": commit_message}
            info = api.upload_folder(repo_id=repo_id, folder_path=folder, **more)
        return str(getattr(info, "commit_url", info))


CARD = """---
license: {license}
library_name: timm_nfaug
tags:
- normalizing-flow
- data-augmentation
- timm
---

# {name}

A class-conditional normalizing flow of `timm_nfaug`, for augmentation with timm.

| | |
| --- | --- |
{table}

## Usage

```python
import timm_nfaug as nfa

aug = nfa.NFAugment.from_pretrained("{name}", strength=0.5, p=0.5)
image = aug(image, label)                       # PIL, uint8 or float tensor, one or a batch
flow = nfa.ConditionalFlow.from_pretrained("{name}")
z, log_det = flow(x)                            # x (B, {size}) in [-1, 1]
```
{training}"""


def _card(config: FlowConfig, name: str) -> str:
    info, size = config.info, [str(n) for n in config.input_size]
    network = json.dumps(config.network) if config.network else ""
    rows = {
        "architecture": f"`{config.architecture}` {network}",
        "images": f"{' x '.join(size)}, {config.bits}-bit",
        "classes": config.num_classes,
        "data": info.get("data", "not stated"),
        **{k.replace("_", " "): v for k, v in info.get("metrics", {}).items()},
    }
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in rows.items()}
    table = "\n".join(f"| {k} | {v} |" for k, v in shown.items())
    training = f"\n## Training\n\n{info['training']}\n" if info.get("training") else ""
    known = {"license": info.get("license", "apache-2.0"), "size": ", ".join(size)}
    return CARD.format(name=name, table=table, training=training, **known)
