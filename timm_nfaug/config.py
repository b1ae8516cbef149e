"""FlowConfig: everything that rebuilds a flow, as it stands in config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._utils.checks import check_keys, is_int
from .pixels import check_bits

FORMAT_VERSION = 1


@dataclass
class FlowConfig:
    """What a flow is made from; raises a ValueError for values that cannot be.

    Attributes:
        architecture: a name of `list_flows()`.
        input_size: (C, H, W) of the images.
        num_classes: K.
        bits: dequantisation depth of the training, 1 to 8.
        network: arguments of the architecture (depth, hidden channels, ...).
        prior: arguments of `ClassGaussians` (a, c, num_modes, low_rank).
        code_rows: pixel rows of the label band below the image (a multiple of 4, see
            `LabelBandFlow`); 0: class Gaussians instead.
        class_names: K names in label order, or none.
        info: what is worth knowing of the training (data, metrics, license), for the model card.

    >>> FlowConfig("linear", (3, 32, 32), num_classes=10).to_dict()["input_size"]
    [3, 32, 32]
    """

    architecture: str
    input_size: tuple[int, int, int]
    num_classes: int
    bits: int = 8
    network: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    code_rows: int = 0
    class_names: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.input_size = _checked_size(self.input_size)
        if not is_int(self.num_classes) or self.num_classes < 1:
            raise ValueError(f"num_classes must be a positive integer, got {self.num_classes!r}")
        if not is_int(self.code_rows) or self.code_rows < 0:
            raise ValueError(f"code_rows must be an integer of at least 0, got {self.code_rows!r}")
        check_bits(self.bits)
        for key in ("network", "prior", "info"):
            if not isinstance(getattr(self, key), dict):
                raise ValueError(f"{key} must be a dict of arguments, got {getattr(self, key)!r}")
            setattr(self, key, _plain(getattr(self, key)))
        self.class_names = [str(name) for name in self.class_names]
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must name all {self.num_classes} classes or none, "
                f"got {len(self.class_names)} names"
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        own = dataclasses.asdict(self) | {"input_size": list(self.input_size)}
        return {"library": "timm_nfaug", "format_version": FORMAT_VERSION, **own}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowConfig:
        """Makes a config from the content of config.json; unknown and missing keys raise."""
        values = dict(values)
        if values.pop("library", None) != "timm_nfaug":
            raise ValueError(
                'this config.json is not of a timm_nfaug flow: it lacks "library": "timm_nfaug"'
            )
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {version!r} of the flow is not {FORMAT_VERSION}; upgrade timm_nfaug"
            )
        check_keys(values, {f.name for f in dataclasses.fields(cls)}, "config")
        missing = {"architecture", "input_size", "num_classes"} - values.keys()
        if missing:
            raise ValueError(f"config lacks {', '.join(sorted(missing))}")
        return cls(**values)


def _checked_size(size: Any) -> tuple[int, int, int]:
    three = isinstance(size, (list, tuple)) and len(size) == 3
    if not three or not all(is_int(v) and v > 0 for v in size):
        raise ValueError(
            f"input_size must be three positive integers (channels, height, width), got {size!r}"
        )
    return tuple(size)


def _plain(value: Any) -> Any:
    """A copy of `value` as it comes back from JSON: tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
