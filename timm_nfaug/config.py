"""FlowConfig: everything that rebuilds a flow, as it stands in config.json, and the schema of it.

Versions of files: FORMAT_VERSION rises when an older version of this package would misread a file;
a reader takes its own version and all before it, and says "upgrade" to later ones. A key that only
adds, as WEIGHTS_KEY does, leaves the number alone, and files without it load with a warning.
"""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._utils.checks import check_keys, is_int
from .labels import LABELS

FORMAT_VERSION = 2  # of flows over latents; all others are written as 1
WEIGHTS_KEY = "weights_sha256"  # in config.json: the digest of the weights that it belongs to
MAX_DEPTH = 16  # of lists and dicts in one another
MAX_CLASSES = 1_000_000
MAX_DIM = 2**26  # pixels times channels: 4096 x 4096 in colour
MAX_LAYERS = 1024  # steps times blocks; the largest published flows have 400
LEAST_STD = 1e-6  # of latents in a channel: they are divided by it
LATENT = ("autoencoder", "revision", "sha256", "size", "mean", "std")
# settings of an NFAugment that are saved with its flow, by their letter in nfa-s0.5-k32-...
SETTINGS = {"s": "strength", "k": "modes", "p": "p", "m": "kind", "l": "labels"}


@dataclass
class FlowConfig:
    """What a flow is made from; raises a ValueError for values that cannot be.

    >>> FlowConfig("linear", (3, 32, 32), num_classes=10).to_dict()["input_size"]
    [3, 32, 32]
    """

    architecture: str  # a name of `list_flows()`
    input_size: tuple[int, int, int]  # (C, H, W) of the images
    num_classes: int
    bits: int = 8  # dequantisation depth of the training, 1 to 8
    network: dict[str, Any] = field(default_factory=dict)  # depth, hidden, ... of the architecture
    prior: dict[str, Any] = field(default_factory=dict)  # a, c, num_modes, low_rank
    code_rows: int = 0  # pixel rows of the band of a `LabelBandFlow`, a multiple of 4
    class_names: list[str] = field(default_factory=list)  # in label order, or none
    info: dict[str, Any] = field(default_factory=dict)  # data, metrics, license, ... for the card
    augment: dict[str, Any] = field(
        default_factory=dict
    )  # of a saved NFAugment: SETTINGS, value_range

    # of a flow over latents, LATENT: the autoencoder, the side of images, and what a latent times
    # `std` plus `mean` is, a number each channel; `input_size` is that of the latents
    latent: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in (f.name for f in dataclasses.fields(self)):
            given = getattr(self, key)
            setattr(self, key, _plain(given, key))
            _check(key, getattr(self, key), given)
        check_keys(self.augment, (*SETTINGS.values(), "value_range"), "augment")
        check_keys(self.latent, LATENT, "latent")
        for name in ("network", "prior", "info", "augment", "latent"):
            for key, value in getattr(self, name).items():
                _check(f"{name}.{key}", value, value)
        c, h, w = self.input_size
        self.input_size = (c, h, w)
        self._check_size()
        self._check_latent()
        if self.class_names and len(self.class_names) != self.num_classes:
            wanted = f"class_names must name all {self.num_classes} classes or none"
            raise ValueError(f"{wanted}, got {len(self.class_names)} names")

    def _check_size(self) -> None:
        c, h, w = self.input_size
        get, blocks = self.network.get, self.network.get("blocks", 1)
        blocks = sum(blocks) if isinstance(blocks, list) else blocks * get("levels", 1)
        layers = max(get("depth", 0), get("steps", 0), 1) * max(blocks, 1)
        size = "channels x height x width of input_size, with code_rows"
        limits = {
            "num_classes": (self.num_classes, MAX_CLASSES),
            size: (c * (h + self.code_rows) * w, MAX_DIM),
            "depth or steps, times blocks,": (layers, MAX_LAYERS),
        }
        for what, (found, most) in limits.items():
            if found > most:
                raise ValueError(f"{what} must be at most {most:,}, got {found:,}")

    def _check_latent(self) -> None:
        if self.latent and "size" not in self.latent:
            raise ValueError("latent lacks size, the side of the images in pixels")
        channels = self.input_size[0]
        for key in ("mean", "std"):
            if (count := len(self.latent.get(key, [0] * channels))) != channels:
                wanted = f"latent.{key} must hold a number for each of the {channels} channels"
                raise ValueError(f"{wanted} of input_size, got {count}")

    @property
    def title(self) -> str:
        """What the flow is called: its fixed modes, as cosine, or its architecture."""
        return self.info.get("fixed_modes", self.architecture)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        own = dataclasses.asdict(self) | {"input_size": list(self.input_size)}
        if not self.augment:  # as files were before there was such a field
            del own["augment"]
        if not self.latent:
            del own["latent"]
        version = FORMAT_VERSION if self.latent else 1
        return {"library": "timm_nfaug", "format_version": version, **own}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FlowConfig":
        """Makes a config from the content of config.json; unknown and missing keys raise."""
        values = dict(values)
        values.pop(WEIGHTS_KEY, None)
        if values.pop("library", None) != "timm_nfaug":
            raise ValueError(
                'config.json is not of a timm_nfaug flow: "library" is not "timm_nfaug"'
            )
        version = values.pop("format_version", None)
        if not is_int(version) or not 1 <= version <= FORMAT_VERSION:
            newer = is_int(version) and version > FORMAT_VERSION
            hint = "upgrade timm_nfaug" if newer else "save or download the flow again"
            raise ValueError(f"format_version {version!r} is not 1 or {FORMAT_VERSION}: {hint}")
        check_keys(values, {f.name for f in dataclasses.fields(cls)}, "config")
        missing = {"architecture", "input_size", "num_classes"} - values.keys()
        if missing:
            raise ValueError(f"config lacks {', '.join(sorted(missing))}")
        return cls(**values)


