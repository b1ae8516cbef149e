"""A flow on disk, config.json and model.safetensors: writing it, and the gate that it is read through.

Nothing is allocated before the sizes in the config fit those in the header of the weights. A digest
ties the two files; the weights bring the config along, so that a save that is cut short between the
two loses nothing.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ._utils.checks import is_int
from ._utils.files import write_atomically
from ._utils.notices import warn
from .config import WEIGHTS_KEY, FlowConfig

if TYPE_CHECKING:
    from .flows.model import ConditionalFlow

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG = 2**24  # bytes; the names of ImageNet-21k take 4% of it
MAX_HEADER = 2**26  # bytes; it holds the config, too
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # bytes of the numbers that a flow is made of
# larger numbers have squares and products that leave float32
BOUNDS = {"log_prior": (-math.inf, 1e9), "prior.mode_std": (0.0, 1e9)}
TIMED = ("training", "training_seconds")  # keys of `info`
AGAIN = "download or save the flow again"
STALE = (
    "{config} does not belong to the weights beside it, as after a save that was cut short; the "
    "config inside {weights} is taken, and flow.save_pretrained({directory}) writes both anew"
)
Make = Callable[[FlowConfig], "ConditionalFlow"]


def write_flow(flow: "ConditionalFlow", directory: Path, half: bool = False) -> None:
    """Writes the weights, then the config; equal flows give equal files.

    Args:
        half: modes and kernels of the couplings' networks in float16, loaded as float32.

    >>> import tempfile
    >>> from timm_nfaug import create_flow
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_flow(create_flow("linear", input_size=(1, 4, 4)), Path(folder))
    ...     sorted(os.listdir(folder))
    ['config.json', 'model.safetensors']

    Raises:
        ValueError, TypeError: the flow could not be read again; nothing is written.
        OSError: a file could not be written; the flow that was there is whole.
    """
    values = flow.config.to_dict()
    FlowConfig.from_dict(_parsed(json.dumps(values, indent=2).encode(), MAX_CONFIG - 100))
    tensors = {k: _stored(k, v, half) for k, v in flow.state_dict().items()}
    for key, tensor in tensors.items():
        _check_numbers(key, tensor)
    numbers = _digest(io.BytesIO(save(tensors)), header=False)
    inside = {"config": json.dumps(_untimed(flow.config).to_dict() | {WEIGHTS_KEY: numbers})}
    data = save(tensors, inside)  # one key: of several the order would be random
    values[WEIGHTS_KEY] = hashlib.sha256(data).hexdigest()
    write_atomically(directory / WEIGHTS_NAME, lambda path: path.write_bytes(data))
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(directory / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def _untimed(config: FlowConfig) -> FlowConfig:
    """The config without what tells how long the training took: equal flows give equal files."""
    info = {k: v for k, v in config.info.items() if k not in TIMED}
    return dataclasses.replace(config, info=info)


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    kernel = ".net." in key and value.ndim > 1  # of a network inside a coupling
    lower = half and (kernel or key == "prior.modes") and value.dtype == torch.float32
    return value.half() if lower else value


def read_flow(directory: Path, make: Make) -> "ConditionalFlow":
    """Reads the flow that `make` makes of its config, in evaluation mode.

    >>> from timm_nfaug import ConditionalFlow
    >>> bundled = Path(__file__).parent / "checkpoints" / "linear.cifar10"
    >>> read_flow(bundled, ConditionalFlow.from_config).num_classes
    10

    Raises:
        ValueError: a file is damaged or does not fit the other, or the flow does not invert.
        OSError: a file cannot be read.
    """
    path, config_path = directory / WEIGHTS_NAME, directory / CONFIG_NAME
    config, digest = read_config(config_path)
    with _named(path, AGAIN), open(path, "rb") as f:  # once: a save may put another in its place
        shapes, inside = _read_header(f)
        tied = digest == _digest(f)
        own = None if tied else _config_inside(inside, f)
        if own is not None and (digest or own != _untimed(config)):
            warn(STALE.format(config=config_path, weights=path, directory=repr(str(directory))))
            config, config_path, tied = own, path, True
        with _named(config_path, f"correct it, or {AGAIN}"), torch.device("meta"):
            flow = make(config)  # sizes without numbers
        _check_fit(flow, shapes, config_path.name)
        if not tied:
            _check_old(config_path, digest)
        f.seek(0)
        _fill(flow, load(f.read()))
        flow.eval().check_sound()
    return flow.to(torch.get_default_device())


@contextlib.contextmanager
def _named(path: Path, remedy: str) -> Iterator[None]:
    """Makes what can go wrong with a file one ValueError or OSError with its name and a remedy."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, f"cannot read {path}: {e.strerror or e}; {remedy}") from e
    except SafetensorError as e:
        raise ValueError(
            f"{path} cannot be read as safetensors ({e}); it may be truncated: {remedy}"
        ) from e
    except ValueError as e:
        if str(e).startswith(str(path.with_name(CONFIG_NAME))):  # the other file's
            raise
        raise ValueError(f"{path}: {e}; {remedy}") from e


