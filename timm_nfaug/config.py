"""FlowConfig: everything that rebuilds a flow, as it stands in config.json."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._utils.checks import check_keys, is_int

FORMAT_VERSION = 1


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

    def __post_init__(self) -> None:
        for key, (allowed, expected) in _EXPECTED.items():
            if not allowed(value := getattr(self, key)):
                raise ValueError(f"{key} must be {expected}, got {value!r}")
            setattr(self, key, _plain(value))
        c, h, w = self.input_size
        self.input_size = (c, h, w)
        self.class_names = [str(name) for name in self.class_names]
        if self.class_names and len(self.class_names) != self.num_classes:
            wanted = f"class_names must name all {self.num_classes} classes or none"
            raise ValueError(f"{wanted}, got {len(self.class_names)} names")

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        own = dataclasses.asdict(self) | {"input_size": list(self.input_size)}
        return {"library": "timm_nfaug", "format_version": FORMAT_VERSION, **own}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FlowConfig":
        """Makes a config from the content of config.json; unknown and missing keys raise."""
        values = dict(values)
        if values.pop("library", None) != "timm_nfaug":
            raise ValueError(
                'config.json is not of a timm_nfaug flow: "library" is not "timm_nfaug"'
            )
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {version!r} is not {FORMAT_VERSION}: upgrade timm_nfaug"
            )
        check_keys(values, {f.name for f in dataclasses.fields(cls)}, "config")
        missing = {"architecture", "input_size", "num_classes"} - values.keys()
        if missing:
            raise ValueError(f"config lacks {', '.join(sorted(missing))}")
        return cls(**values)


def _is_size(v: Any) -> bool:
    return isinstance(v, (list, tuple)) and len(v) == 3 and all(is_int(n) and n > 0 for n in v)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_size": (_is_size, "three positive integers (channels, height, width)"),
    "num_classes": (lambda v: is_int(v) and v > 0, "a positive integer"),
    "code_rows": (lambda v: is_int(v) and v >= 0, "an integer of at least 0"),
    "bits": (lambda v: v in range(1, 9), "an integer from 1 to 8"),
    **dict.fromkeys(("network", "prior", "info"), (lambda v: isinstance(v, dict), "a dict")),
}


def _plain(value: Any) -> Any:
    """A copy of `value` as it comes back from JSON, numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
