"""Autoencoders of diffusers, from a directory that `save_pretrained` wrote."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # in one directory
KINDS = ("AutoencoderTiny", "AutoencoderKL")  # classes of diffusers


class OfDiffusers(nn.Module):
    """An autoencoder of diffusers, whose latents are means and have the scale of its config.

    >>> class Halves(nn.Module):
    ...     config = {"scaling_factor": 0.5}
    ...     encode = lambda self, x: {"latents": x[..., ::2, ::2]}
    ...     decode = lambda self, z: {"sample": z.repeat_interleave(2, 2).repeat_interleave(2, 3)}
    >>> OfDiffusers(Halves()).encode(torch.ones(1, 3, 2, 2)).flatten().tolist()
    [0.5, 0.5, 0.5]
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        config: Any = model.config
        self.model: Any = model
        # buffers, which count in the digest of the weights: they are part of what a latent is
        scale, shift = (config.get(k) for k in ("scaling_factor", "shift_factor"))
        self.scale: Tensor = nn.Buffer(torch.tensor(float(scale or 1.0)))
        self.shift: Tensor = nn.Buffer(torch.tensor(float(shift or 0.0)))

    def encode(self, x: Tensor) -> Tensor:
        found = self.model.encode(x)
        z = found["latents"] if "latents" in found else found["latent_dist"].mean
        return (z - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z / self.scale + self.shift)["sample"]


def is_of_diffusers(module: Any) -> bool:
    """Whether a module is one of `KINDS`, which give outputs in containers.

    >>> is_of_diffusers(nn.Identity())
    False
    """
    kind = type(module)
    return kind.__name__ in KINDS and kind.__module__.startswith("diffusers.")


def read_diffusers(directory: Path, name: str) -> OfDiffusers:
    """The autoencoder in a directory, in float32; `name` is what errors call it.

    >>> read_diffusers(Path("nowhere"), "mine")
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no config.json; expected an autoencoder of diffusers, ...

    Raises:
        ValueError: it is another model, or its files are damaged.
        OSError: it lacks a file.
        ImportError: diffusers is not installed.
    """
    if missing := [file for file in FILES if not (directory / file).is_file()]:
        raise FileNotFoundError(
            f"{directory} holds no {missing[0]}; expected an autoencoder of diffusers, {FILES[0]} "
            f"and {FILES[1]}, its weights in one file as model.save_pretrained(directory) writes them"
        )
    kind = _kind(directory / FILES[0])
    try:
        import diffusers
    except ImportError as e:
        what = f"the autoencoder {name} needs diffusers: pip install diffusers"
        raise ImportError(what) from e
    how: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        model, about = getattr(diffusers, kind).from_pretrained(
            str(directory), output_loading_info=True, **how
        )
    except Exception as e:  # whatever diffusers may raise for damaged files
        raise ValueError(f"cannot load the autoencoder in {directory}: {e}") from e
    if odd := [*about["missing_keys"], *about["mismatched_keys"]]:
        raise ValueError(
            f"the weights in {directory} lack {len(odd)} tensors that {FILES[0]} asks for, such as "
            f"{odd[0]}; download or save the autoencoder again"
        )
    return OfDiffusers(model)


def _kind(file: Path) -> str:
    """The class that a config is of; one of `KINDS`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("_class_name")
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{file} is not the config of an autoencoder of diffusers ({e})") from e
    if kind not in KINDS:
        got = "no _class_name" if kind is None else f"a {str(kind)[:60]}"
        raise ValueError(f"{file} has {got}; expected one of {', '.join(KINDS)} of diffusers")
    if "quantization_config" in config:
        raise ValueError(f"{file} is of quantized weights; take the autoencoder in float32")
    return kind
