"""Autoencoders of images: one of your own with `encode` and `decode`, or diffusers' by name."""

import copy
import hashlib
import importlib
import importlib.util
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import remote
from ._utils.checks import is_code
from ._utils.notices import NFAError, warn
from .of_diffusers import FILES, OfDiffusers, is_of_diffusers, read_diffusers

# pixels that go through the autoencoder at once; a layer of 64 channels then holds 128 MB on a CPU
PIXELS = {"cpu": 2**19, "cuda": 2**22}
EXAMPLES = "madebyollin/taesd, madebyollin/taef1 or stabilityai/sd-vae-ft-mse"
EXPECTED = "an autoencoder of diffusers, its weights in one file of safetensors"
HOW = (
    f"a Hub id such as {EXAMPLES}, a directory of diffusers, FILE.py:FUNCTION or MODULE:FUNCTION "
    "that makes one of your own"
)


class Autoencoder(nn.Module):
    """Encodes images (B, 3, H, W) in [-1, 1] into latents (B, c, H/f, W/f), and decodes them.

    It works on a frozen float32 copy of the module, in evaluation mode, a part of a batch at a time.
    It stays so in a model that is trained or converted to 16 bits.

    Args:
        module: has `encode(x)` and `decode(z)` on plain tensors, like the ones above.
        name, revision: what it was loaded by, to be saved with an augmentation.
        bfloat16: whether its convolutions may run in bfloat16, which they then do where the
            hardware has it (GPUs, and CPUs with AVX-512 BF16): two to three times as fast, and the
            changes of images differ by less than a level on average, by several in places. By
            default what the module's attribute `bfloat16_safe` says, or False.

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
        place = torch.zeros(())
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module).float().eval().requires_grad_(False)
            module = module.to(memory_format=torch.channels_last)
            tensors = itertools.chain(module.parameters(), module.buffers())
            place = torch.zeros((), device=next(tensors, place).device)
        self.module: Any = module
        # replicas have no parameters, but they have buffers
        self._place: Tensor = nn.Buffer(place, persistent=False)
        self._known: tuple[list, str] = [], ""  # the state that `digest` has seen, and its hash
        self.name, self.revision = name, revision
        safe = getattr(module, "bfloat16_safe", False) if bfloat16 is None else bfloat16
        self.in_bfloat16 = bool(safe)
        self.channels, self.factor = self._probe()

    def _probe(self) -> tuple[int, int]:
        """Finds the channels of latents and the factor of their size by one image of 64 pixels."""
        side, kind = 64, type(self.module).__name__
        try:
            z = self._run(self.module.encode, torch.zeros(1, 3, side, side, device=self.device), 1)
            if z.ndim != 4 or len(z) != 1 or z.shape[2] != z.shape[3] or side % (z.shape[2] or 63):
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
        """Where it computes; what is no `nn.Module` gets its tensors on the CPU."""
        return self._place.device if isinstance(self.module, nn.Module) else torch.device("cpu")

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stays in evaluation mode, also inside of a model that is trained."""
        return super().train(False)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "Autoencoder":
        """Moves as every module does, but stays in float32."""
        converted = False

        def keep(t: Tensor) -> Tensor:
            nonlocal converted
            out = fn(t)
            converted = converted or out.dtype != t.dtype
            return out if out.dtype == t.dtype else torch.empty_like(out, dtype=t.dtype).copy_(t)

        super()._apply(keep, *args, **kwargs)
        if converted:
            warn("an autoencoder stays in float32; in_bfloat16 = True lets it compute in 16 bits")
        return self

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
        if not x.is_floating_point():
            raise TypeError(f"expected floats in [-1, 1], got {x.dtype}: pixels.levels_to_model")
        shape = len(x), self.channels, *(n // self.factor for n in x.shape[2:])
        return self._whole(self.module.encode, x, 1, shape)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W), float32, about [-1, 1], of latents (B, c, h, w)."""
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"expected latents (B, {self.channels}, h, w), got {tuple(z.shape)}")
        shape = len(z), 3, *(n * self.factor for n in z.shape[2:])
        return self._whole(self.module.decode, z, self.factor**2, shape)

    def _whole(self, function: Any, x: Tensor, pixels: int, shape: tuple[int, ...]) -> Tensor:
        """What encode or decode gives for a batch, which must have this shape."""
        if not len(x):
            return torch.zeros(shape, device=self.device)
        found = self._run(function, x, pixels)
        if found.shape != shape:
            what = f"{function.__name__} must return {shape} for {tuple(x.shape)}"
            raise ValueError(f"{what}, got {tuple(found.shape)}")
        return found

    @torch.no_grad()
    def _run(self, function: Any, x: Tensor, pixels: int) -> Tensor:
        """Calls encode or decode on parts of a batch; a value of x is worth so many `pixels`."""
        kind, x = self.device.type, x.to(self.device, torch.float32)
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
        state = sorted(self.state_dict().items())
        seen = [(key, value.data_ptr(), value._version) for key, value in state]
        if not self._known[1] or seen != self._known[0]:
            found = hashlib.sha256()
            for key, value in state:
                found.update(f"{key} {tuple(value.shape)}".encode())
                found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._known = seen, found.hexdigest()[:16]
        return self._known[1]

    def __repr__(self) -> str:
        name = self.name or type(self.module).__name__
        return f"Autoencoder({name}, {self.channels} x H/{self.factor} x W/{self.factor})"


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
        diffusers = is_of_diffusers(source)
        return Autoencoder(OfDiffusers(source), bfloat16=True) if diffusers else Autoencoder(source)
    text = os.fspath(source)
    if is_code(text):
        return _made_by(text)
    on_hub = text.startswith("hf-hub:")
    directory = Path(text.removeprefix("local-dir:")).expanduser()
    if not on_hub and text and (text.startswith("local-dir:") or directory.is_dir()):
        if revision is not None:
            raise ValueError(
                f"a revision goes with a Hub id, {text} is a directory; drop {revision=!r}"
            )
        name = str(directory.resolve())
        return Autoencoder(read_diffusers(directory, name), name, bfloat16=True)
    if not on_hub and (text.partition("@")[0].count("/") != 1 or text[0] in "./~"):
        raise ValueError(f"no autoencoder {text!r}; expected {HOW}")
    folder = None if cache_dir is None else os.fspath(cache_dir)
    found = remote.Source.parse(text, FILES, revision, token, folder, EXPECTED)
    directory = remote.fetch(found, local_files_only)
    pinned = directory.name if remote.COMMIT.fullmatch(directory.name) else found.revision
    return Autoencoder(read_diffusers(directory, found.id), found.id, pinned, bfloat16=True)


def _made_by(name: str) -> Autoencoder:
    """Imports a file or module, and calls the function that makes an autoencoder."""
    path, _, function = name.rpartition(":")
    try:
        if path.endswith(".py"):
            file = Path(path).expanduser().resolve()
            name, path = f"{file}:{function}", _importable(file)
        made = getattr(importlib.import_module(path), function)()
        made = made if isinstance(made, Autoencoder) else load_autoencoder(_no_text(made))
    except Exception as e:  # of the user's own code
        raise ValueError(f"cannot make an autoencoder by {name}: {e}") from e
    made.name = made.name or name
    return made


def _importable(file: Path) -> str:
    """The name by which a file is imported, also by worker processes that look for its classes."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if str(file.parent) not in sys.path:  # last, so that it hides no other module
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(file.stem)
    if spec is None or not spec.origin or Path(spec.origin).resolve() != file:
        raise ImportError(f"another module is called {file.stem}, too: rename the file")
    return file.stem


def _no_text(made: Any) -> Any:
    if isinstance(made, (str, os.PathLike)):
        raise TypeError(f"expected an autoencoder from the function, got {made!r}")
    return made


def autoencoder_for(latent: dict[str, Any], given: Any = None, **how: Any) -> Autoencoder:
    """The autoencoder of a saved flow over latents: the given one, or the one that it names.

    Args:
        latent: `FlowConfig.latent`.
        how: token, cache_dir and local_files_only, as for `load_autoencoder`.

    >>> autoencoder_for({"autoencoder": "mine.py:load", "size": 64})
    Traceback (most recent call last):
    timm_nfaug._utils.notices.NFAError: this flow moves latents of an autoencoder made by mine.py:...

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
        pinned = latent.get("revision")  # of an id, which no directory of that name stands for
        given = load_autoencoder(f"hf-hub:{name}" if pinned else name, pinned, **how)
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
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
