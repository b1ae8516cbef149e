"""TrainConfig: every setting of a training, read from YAML and from ``--set key=value``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from timm_nfaug._utils.checks import check_choice, check_keys, closest, is_int

CONFIGS = Path(__file__).parent / "configs"
CHOICES = {
    "objective": ("glem", "ml", "joint", "random", "ce", "moments"),
    "space": ("pixels", "latent"),
    "data": ("folder", "cifar10", "cifar100", "digits"),
    "schedule": ("cosine", "halving"),
    "average": ("ema", "swa", "none"),
    "net_dtype": ("float32", "bfloat16"),
}
SIDES = (64, 448)  # pixels, of images whose latents a flow models
# the range of each number; NaN lies in none
BOUNDS = {
    "bits": "[1, 8]", "code_rows": "[0, 4096]", "image_size": "[1, 4096]", "val_fraction": "[0, 1)",
    "discriminative": "[0, inf)", "temperature": "(0, inf)", "shift": "[0, 4096]",
    "modes_every": "[0, 1e9]", "gaussian_fraction": "[0, 1)", "gaussian_every": "[0, 1e9]",
    "gaussian_images": "[0, 1e9]", "gaussian_until": "[0, 1]", "epochs": "(0, 1e9]",
    "steps": "[0, 1e9]", "batch_size": "[1, 1e9]", "lr": "(0, 1e3]", "weight_decay": "[0, 1e3]",
    "warmup_steps": "[0, 1e9]", "lr_floor": "[0, inf)", "halve_from": "[0, 1e9]",
    "halve_every": "(0, 1e9]", "clip_grad": "[0, inf)", "ema_decay": "[0, 1)", "swa_from": "[0, 1]",
    "seed": "[0, 1e18]", "log_every": "[1, 1e9]", "eval_every": "[0, 1e9]",
    "eval_images": "[0, 1e9]", "checkpoint_seconds": "[0, inf)", "mode_images": "[0, 1e9]",
}  # fmt: skip


@dataclass
class TrainConfig:
    """Settings of one training; wrong ones and those that do not go together raise a ValueError.

    A schedule is a list of [fraction, value] points; the fraction is 0 at the first step and 1
    where the Gaussians freeze.

    >>> config = TrainConfig(data="digits", in_chans=1, steps=400)
    >>> config.total_steps(images=1438), config.alternates
    (400, True)
    """

    # -- flow
    flow: str = "conv_p4_small"  # architecture, see timm_nfaug.list_flows()
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the architecture
    prior: dict[str, Any] = field(default_factory=dict)  # arguments of ClassGaussians
    bits: int = 8  # bits a channel of the images that the flow models, 1 to 8
    # name, directory or Hub id of a flow to start from, of the same architecture and classes
    init: str = ""
    code_rows: int = 0  # pixels, height of the label band of objective ce, which makes 0 an 8

    # -- space
    space: str = "pixels"  # pixels, or latent: what an autoencoder makes of the images
    autoencoder: str = ""  # a Hub id or directory of diffusers, or FILE.py:FUNCTION
    latents: str = ""  # directory of the cached latents; "": OUT/latents

    # -- data
    data: str = "folder"  # folder (ImageFolder tree), cifar10, cifar100 or digits
    # name of the dataset in the model card, e.g. "CIFAR-10 (JPEG)"; "": the folder's, or CIFAR-10
    data_name: str = ""
    image_size: int | None = None  # pixels, side; required for a folder; 64 to 448 for latents
    in_chans: int = 3  # channels: 3 for RGB, 1 for greyscale
    flip: bool = True  # flip half of the images horizontally, at random
    # false: ignore the labels and train a flow of one class (objective ml, joint or moments)
    labels: bool = True
    # share of the training images held out for validation, [0, 1), stratified by class;
    # 0: the validation split of the data, if there is one
    val_fraction: float = 0.0
    skip_unreadable: bool = False  # warn of images that cannot be read instead of stopping

    # -- objective
    # glem: the flow and the Gaussians by turns, with the KLD term; ml: the same without it
    # joint: the flow and the Gaussians in the same steps; random: fixed random Gaussians
    # ce: label band and one shared Gaussian (baseline); moments: closed form, no training
    objective: str = "glem"
    # weight of the cross-entropy of the class logits (nats) beside bits/dim or nats/dim
    discriminative: float = 0.0
    temperature: float = 1.0  # divides the class logits in that cross-entropy
    # pixels; half of each batch is shifted by up to this and counts in the cross-entropy only
    shift: int = 0
    # steps between closed-form fits of the Gaussians (joint and prior.low_rank only); 0: none
    modes_every: int = 0

    # -- Gaussians: all of glem and ml; joint has images, until and lr
    # share of the training images, [0, 1), kept for the Gaussians until they freeze (D_G);
    # 0: the Gaussians and the flow share all images
    gaussian_fraction: float = 0.1
    gaussian_every: int = 0  # flow steps between two updates of the Gaussians; 0: one epoch
    gaussian_images: int = 0  # images of D_G in one update or fit; 0: all
    gaussian_until: float = 0.8  # fraction of the steps after which the Gaussians freeze
    # learning rate of the Gaussians' Adam, a schedule, geometric between its points
    gaussian_lr: list = field(
        default_factory=lambda: [[0.0, 0.1], [0.1, 0.1], [0.11, 0.01], [1.0, 0.001]]
    )
    # weight of the KLD term (glem only), a schedule, linear between its points
    kld_weight: list = field(default_factory=lambda: [[0.0, 50.0], [1.0, 25.0]])

    # -- optimisation
    epochs: float = 100  # passes over the data; ignored where steps is given
    steps: int = 0  # steps of the flow; 0: as many as epochs needs
    batch_size: int = 128  # images a step, over all processes
    optimizer: str = "adamw"  # name of a timm optimizer: adamw, adamax, ...
    lr: float = 1e-3  # peak learning rate of the flow
    weight_decay: float = 0.0  # of the flow's weights, not of biases and norms
    warmup_steps: int = 100  # steps over which the learning rate rises linearly to lr
    # cosine: falls to lr_floor; halving: halves every halve_every epochs from halve_from on
    schedule: str = "cosine"
    lr_floor: float = 0.0  # lowest learning rate after the warm-up
    halve_from: float = 300  # epochs before the first halving
    halve_every: float = 100  # epochs between halvings
    clip_grad: float = 1.0  # largest norm of the gradient of bits/dim or nats/dim; 0: no limit
    average: str = "ema"  # average of the weights: ema, swa (equal weights, from swa_from) or none
    ema_decay: float = 0.998  # final decay a step; it starts at 0.1 and rises
    swa_from: float = 0.8  # fraction of the steps after which swa starts
    net_dtype: str = "float32"  # float32 or bfloat16, of the networks inside the couplings
    reversible: bool = False  # recompute activations in backward: less memory, more time

    # -- run
    seed: int = 0
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps; 0: only at the end
    eval_images: int = 2000  # validation images used for that during training; 0: all
    checkpoint_seconds: float = 60.0  # seconds between checkpoints
    # steps after which the flow is also exported as it is then, to OUT/flow-STEP
    snapshots: list = field(default_factory=list)
    mode_images: int = 0  # training images that the principal modes are fitted on; 0: all
    half: bool = False  # store kernels and modes in float16; the report is of the stored flow

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            setattr(self, f.name, _typed(f.name, getattr(self, f.name), str(f.type)))
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        for name, bounds in BOUNDS.items():
            _check_bounds(name, getattr(self, name), bounds)
        self._check_schedules()
        self._check_data()
        self._check_space()
        self._check_classification()
        self._check_label_band()
        self._check_without_labels()
        if self.modes_every and not (self.joint and self.prior.get("low_rank")):
            got = f"got {self.objective} and prior {self.prior}"
            raise ValueError(
                f"modes_every goes with objective joint and prior.low_rank=true, {got}"
            )

    @property
    def alternates(self) -> bool:
        """Whether the Gaussians are trained by turns with the flow."""
        return self.objective in ("glem", "ml")

    @property
    def joint(self) -> bool:
        """Whether the Gaussians are trained in the flow's own steps."""
        return self.objective == "joint"

    def total_steps(self, images: int) -> int:
        """Number of steps of the flow where an epoch has `images` images."""
        if self.objective == "moments":
            return 0
        return self.steps or max(1, round(self.epochs * max(images // self.batch_size, 1)))

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)

    def _check_schedules(self) -> None:
        if not all(is_int(step) and 0 < step <= 1e9 for step in self.snapshots):
            got = f"got {self.snapshots!r}"
            raise ValueError(f"snapshots must be steps, integers of at least 1, {got}")
        _check_schedule("gaussian_lr", self.gaussian_lr, positive=True)
        _check_schedule("kld_weight", self.kld_weight, positive=False)
        if self.lr_floor > self.lr:
            raise ValueError(f"lr_floor must be at most lr, got {self.lr_floor:g} and {self.lr:g}")

    def _check_data(self) -> None:
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 1 or 3, got {self.in_chans}")
        if self.data == "folder" and not self.image_size:
            raise ValueError(
                "image_size is required with data: folder; set it to the flow's image side, e.g. 32"
            )
        side = {"digits": 8, "cifar10": 32, "cifar100": 32}.get(self.data)
        if side and self.image_size not in (None, side):
            raise ValueError(
                f"images of {self.data} are {side} pixels wide, got image_size {self.image_size}; "
                f"leave it out, or give them as class folders of files with data: folder"
            )

    def _check_space(self) -> None:
        if self.space == "pixels":
            if given := next((k for k in ("autoencoder", "latents") if getattr(self, k)), ""):
                raise ValueError(f"{given} goes with space: latent; add --set space=latent")
            return
        low, high = SIDES
        if not low <= (self.image_size or 0) <= high:
            got = f"got {self.image_size}"
            raise ValueError(f"image_size must be in [{low}, {high}] with space: latent, {got}")
        for name, wanted in {"data": "folder", "in_chans": 3, "bits": 8, "shift": 0}.items():
            if (got := getattr(self, name)) != wanted:
                raise ValueError(f"space: latent goes with {name}: {wanted}, got {got}")

    def _check_classification(self) -> None:
        if self.shift and not self.discriminative:
            why = "shifted images count in the cross-entropy only"
            raise ValueError(f"shift goes with discriminative above 0: {why}")

    def _check_label_band(self) -> None:
        if self.objective != "ce":
            if self.code_rows:
                raise ValueError("code_rows goes with objective: ce")
            return
        self.code_rows = self.code_rows or 8
        if self.discriminative:
            what = "objective: ce has one Gaussian for all classes and nothing to discriminate"
            raise ValueError(f"{what}; drop discriminative")

    def _check_without_labels(self) -> None:
        possible = self.objective in ("ml", "joint", "moments") and not self.discriminative
        if not self.labels and not possible:
            raise ValueError(
                "labels: false goes with objective ml, joint or moments and discriminative 0, "
                f"there being one class; got objective {self.objective}, "
                f"discriminative {self.discriminative:g}"
            )


def list_configs() -> list[str]:
    """Names of the shipped configs.

    >>> "conv_p4_tiny.digits" in list_configs()
    True
    """
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a shipped config by name, or a YAML file by path.

    Args:
        overrides: ``key=value`` settings that replace those of the file.

    >>> config = load_config("conv_p4_tiny.digits", ["lr=1e-4", "prior.num_modes=8"])
    >>> config.lr, config.prior
    (0.0001, {'num_modes': 8})
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = list_configs()
        raise ValueError(
            f"no config {name!r}{closest(str(name), known)}; shipped: {', '.join(known)}"
        )
    values = _parse(path.read_bytes(), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold key: value lines, got a {type(values).__name__}")
    for item in overrides:
        _override(values, item)
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    check_keys(map(str, values), fields, f"config {path.name}")
    return TrainConfig(**values)


def _override(values: dict[str, Any], item: str) -> None:
    """Puts one ``key=value`` or ``key.inner=value`` into `values`."""
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


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # the latter of dates, and of depth
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(e).split())}") from None


def _typed(key: str, value: Any, annotation: str) -> Any:
    """Converts `value` to the type of its field; YAML reads 1e-3 as a string."""
    try:
        found = value if annotation == "str" else _numbers(value)
    except RecursionError:
        raise ValueError(f"{key} is nested too deeply") from None
    if annotation == "float" and type(found) is int and abs(found) < 1e300:
        found = float(found)
    if annotation.startswith("int") and type(found) is float and found.is_integer():
        found = int(found)
    names = annotation.partition("[")[0].replace("None", "NoneType").split(" | ")
    strange = isinstance(found, dict) and not all(isinstance(k, str) for k in found)
    if strange or type(found).__name__ not in names:
        raise ValueError(f"{key} must be {annotation}, got {value!r}")
    return found


def _numbers(value: Any) -> Any:
    """Converts strings that are numbers, such as 1e-3, at any depth of lists and dicts."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
            return int(number) if number.is_integer() else number
    return value


def _check_bounds(name: str, value: float | None, bounds: str) -> None:
    """Refuses a number outside of `bounds`, such as "[0, 1)"; a setting left out, None, may be."""
    low, high = map(float, bounds[1:-1].split(", "))
    above = value is None or (low < value if bounds[0] == "(" else low <= value)
    below = value is None or (value < high if bounds[-1] == ")" else value <= high)
    if not (above and below):
        raise ValueError(f"{name} must be in {bounds}, got {value!r}")


def _check_schedule(name: str, points: list, positive: bool) -> None:
    pairs = all(isinstance(p, (list, tuple)) and len(p) == 2 for p in points)
    numbers = pairs and all(type(v) in (int, float) and abs(v) < 1e30 for p in points for v in p)
    fractions = [p[0] for p in points] if numbers else []
    if not fractions or fractions != sorted(fractions) or fractions[0] < 0 or fractions[-1] > 1:
        raise ValueError(
            f"{name} must be [fraction, value] pairs with fractions in [0, 1] that do not fall, "
            f"e.g. [[0.0, 0.1], [1.0, 0.01]]; got {points!r}"
        )
    lowest = min(value for _, value in points)
    if lowest < 0 or (positive and lowest == 0):
        least = "above 0" if positive else "at least 0"
        raise ValueError(
            f"the values of {name} must be {least}, e.g. [[0.0, 0.1], [1.0, 0.01]], got {points!r}"
        )
