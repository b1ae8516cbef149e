"""Autoencoders of images: one of your own with `encode` and `decode`, or diffusers' by name."""

import copy
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import remote
from ._utils.checks import is_code
from ._utils.notices import NFAError

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # of diffusers, in one directory
KINDS = ("AutoencoderTiny", "AutoencoderKL")  # classes of diffusers
# pixels that go through the autoencoder at once; a layer of 64 channels then holds 128 MB on a CPU
PIXELS = {"cpu": 2**19, "cuda": 2**22}
EXAMPLES = "madebyollin/taesd, madebyollin/taef1 or stabilityai/sd-vae-ft-mse"
HOW = (
    f"a Hub id such as {EXAMPLES}, a directory of diffusers, FILE.py:FUNCTION or MODULE:FUNCTION "
    "that makes one of your own"
)


class Autoencoder(nn.Module):
    """Encodes images (B, 3, H, W) in [-1, 1] into latents (B, c, H/f, W/f), and decodes them.

    It works on a frozen copy of the module, in evaluation mode, a part of a batch at a time.

    Args:
        module: has `encode(x)` and `decode(z)` on plain tensors, like the ones above.
        name, revision: what it was loaded by, to be saved with an augmentation.
        bfloat16: whether its convolutions may run in bfloat16, which they then do where the
            hardware has it (GPUs, and CPUs with AVX-512 BF16): two to three times as fast, and the
            changes of images differ by less than a level (docs/latent.md). By default what the module's
            attribute `bfloat16_safe` says, or False.

    Attributes:
        factor: f, by how much latents are smaller than images each way.
        channels: c of the latents.

    >>> class Halves(nn.Module):
    ...     def encode(self, x):
    ...         return nn.functional.avg_pool2d(x, 2)
    ...     def decode(self, z):
    ...         return nn.functional.interpolate(z, scale_factor=2)
    >>> autoencoder = Autoencoder(Halves())
    >>> autoencoder.encode(torch.zeros(4, 3, 16, 16)).shape, autoencoder.factor
    (torch.Size([4, 3, 8, 8]), 2)

    Raises:
        TypeError, ValueError: it lacks a method, or what a method returns has another shape.
    """

    def __init__(
        self, module: Any, name: str = "", revision: str | None = None, bfloat16: bool | None = None
    ):
        super().__init__()
        for method in ("encode", "decode"):
            if not callable(getattr(module, method, None)):
                kind = type(module).__name__
                raise TypeError(
                    f"an autoencoder has encode(x) and decode(z), {kind} lacks {method}"
                )
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module).eval().requires_grad_(False)
            module = module.to(memory_format=torch.channels_last)
        self.module: Any = module
        self.name, self.revision = name, revision
        safe = getattr(module, "bfloat16_safe", False) if bfloat16 is None else bfloat16
        self.in_bfloat16 = bool(safe)
        self.channels, self.factor = self._probe()

    def _probe(self) -> tuple[int, int]:
        """Finds the channels of latents and the factor of their size by one image of 64 pixels."""
        side, kind = 64, type(self.module).__name__
        try:
            z = self._run(self.module.encode, torch.zeros(1, 3, side, side, device=self.device), 1)
            fits = (
                z.ndim == 4 and len(z) == 1 and z.shape[2] == z.shape[3] and not side % z.shape[2]
            )
            if not fits:
                got = f"{tuple(z.shape)} for an image (1, 3, {side}, {side})"
                raise ValueError(f"encode must return (B, c, H/f, W/f), got {got}")
            x = self._run(self.module.decode, z, 1)
        except (AttributeError, TypeError, RuntimeError) as e:
            raise ValueError(
                f"{kind} cannot encode and decode an image (1, 3, {side}, {side}): {e}; it takes "
                "plain tensors in [-1, 1], of which encode returns latents and decode images"
            ) from e
        if x.shape != (1, 3, side, side):
            got = (
                f"{tuple(x.shape)} for latents {tuple(z.shape)} of an image (1, 3, {side}, {side})"
            )
            raise ValueError(f"decode must return images of the size that was encoded, got {got}")
        return z.shape[1], side // z.shape[2]

    @property
    def device(self) -> torch.device:
        parameters = self.module.parameters() if isinstance(self.module, nn.Module) else ()
        return next((p.device for p in parameters), torch.device("cpu"))

    def latent_size(self, side: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of square images; raises ValueError for an impossible side."""
        if not isinstance(side, int) or side < self.factor or side % self.factor:
            near = max(self.factor, round(float(side) / self.factor) * self.factor)
            raise ValueError(
                f"size must be a multiple of {self.factor} pixels for this autoencoder, got {side}; "
                f"take {near}"
            )
        return self.channels, side // self.factor, side // self.factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, c, H/f, W/f), float32, of images (B, 3, H, W) in [-1, 1]."""
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            wanted = f"images (B, 3, H, W), sides multiples of {self.factor}"
            raise ValueError(f"expected {wanted}, got {tuple(x.shape)}")
        if not len(x):
            return x.new_zeros(0, self.channels, *(n // self.factor for n in x.shape[2:]))
        return self._run(self.module.encode, x, 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W), float32, about [-1, 1], of latents (B, c, h, w)."""
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"expected latents (B, {self.channels}, h, w), got {tuple(z.shape)}")
        if not len(z):
            return z.new_zeros(0, 3, *(n * self.factor for n in z.shape[2:]))
        return self._run(self.module.decode, z, self.factor**2)

    @torch.no_grad()
    def _run(self, function: Any, x: Tensor, pixels: int) -> Tensor:
        """Calls encode or decode on parts of a batch; a value of x is worth so many `pixels`."""
        kind, x = self.device.type, x.to(self.device)
        most = PIXELS.get(kind, PIXELS["cpu"])
        step = max(1, most // (x.shape[2] * x.shape[3] * pixels))
        lowered = self.in_bfloat16 and has_bfloat16(self.device)
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=lowered):
            parts = [
                function(part.contiguous(memory_format=torch.channels_last))
                for part in x.split(step)
            ]
        if not all(isinstance(part, Tensor) for part in parts):
            got = type(parts[0]).__name__
            raise TypeError(f"expected a tensor from {function.__name__}, got {got}")
        return torch.cat(parts).float().contiguous()

    def digest(self) -> str:
        """A hash of its weights: modes found with some weights do not fit others."""
        found = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            found.update(f"{key} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()[:16]

    def __repr__(self) -> str:
        name = self.name or type(self.module).__name__
        return f"Autoencoder({name}, {self.channels} x H/{self.factor} x W/{self.factor})"


class _Diffusers(nn.Module):
    """An autoencoder of diffusers, with the scale of its latents and their mean alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        config: Any = model.config
        self.model: Any = model
        self.scale = float(getattr(config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def encode(self, x: Tensor) -> Tensor:
        found = self.model.encode(x)
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        return (z - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z / self.scale + self.shift).sample


def load_autoencoder(
    source: Any, revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None, local_files_only: bool = False,
) -> Autoencoder:  # fmt: skip
    """The autoencoder that a name, a directory or a module of your own stands for.

    Args:
        source: an `Autoencoder`, a module with `encode` and `decode`, or a text: a Hub id or
            directory of diffusers (AutoencoderTiny or AutoencoderKL), or ``FILE.py:FUNCTION`` or
            ``MODULE:FUNCTION``, which is imported and called without arguments.
        revision, token, cache_dir, local_files_only: for the Hub, as in `NFAugment.from_pretrained`.

    >>> load_autoencoder("no_module:make")
    Traceback (most recent call last):
    ValueError: cannot make an autoencoder by no_module:make: No module named 'no_module'

    Raises:
        ValueError: the name cannot be one, or what it stands for is no autoencoder.
        OSError: there is no such autoencoder, or it cannot be downloaded.
        ImportError: diffusers is not installed.
    """
    if isinstance(source, Autoencoder):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return Autoencoder(source)
    text = os.fspath(source)
    if is_code(text):
        return _made_by(text)
    directory = Path(text.removeprefix("local-dir:")).expanduser()
    if directory.is_dir():
        if missing := [name for name in FILES if not (directory / name).is_file()]:
            raise FileNotFoundError(f"{directory} holds no {missing[0]}; expected {HOW}")
        return _from_diffusers(directory, str(directory.resolve()), None)
    if text.removeprefix("hf-hub:").partition("@")[0].count("/") != 1 or text[0] in "./~":
        raise ValueError(f"no autoencoder {text!r}; expected {HOW}")
    folder = None if cache_dir is None else os.fspath(cache_dir)
    found = remote.Source.parse(text, FILES, revision, token, folder)
    directory = remote.fetch(found, local_files_only)
    pinned = directory.name if remote.COMMIT.fullmatch(directory.name) else found.revision
    return _from_diffusers(directory, found.id, pinned)


def _made_by(name: str) -> Autoencoder:
    """Imports a file or module, and calls the function that makes an autoencoder."""
    path, _, function = name.rpartition(":")
    try:
        if path.endswith(".py"):
            file = Path(path).expanduser().resolve()
            if not file.is_file():
                raise FileNotFoundError(f"no file {path}")
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None and spec.loader is not None
            # by this name worker processes find its classes
            sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
            if str(file.parent) not in sys.path:  # where they look for it, if they are spawned
                sys.path.append(str(file.parent))
            spec.loader.exec_module(module)
            name = f"{file}:{function}"
        else:
            module = importlib.import_module(path)
        made = getattr(module, function)()
    except Exception as e:  # of the user's own code
        raise ValueError(f"cannot make an autoencoder by {name}: {e}") from e
    if isinstance(made, Autoencoder):
        made.name = made.name or name
        return made
    return Autoencoder(made, name)


def _from_diffusers(directory: Path, name: str, revision: str | None) -> Autoencoder:
    try:
        import diffusers
    except ImportError as e:
        raise ImportError(
            f"the autoencoder {name} needs diffusers: pip install timm_nfaug[latent]"
        ) from e
    file = directory / FILES[0]
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{file} is not the config of an autoencoder of diffusers ({e})") from e
    if kind not in KINDS:
        raise ValueError(f"{file} is of {kind}; expected one of {', '.join(KINDS)} of diffusers")
    try:
        model = getattr(diffusers, kind).from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, TypeError, RuntimeError) as e:
        raise OSError(f"cannot load the autoencoder in {directory}: {e}") from e
    return Autoencoder(_Diffusers(model), name, revision, bfloat16=True)


def autoencoder_for(latent: dict[str, Any], given: Any = None, **how: Any) -> Autoencoder:
    """The autoencoder of a saved flow over latents: the given one, or the one that it names.

    Args:
        latent: `FlowConfig.latent`.
        how: token, cache_dir and local_files_only, as for `load_autoencoder`.

    Raises:
        NFAError: it names none, or one of your own code, which no file may run; or the weights are
            not those that its modes were found with.
    """
    name = latent.get("autoencoder", "")
    if given is None:
        if not name or is_code(name):
            own = f"made by {name}" if name else "of your own"
            raise NFAError(
                f"this flow moves latents of an autoencoder {own}, which is not saved with it: pass "
                "autoencoder= (--nfa-autoencoder, --autoencoder)"
            )
        given = load_autoencoder(name, latent.get("revision"), **how)
    autoencoder = load_autoencoder(given, **how)
    if (known := latent.get("sha256")) and known != autoencoder.digest():
        raise NFAError(
            f"this flow moves latents of the autoencoder {name or 'of your own'} with other weights "
            f"than those of {autoencoder.name or 'the one given'}: pass the one that its modes were "
            "found with, or fit it to your images with this one"
        )
    return autoencoder


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, and does not emulate it.

    >>> isinstance(has_bfloat16(torch.device("cpu")), bool)
    True
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
