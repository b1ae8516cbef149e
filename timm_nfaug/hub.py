"""Flows on disk and on the Hugging Face Hub: config.json, model.safetensors and a model card."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from . import remote
from ._utils.checks import closest
from ._utils.files import write_atomically
from .card import HERE, PREVIEW_NAME, model_card
from .config import FlowConfig
from .stored import CONFIG_NAME, WEIGHTS_NAME, read_flow, write_flow

if TYPE_CHECKING:
    from .flows.model import ConditionalFlow

BUNDLED = Path(__file__).parent / "checkpoints"
LINEAR = "linear"  # as the name of a flow: eigen-images of the user's own data, without a file
COSINE = "cosine"  # the same of cosine images, of no data
Name = str | os.PathLike
SUCCESSORS = {
    "conv_p4_small.cifar10_jpeg": "conv_p4_small.cifar10",
    "linear.cifar10_jpeg": "linear.cifar10",
}
Picture = Image.Image | Name  # a picture, or the path of one


def bundled_flows() -> list[str]:
    """Lists the names of the flows that come with the package.

    >>> "linear.cifar10" in bundled_flows()
    True
    """
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG_NAME}"))


def similar(name: str) -> str:
    """What to say of a name that no bundled flow has: what took its place, or the nearest name.

    >>> similar("conv_p4_tiny.digitz")[:39]
    " (did you mean 'conv_p4_tiny.digits' or"
    """
    if name == COSINE:
        return ", as it has no file: NFAugment.from_cosine() makes it"
    if name not in SUCCESSORS:
        return closest(name, bundled_flows())
    return f" any more, as it knew CIFAR-10 saved as JPEG; take {SUCCESSORS[name]!r}, of CIFAR-10"


def resolve(
    name: Name,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Name | None = None,
    local_files_only: bool = False,
) -> Path:
    """Finds the local directory of a flow, downloaded first where it is on the Hub.

    Args:
        name: a bundled name, a directory, ``local-dir:PATH`` or, with or without ``hf-hub:``, an id
            ``org/name[@revision]`` on the Hub.
        revision: branch, tag or commit on the Hub, instead of ``@revision``; by default main.
        token, cache_dir, local_files_only: as in huggingface_hub, for a flow on the Hub.

    >>> resolve("linear.cifar10").name
    'linear.cifar10'

    Raises:
        ValueError: the name cannot be one.
        OSError: there is no such flow, or it cannot be had (see `timm_nfaug.remote.fetch`).
    """
    text = name if isinstance(name, str) else f"local-dir:{os.fspath(name)}"
    bundled, on_hub = text in bundled_flows(), text.startswith("hf-hub:")
    path = BUNDLED / text if bundled else Path(text.removeprefix("local-dir:")).expanduser()
    if not on_hub and path.is_file():
        what = f"a flow is a directory that holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        raise ValueError(f"{text} is a file; {what}, as train_flow writes to OUT/flow")
    if not on_hub and (text.startswith("local-dir:") or path.is_dir()):
        if revision is not None:
            what = f"{text} is a {'bundled flow' if bundled else 'directory'}; drop {revision=!r}"
            raise ValueError(f"a revision goes with a Hub id such as hf-hub:org/name, {what}")
        return _checked_directory(path)
    if not on_hub and (text.partition("@")[0].count("/") != 1 or text.startswith((".", "/", "~"))):
        raise ValueError(
            f"no flow named {text!r}{similar(text)}; expected a bundled name "
            f"({', '.join(bundled_flows())}), a directory, local-dir:PATH, or a Hub id org/name"
        )
    files = (CONFIG_NAME, WEIGHTS_NAME)
    source = remote.Source.parse(text, files, revision, token, cache_dir)
    return remote.fetch(source, local_files_only)


def _checked_directory(path: Path) -> Path:
    if (path / "flow" / CONFIG_NAME).is_file() and not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{path} holds a training of a flow; the flow is {path / 'flow'}")
    for file, other in ((CONFIG_NAME, WEIGHTS_NAME), (WEIGHTS_NAME, CONFIG_NAME)):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path} holds no {file}; a flow needs it and {other}")
    return path


class HubMixin(torch.nn.Module):
    """Loads, saves and uploads a module that `from_config` makes of its `config`.

    >>> from timm_nfaug import ConditionalFlow
    >>> ConditionalFlow.from_pretrained("linear.cifar10").num_classes
    10
    """

    config: FlowConfig
    from_config: Callable[[FlowConfig], "ConditionalFlow"]

    @classmethod
    def from_pretrained(
        cls,
        name: Name,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Name | None = None,
        local_files_only: bool = False,
    ) -> "ConditionalFlow":
        """Loads a flow in evaluation mode; arguments as for `timm_nfaug.hub.resolve`."""
        directory = resolve(name, revision, token, cache_dir, local_files_only)
        return read_flow(directory, cls.from_config)

    def save_pretrained(self, directory: Name, half=False, name: str | None = None) -> Path:
        """Writes config.json, model.safetensors and the model card README.md, titled `name`.

        The card shows preview.png where one lies in the directory. `half` stores modes and kernels
        of the couplings' networks in float16, loaded as float32.
        """
        directory = Path(directory)
        write_flow(self, directory, half)  # type: ignore[arg-type]
        self._write_card(directory, name or Path(os.path.abspath(directory)).name)
        return directory

    def _write_card(self, directory: Path, title: str, source: str = HERE) -> None:
        preview = (directory / PREVIEW_NAME).is_file()
        card = model_card(self.config, title, source, preview)
        write_atomically(directory / "README.md", lambda p: p.write_text(card, encoding="utf-8"))

    def push_to_hub(
        self,
        repo_id: str,
        private=False,
        revision: str | None = None,
        commit_message="Upload flow",
        token: str | bool | None = None,
        preview: Picture | None = None,
    ) -> str:
        """Uploads flow and card, to a repository made if missing; returns the commit's URL.

        `token` as in huggingface_hub; `preview` is a picture for the card, or the path of one.
        Raises an OSError that names what failed and the remedy.
        """
        with tempfile.TemporaryDirectory() as name:
            write_flow(self, folder := Path(name))  # type: ignore[arg-type]
            if preview is not None:
                write_preview(folder, preview)
            repo = remote.create_repository(repo_id, private, revision, token)
            self._write_card(folder, repo, f"{repo}@{revision}" if revision else repo)
            return remote.upload(folder, repo, revision, token, commit_message)


def write_preview(directory: Path, picture: Picture) -> None:
    """Writes preview.png, which the card in this directory will show.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_preview(Path(folder), Image.new("RGB", (8, 8)))
    ...     os.listdir(folder)
    ['preview.png']
    """
    if not isinstance(picture, Image.Image):
        picture = Image.open(picture)
    write_atomically(directory / PREVIEW_NAME, lambda path: picture.save(path, format="PNG"))
