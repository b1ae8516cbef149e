"""TrainConfig: every setting of a training, read from YAML and from ``--set key=value``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from timm_nfaug._utils.checks import check_keys, closest

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class TrainConfig:
    """One training. Points of a schedule are [fraction of the alternation, value] pairs."""

    # flow
    flow: str = "conv_p4_small"  # architecture, see timm_nfaug.list_flows()
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the architecture
    prior: dict[str, Any] = field(default_factory=dict)  # arguments of ClassGaussians
    bits: int = 8  # dequantisation depth
    init: str = (
        ""  # a flow (name, directory, Hub id) of the same architecture and classes to start from
    )
    code_rows: int = 0  # height of the label band; the `ce` objective sets 8 if it is 0

    # data
    data: str = "folder"  # folder (ImageFolder tree), cifar10, cifar100, digits
    data_name: str = ""  # how the data is called in the card, e.g. "CIFAR-10 (JPEG)"
    image_size: int | None = None  # side images are resized and cropped to; required for a folder
    in_chans: int = 3  # 3 RGB, 1 greyscale
    flip: bool = True  # random horizontal flips
    labels: bool = True  # false: the labels are not looked at, all images are one class (objective ml, joint or moments)
    val_fraction: float = (
        0.0  # share of the training set held out (stratified) where there is no val/, or to tune on
    )
    skip_unreadable: bool = (
        False  # skip images that cannot be read (they are named) instead of stopping
    )

    # objective
    objective: str = "glem"  # glem, ml (no KLD), joint (ml without alternation: flow and Gaussians in the same step),
    # random (fixed random Gaussians), ce (code band), moments (closed form)
    discriminative: float = (
        0.0  # weight of the cross-entropy of class_logits (nats) beside the bits/dim
    )
    temperature: float = 1.0  # that class_logits are divided by in that cross-entropy
    shift: int = 0  # pixels; half of each batch is shifted by up to so many and counts in that cross-entropy only

    modes_every: int = 0  # with joint and prior.low_rank: steps between two closed-form fits of means, modes and variances

    # the Gaussians' alternation (glem, ml); of it joint has gaussian_until and gaussian_lr, and modes_every gaussian_images
    gaussian_fraction: float = (
        0.1  # stratified share of the training set for D_G; 0: the training set itself
    )
    gaussian_every: int = (
        0  # flow steps between two updates of the Gaussians; 0: once an epoch, as in the paper
    )
    gaussian_images: int = 0  # images of D_G in one update; 0: all
    gaussian_until: float = (
        0.8  # fraction of the steps after which the Gaussians freeze and D_G joins D_NF
    )
    gaussian_lr: list = field(
        default_factory=lambda: [[0.0, 0.1], [0.1, 0.1], [0.11, 0.01], [1.0, 0.001]]
    )  # geometric
    kld_weight: list = field(default_factory=lambda: [[0.0, 50.0], [1.0, 25.0]])  # linear

    # optimisation
    epochs: float = 100  # passes over the data; ignored when steps is given
    steps: int = 0  # flow steps
    batch_size: int = 128  # images a step, all processes together
    optimizer: str = "adamw"  # a timm optimizer name: adamw, adamax, ...
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: str = "cosine"  # cosine (to lr_floor), or halving (by half every halve_every epochs from halve_from on)
    lr_floor: float = 0.0
    halve_from: float = 300  # epochs
    halve_every: float = 100  # epochs
    clip_grad: float = 1.0  # global norm in bits/dim units; 0: none
    average: str = "ema"  # ema, swa (from swa_from on), none
    ema_decay: float = 0.998  # reached as (1 + step) / (10 + step) grows
    swa_from: float = 0.8  # fraction of the steps
    net_dtype: str = "float32"  # float32 or bfloat16, of the networks inside the couplings
    reversible: bool = False  # activations are computed again in backward: memory grows by weights and gradients alone

    # run
    seed: int = 0
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps; 0: at the end only
    eval_images: int = 2000  # of the validation set, during training
    checkpoint_seconds: float = 60.0
    snapshots: list = field(
        default_factory=list
    )  # steps after which the flow is also saved as it then is, in OUT/flow-STEP
    mode_images: int = 0  # training images that the principal modes are estimated from; 0: all
    half: bool = (
        False  # store kernels and modes in float16; the report is made from the stored flow
    )

    def __post_init__(self):
        _choice("objective", self.objective, ("glem", "ml", "joint", "random", "ce", "moments"))
        _choice("data", self.data, ("folder", "cifar10", "cifar100", "digits"))
        _choice("schedule", self.schedule, ("cosine", "halving"))
        _choice("average", self.average, ("ema", "swa", "none"))
        _choice("net_dtype", self.net_dtype, ("float32", "bfloat16"))
        for name in ("val_fraction", "gaussian_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("gaussian_lr", "kld_weight"):
            _check_schedule(name, getattr(self, name), positive=name == "gaussian_lr")
        if self.steps < 0 or not 0 < self.epochs < math.inf:
            raise ValueError(
                f"steps must be at least 0 (0: as epochs say) and epochs above 0, got {self.steps} and {self.epochs:g}; "
                f"e.g. steps=10000"
            )
        for name in ("batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not all(isinstance(step, int) and step > 0 for step in self.snapshots):
            raise ValueError(
                f"snapshots must be steps, integers of at least 1, got {self.snapshots!r}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.shift < 0 or self.discriminative < 0:
            raise ValueError(
                f"shift and discriminative must be at least 0, got {self.shift} and {self.discriminative}"
            )
        if self.shift and not self.discriminative:
            raise ValueError(
                "shift goes with discriminative above 0: shifted images count in the cross-entropy only"
            )
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 1 or 3, got {self.in_chans}")
        if self.data == "folder" and not self.image_size:
            raise ValueError(
                "image_size is required with data: folder; set it to the flow's image side, e.g. 32"
            )
        side = {"digits": 8, "cifar10": 32, "cifar100": 32}.get(self.data)
        if side and self.image_size not in (None, side):
            raise ValueError(
                f"images of {self.data} are {side} pixels wide, got image_size {self.image_size}; leave it out, or give them as "
                f"class folders of files with data: folder"
            )
        if self.modes_every and (self.objective != "joint" or not self.prior.get("low_rank")):
            raise ValueError(
                f"modes_every goes with objective joint and prior.low_rank=true, got {self.objective} and prior {self.prior}"
            )
        if self.objective == "ce" and self.code_rows == 0:
            self.code_rows = 8
        if self.objective == "ce" and self.discriminative:
            raise ValueError(
                "objective: ce has one Gaussian for all classes and nothing to discriminate; drop discriminative"
            )
        if not self.labels and (
            self.objective not in ("ml", "joint", "moments") or self.discriminative
        ):
            raise ValueError(
                f"labels: false goes with objective ml, joint or moments and discriminative 0, there being one class; got "
                f"objective {self.objective}, discriminative {self.discriminative:g}"
            )
        if self.objective != "ce" and self.code_rows:
            raise ValueError("code_rows goes with objective: ce")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def list_configs() -> list[str]:
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def load_config(name: str, overrides: list[str] = ()) -> TrainConfig:
    """A shipped config by name, or a YAML file by path, with ``key=value`` overrides (``prior.num_modes=16`` too)."""
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"no config {name!r}{closest(name, list_configs())}; shipped: {', '.join(list_configs())}"
        )
    values = _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold key: value lines, got a {type(values).__name__}")
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep:
            raise ValueError(f"--set takes key=value, got {item!r}")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {item}: {parent} is {target!r}, it has no settings inside")
        target[last] = _parse(text, f"--set {item}")
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    check_keys(values, set(fields), f"config {path.name}")
    for key, value in values.items():
        values[key] = _typed(key, value, fields[key].type)
    return TrainConfig(**values)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(e).split())}") from None


def _typed(key: str, value: Any, annotation: str) -> Any:
    """`value` as the field's type; YAML reads 1e-3 as a string, so numbers are parsed again."""
    try:
        if annotation == "float":
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if annotation in ("int", "int | None"):
            if value is None and "None" in annotation:
                return None
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{key} must be {annotation}, got {value!r}") from None
    kinds = {"bool": bool, "str": str, "list": list}
    kind = kinds.get(annotation, dict)
    if not isinstance(value, kind):
        raise ValueError(f"{key} must be {annotation}, got {value!r}")
    return _numbers(value) if isinstance(value, (list, dict)) else value


def _numbers(value: Any) -> Any:
    """`value` with strings that are numbers, such as 1e-3, as numbers, at any depth of lists and dicts."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
            return int(number) if number.is_integer() else number
    return value


def _check_schedule(name: str, points: list, positive: bool) -> None:
    number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    pairs = all(
        isinstance(p, (list, tuple)) and len(p) == 2 and all(map(number, p)) for p in points
    )
    fractions = [p[0] for p in points] if pairs else []
    if not fractions or fractions != sorted(fractions) or fractions[0] < 0 or fractions[-1] > 1:
        raise ValueError(
            f"{name} must be [fraction, value] pairs with fractions in [0, 1] that do not fall, e.g. [[0.0, 0.1], [1.0, 0.01]]; "
            f"got {points!r}"
        )
    if positive and min(value for _, value in points) <= 0:
        raise ValueError(
            f"the values of {name} must be above 0, e.g. [[0.0, 0.1], [1.0, 0.01]], got {points!r}"
        )


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}{closest(value, known)}, got {value!r}"
        )