def settings_string(settings: dict[str, Any]) -> str:
    """Writes settings of an NFAugment as `timm_nfaug.spec.parse_config` reads them.

    >>> settings_string({"strength": 0.5, "modes": 32, "labels": "none"})
    'nfa-s0.5-k32-lnone'
    """
    parts = [f"{k}{_short(settings[name])}" for k, name in SETTINGS.items() if name in settings]
    return "-".join(["nfa", *parts])


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


Rule = tuple[Callable[[Any], bool], str]


def _is_size(v: Any) -> bool:
    return isinstance(v, list) and len(v) == 3 and all(is_int(n) and n > 0 for n in v)


def _is_range(v: Any) -> bool:
    ends = [end if isinstance(end, list) else [end] for end in v] if isinstance(v, list) else []
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e30
    return len(ends) == 2 and all(0 < len(end) <= 2**14 and all(map(number, end)) for end in ends)


def _is_blocks(v: Any) -> bool:
    each = v if isinstance(v, list) and 0 < len(v) <= 16 else [v]
    return all(is_int(n) and 0 <= n <= MAX_LAYERS for n in each)


def _are_texts(v: Any) -> bool:
    return isinstance(v, list) and all(isinstance(t, str) for t in v)


def _are_numbers(v: Any) -> bool:
    number = lambda x: is_int(x) or isinstance(x, float)
    return (
        isinstance(v, list) and 0 < len(v) <= 2**14 and all(number(x) and abs(x) < 1e6 for x in v)
    )


def _are_spreads(v: Any) -> bool:
    return _are_numbers(v) and all(x >= LEAST_STD for x in v)


def _is_name(v: Any) -> bool:
    return isinstance(v, str) and v.isascii() and v.isidentifier()


def _count(low: int, high: int) -> Rule:
    return lambda v: is_int(v) and low <= v <= high, f"an integer from {low} to {high}"


def _number(low: float, high: float) -> Rule:
    fits = lambda v: (is_int(v) or isinstance(v, float)) and low <= v <= high
    return fits, f"a number from {low:g} to {high:g}"


def _or_null(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or null"


_FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
_TEXT: Rule = (lambda v: isinstance(v, str), "a text")
_DICT: Rule = (lambda v: isinstance(v, dict), "a dict")

# every field of config.json; a key of `network` or `prior` that is not here is refused where the
# flow is made, and `info` takes any
_SCHEMA: dict[str, Rule] = {
    "architecture": _TEXT,
    "input_size": (_is_size, "three positive integers (channels, height, width)"),
    "num_classes": (lambda v: is_int(v) and v > 0, "a positive integer"),
    "bits": _count(1, 8),
    "code_rows": _count(0, 2**14),
    "class_names": (_are_texts, "a list of texts"),
    "network": _DICT,
    "network.depth": _count(0, 2**20),
    "network.hidden": _count(1, 2**16),
    "network.blocks": (_is_blocks, f"an integer from 0 to {MAX_LAYERS}, or a list of up to 16"),
    "network.heads": _count(1, 2**16),
    "network.levels": _count(1, 16),
    "network.steps": _count(0, 2**20),
    "network.patch": _count(1, 2**12),
    "network.clamp": _number(1e-3, 20),  # exp(20) is 5e8
    "network.whiten": _FLAG,
    "network.basis": _count(0, 2**14),
    "prior": _DICT,
    "prior.a": _or_null(_number(1e-6, 1e6)),
    "prior.c": _number(0, 1e6),
    "prior.num_modes": _count(0, 2**14),
    "prior.low_rank": _FLAG,
    "info": _DICT,
    "info.data": _TEXT,
    "info.license": _TEXT,
    "info.training": _TEXT,
    "info.fixed_modes": _TEXT,
    "info.metrics": _DICT,
    "augment": _DICT,
    "augment.strength": _number(0, 1e9),
    "augment.modes": _count(1, MAX_DIM),
    "augment.p": _number(0, 1),
    # the move itself may be registered by another program: `create_move` looks for it
    "augment.kind": (_is_name, "a name of letters, digits and _"),
    "augment.value_range": (_is_range, "[low, high], numbers or lists of one a channel"),
    "latent": _DICT,
    "latent.autoencoder": _TEXT,
    "latent.revision": _or_null(_TEXT),
    "latent.sha256": _TEXT,
    "latent.size": _count(1, 2**13),
    "latent.mean": (_are_numbers, "a list of numbers, one a channel"),
    "latent.std": (_are_spreads, f"a list of numbers from {LEAST_STD:g}, one a channel"),
    "augment.labels": (lambda v: v in LABELS, f"one of {', '.join(LABELS)}"),
}


def _check(key: str, value: Any, given: Any) -> None:
    """Raises a ValueError where a value breaks its rule, and shows it as it was given."""
    allowed, expected = _SCHEMA.get(key, (lambda v: True, ""))
    if not allowed(value):
        raise ValueError(f"{key} must be {expected}, got {reprlib.repr(given)}")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of `value` as it comes back from JSON, numpy's numbers as Python's."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} holds lists or dicts more than {MAX_DEPTH} deep")
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _plain(v, f"{where}.{k}"[:80], depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, where, depth + 1) for v in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair could never be written
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise ValueError(f"{where} must hold what JSON can, got {type(value).__name__}")
    return value