def read_config(path: Path) -> tuple[FlowConfig, str | None]:
    """Reads a config.json: the config, and the digest of its weights where it holds one.

    >>> bundled = Path(__file__).parent / "checkpoints" / "linear.cifar10"
    >>> read_config(bundled / CONFIG_NAME)[0].num_classes
    10

    Raises:
        ValueError, OSError: the file is damaged or missing; names it.
    """
    with _named(path, f"correct it, or {AGAIN}"):
        with open(path, "rb") as f:
            values = _parsed(f.read(MAX_CONFIG + 1), MAX_CONFIG)
        digest = values.get(WEIGHTS_KEY)
        if WEIGHTS_KEY in values and not isinstance(digest, str):
            raise ValueError(f"{WEIGHTS_KEY} must be a text, got {type(digest).__name__}")
        return FlowConfig.from_dict(values), digest


def _parsed(data: bytes, most: int) -> dict[str, Any]:
    """Reads a JSON object; refuses NaN and repeated keys, and takes long integers as floats."""
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes of JSON")
    try:
        values = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except RecursionError:
        raise ValueError("not valid JSON (nested too deep)") from None
    except ValueError as e:  # of JSON or of UTF-8
        raise ValueError(f"not valid JSON ({e})") from e
    if not isinstance(values, dict):
        raise ValueError(f"it must hold a JSON object, got {type(values).__name__}")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _read_header(f: BinaryIO) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Shapes of the tensors in a file of safetensors, and the config inside; nothing else is read."""
    size, there = int.from_bytes(f.read(8), "little"), os.fstat(f.fileno()).st_size
    if not 2 <= size <= min(MAX_HEADER, there - 8):
        raise SafetensorError(f"a header of {size:,} bytes in {there:,}")
    try:
        values = _parsed(f.read(size), MAX_HEADER)
    except ValueError as e:
        raise SafetensorError(f"its header is {e}") from e
    metadata, shapes, end = values.pop("__metadata__", None), {}, 8 + size
    for key, about in values.items():
        about = about if isinstance(about, dict) else {}
        dtype, shape = about.get("dtype"), about.get("shape")
        if not isinstance(dtype, str) or dtype not in SIZES:
            raise ValueError(f"{key} is {dtype!r}, a flow holds floats ({', '.join(SIZES)})")
        if not (isinstance(shape, list) and len(shape) <= 8 and all(map(is_int, shape))):
            raise SafetensorError(f"{key} has no shape")
        shapes[key] = tuple(shape)
        end += math.prod(shape) * SIZES[dtype]
    if end != there:
        raise SafetensorError(f"it should be {end:,} bytes long and is {there:,}")
    return shapes, metadata.get("config") if isinstance(metadata, dict) else None


def _digest(f: BinaryIO, header: bool = True) -> str:
    """SHA-256 of a file of safetensors, or without its `header`: of the numbers alone."""
    f.seek(0)
    if not header:
        f.seek(8 + int.from_bytes(f.read(8), "little"))
    found = hashlib.sha256()
    while block := f.read(2**20):
        found.update(block)
    return found.hexdigest()


def _config_inside(text: Any, f: BinaryIO) -> FlowConfig | None:
    """The config that the weights bring along, or None; raises if the numbers were changed."""
    if not isinstance(text, str):
        return None
    values = _parsed(text.encode(), MAX_CONFIG)
    if values.get(WEIGHTS_KEY) != _digest(f, header=False):
        raise ValueError("its numbers are not those that were saved")
    return FlowConfig.from_dict(values)


def _check_old(path: Path, digest: str | None) -> None:
    """Warns of a config without digest; raises for one of other weights."""
    if digest is not None:
        what = f"{path}: {WEIGHTS_KEY} is not of the weights beside it"
        raise ValueError(f"{what}; {AGAIN}, or if you changed them yourself remove {WEIGHTS_KEY}")
    again = f"flow.save_pretrained({str(path.parent)!r})"
    lacks = f"has no {WEIGHTS_KEY} to check the weights by, as it is of an earlier version"
    warn(f"{path} {lacks}; {again} adds it")


def _check_fit(flow: "ConditionalFlow", shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Raises where tensors are missing, unknown or of other shapes than the config has them."""
    wanted = {k: tuple(v.shape) for k, v in flow.state_dict().items()}
    sets = {"missing": wanted.keys() - shapes.keys(), "unknown": shapes.keys() - wanted.keys()}
    odd = [f"{word} {sorted(keys)[:4]}" for word, keys in sets.items() if keys]
    for key in sorted(wanted.keys() & shapes.keys()):
        odd += [f"{key}: {shapes[key]} instead of {wanted[key]}"] * (shapes[key] != wanted[key])
    if odd:
        raise ValueError(f"it does not fit the config in {source}: {'; '.join(odd[:6])}")


def _fill(flow: "ConditionalFlow", found: dict[str, Tensor]) -> None:
    """Gives a flow without numbers these, in its own dtypes and memory formats."""
    state = {}
    for key, empty in flow.state_dict().items():
        state[key] = torch.empty_like(empty, device="cpu").copy_(found[key])
        _check_numbers(key, state[key])
    flow.load_state_dict(state, assign=True)


def _check_numbers(key: str, tensor: Tensor) -> None:
    """Raises where numbers are not finite, or too large (`BOUNDS`)."""
    low, high = BOUNDS.get(key, (-1e9, 1e9))
    least, most = (v.item() for v in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (low <= least and most <= high):  # NaN is neither
        held = f"{key} holds numbers from {least:g} to {most:g}"
        raise ValueError(f"{held}; it takes finite ones from {low:g} to {high:g}")
