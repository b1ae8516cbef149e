"""Flows on disk and on the Hugging Face Hub: ``config.json`` + ``model.safetensors``, and the model card beside them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ._utils.checks import closest
from ._utils.files import write_atomically
from .config import FlowConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
BUNDLED = Path(__file__).parent / "checkpoints"


def bundled_flows() -> list[str]:
    """Names of the flows that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG_NAME}"))


def resolve(name: str | os.PathLike, revision: str | None = None) -> Path:
    """The local directory of a flow, downloaded first where it is on the Hub.

    Args:
        name: a bundled name, ``local-dir:PATH``, a directory, ``hf-hub:org/name[@revision]`` or ``org/name[@revision]``. A
            `pathlib.Path` is always a directory.
        revision: branch, tag or commit on the Hub; overrides ``@revision``.
    """
    text = os.fspath(name)
    if not isinstance(name, str):
        text = f"local-dir:{text}"
    if not text.startswith("hf-hub:"):
        path = Path(text.removeprefix("local-dir:")).expanduser()
        bundled = text in bundled_flows()
        local = bundled or text.startswith("local-dir:") or path.is_dir()
        if local and revision is not None:
            kind = "bundled flow" if bundled else "directory"
            raise ValueError(
                f"a revision goes with a Hub id such as hf-hub:org/name, {text} is a {kind}; drop revision={revision!r}"
            )
        if local:
            return BUNDLED / text if bundled else _directory(path)
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise ValueError(
                f"no flow named {text!r}{closest(text, bundled_flows())}; expected a bundled name "
                f"({', '.join(bundled_flows())}), a directory with {CONFIG_NAME}, local-dir:PATH, or a Hub id org/name"
            )
    repo, _, at = text.removeprefix("hf-hub:").partition("@")
    return _download(repo, revision or at or None)


def _directory(path: Path) -> Path:
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / file).is_file():
            raise FileNotFoundError(
                f"{path} holds no {file}; a flow's directory has {CONFIG_NAME} and {WEIGHTS_NAME}"
            )
    return path


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    paths = [
        Path(hf_hub_download(repo, file, revision=revision)) for file in (CONFIG_NAME, WEIGHTS_NAME)
    ]
    return paths[0].parent


def read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(
            f"{path} is not valid JSON ({e}); save the flow again or download it anew"
        ) from e
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Strict loading: every tensor present, none unknown, shapes equal; values go to the module's own dtypes."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(
            f"{path} cannot be read as safetensors ({e}); it may be truncated: download or save it again"
        ) from e
    wanted = module.state_dict()
    missing, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    shapes = [k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape]
    if missing or unknown or shapes:
        details = [
            f"{word} {sorted(keys)[:4]}"
            for word, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        details += [
            f"{k}: {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in sorted(shapes)[:4]
        ]
        raise ValueError(f"{path} does not fit its {CONFIG_NAME}: {'; '.join(details)}")
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in found.items()}, strict=True)


class HubMixin(torch.nn.Module):
    """from_pretrained, save_pretrained and push_to_hub for a module made from a `config` (see `FlowConfig`)."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, revision: str | None = None):
        """Loads a flow in evaluation mode.

        Args:
            name: a bundled name (`list_flows(pretrained=True)`), ``local-dir:PATH``, a directory,
                ``hf-hub:org/name[@revision]`` or ``org/name[@revision]``. A `pathlib.Path` is always a directory.
            revision: branch, tag or commit on the Hub; refused with the others.
        """
        directory = resolve(name, revision)
        config = FlowConfig.from_dict(read_config(directory))
        with torch.random.fork_rng(
            devices=[]
        ):  # the weights' initialisation must not move the global generator
            flow = cls.from_config(config)
        load_weights(flow, directory / WEIGHTS_NAME)
        return flow.eval()

    def save_pretrained(
        self, directory: str | os.PathLike, half: bool = False, name: str | None = None
    ) -> Path:
        """Writes config.json, model.safetensors and the model card README.md.

        Args:
            name: title of the card; by default the directory's.
            half: stores the kernels of the couplings' networks and the principal modes in float16 (loaded as float32
                again); everything else, affine, 1x1, whitening and Gaussians, stays float32. Measure the flow as loaded.
        """
        directory = Path(directory)
        # before anything is written: new weights beside an old config would be another flow
        text = json.dumps(self.config.to_dict(), indent=2) + "\n"
        card = model_card(self.config.to_dict(), name or Path(os.path.abspath(directory)).name)
        tensors = {k: _stored(k, v, half) for k, v in self.state_dict().items()}
        write_atomically(
            directory / WEIGHTS_NAME, lambda p: save_file(tensors, p, metadata={"format": "pt"})
        )
        write_atomically(directory / CONFIG_NAME, lambda p: p.write_text(text, encoding="utf-8"))
        write_atomically(directory / "README.md", lambda p: p.write_text(card, encoding="utf-8"))
        return directory

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        commit_message: str = "Upload flow",
    ) -> str:
        """Creates the repository where it is missing and uploads the flow with its card; returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        folder = Path(tempfile.mkdtemp())
        try:
            self.save_pretrained(folder, name=repo_id)
            info = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        finally:
            shutil.rmtree(folder)
        return str(getattr(info, "commit_url", info))


def _stored(key: str, value: torch.Tensor, half: bool) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    kernel = ".net." in key and value.ndim > 1  # of a network inside a coupling
    lower = half and (kernel or key == "prior.modes") and value.dtype == torch.float32
    return value.half() if lower else value


def model_card(config: dict[str, Any], name: str) -> str:
    """The card's Markdown, made from the config alone."""
    info = config["info"]
    c, h, w = config["input_size"]
    front = ["---", f"license: {info.get('license', 'apache-2.0')}", "library_name: timm_nfaug"]
    front += ["tags:", "- normalizing-flow", "- data-augmentation", "- timm", "---"]
    rows = [
        (
            "architecture",
            f"`{config['architecture']}` "
            + (json.dumps(config["network"]) if config["network"] else ""),
        ),
        ("images", f"{c} x {h} x {w}, {config['bits']}-bit"),
        ("classes", config["num_classes"]),
        ("data", info.get("data", "not stated")),
        *((k.replace("_", " "), v) for k, v in info.get("metrics", {}).items()),
    ]
    table = "\n".join(
        f"| {k} | {format(v, '.4g') if isinstance(v, float) else v} |" for k, v in rows
    )
    training = f"\n## Training\n\n{info['training']}\n" if info.get("training") else ""
    return (
        "\n".join(front)
        + f"""

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
z, log_det = flow(x)                            # x (B, {c}, {h}, {w}) in [-1, 1]
```
{training}"""
    )
