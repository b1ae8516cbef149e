"""The arms of the classification benchmarks: what happens to a batch between crop and loss.

An arm is an `Arm` with any of five parts: a policy on single PIL images, a change of uint8 batches after or before the
crop, a step on normalised tensors (erasing, mixing), and a loss. All random numbers come from the generator of the step
or, in timm's and torchvision's parts, from the global generators, which the training loop seeds from it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import v2

import timm_nfaug as nfa
from timm_nfaug import pixels
from timm_nfaug.augment import SHRINKAGE, NFAugment
from timm_nfaug.data.cache import NFACache
from timm_nfaug.flows.bijections.multiscale import Multiscale
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.moments import ClassMoments
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.moves.perturb import displacement, draw_noise
from train_flow.data import Images
from train_flow.evaluate import batches

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
Policy = Callable[[Image.Image], Image.Image]
LevelsStep = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class Arm:
    """No augmentation beyond crop and flip: the baseline, and what the others start from.

    Args:
        policy: PIL image to PIL image.
        levels: uint8 images (B, C, H, W), labels (B,), generator to uint8 images; runs after the policy.
        before: the same, before crop and flip.
        reprob: probability of timm's RandomErasing at the end.
        mix: timm's Mixup at the end.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        levels: LevelsStep | None = None,
        before: LevelsStep | None = None,
        reprob: float = 0.0,
        mix: Mixup | None = None,
    ):
        self.policy, self.levels, self.before, self.mix = policy, levels, before, mix
        self.erase = RandomErasing(reprob, mode="pixel", device="cpu") if reprob else None

    def start(self, model: nn.Module, steps: int) -> None:
        """Called once before the first step."""

    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        """uint8 images (B, C, H, W), cropped and under `policy` where there is one, to uint8 images."""
        return levels if self.levels is None else self.levels(levels, y, g)

    def tensors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.mix is not None:
            x, y = self.mix(x, y)
        if self.erase is not None:
            self.erase.device = x.device
            x = self.erase(x)
        return x, y

    def loss(self, model: nn.Module, x: Tensor, target: Tensor, step: int) -> Tensor:
        return F.cross_entropy(
            model(x), target
        )  # target: labels (B,) or, of a mix, probabilities (B, K)


def apply_policy(policy: Policy | None, levels: Tensor) -> Tensor:
    """Each of the uint8 images (B, C, H, W) under `policy`, by way of PIL; without one as they are."""
    if policy is None:
        return levels
    moved = [
        v2.functional.pil_to_tensor(policy(v2.functional.to_pil_image(image)))
        for image in levels.cpu()
    ]
    return torch.stack(moved).to(levels.device)


class ISDA(Arm):
    """Implicit semantic data augmentation (Wang et al., NeurIPS 2019): features move along the covariance of their class.

    The expected cross-entropy over such moves has a bound in closed form, which is the loss. Class covariances of the
    features are running averages over the training.
    """

    def __init__(self, strength: float = 0.5):
        super().__init__()
        self.strength = strength

    def start(self, model: nn.Module, steps: int) -> None:
        weight = model.get_classifier().weight
        k, d = weight.shape
        self.steps = steps
        self.count, self.mean = weight.new_zeros(k, 1), weight.new_zeros(k, d)
        self.covariance = weight.new_zeros(k, d, d)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor, step: int) -> Tensor:
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        head = model.get_classifier()
        logits = head(features)
        with torch.autocast(x.device.type, enabled=False):
            self._update(features.detach().float(), target)
            w = head.weight.float()
            strength = self.strength * (step + 1) / self.steps
            spread = w @ self.covariance @ w.T  # (K, K, K): of class y between the rows of w
            own = torch.arange(len(w), device=w.device)
            cross = spread[own, own]  # (K, K): row y of the spread of class y
            variance = spread.diagonal(dim1=1, dim2=2) - 2 * cross + cross.diagonal().unsqueeze(1)
            return F.cross_entropy(logits.float() + 0.5 * strength * variance[target], target)

    @torch.no_grad()
    def _update(self, features: Tensor, y: Tensor) -> None:
        """Welford's update of count, mean and covariance of every class with a batch."""
        for k in y.unique().tolist():
            rows = features[y == k]
            n, m = self.count[k], len(rows)
            new = rows.mean(0)
            delta = new - self.mean[k]
            centred = rows - new
            scatter = centred.T @ centred + torch.outer(delta, delta) * (n * m / (n + m))
            self.covariance[k] = (self.covariance[k] * n + scatter) / (n + m)
            self.mean[k] += delta * m / (n + m)
            self.count[k] += m


class Adversarial(Arm):
    """An adversarial step in the code space (Yüksel et al., ICCV 2021): codes move up the classifier's loss.

    The move has the length that NFAugment's move along the modes has on average at the same strength.
    """

    def __init__(self, flow: ConditionalFlow, strength: float, modes: int, p: float):
        super().__init__()
        self.flow, self.strength, self.modes, self.p = (
            flow.requires_grad_(False),
            strength,
            modes,
            p,
        )

    def start(self, model: nn.Module, steps: int) -> None:
        self.model = model

    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen = (torch.rand(len(levels), generator=g) < self.p).to(levels.device)
        if not chosen.any():
            return levels
        x, labels = pixels.levels_to_model(levels[chosen]), y[chosen]
        length = self.strength * self.flow.prior.mode_std[:, : self.modes].square().sum(1).sqrt()[
            labels
        ].unsqueeze(1)
        with torch.no_grad():
            z = self.flow(x)[0]
            # from a random start, as a step from the image itself meets a vanishing gradient where the loss is small
            z = z + 0.1 * length * F.normalize(
                torch.randn(z.shape, generator=g).to(z.device), dim=1
            )
        z.requires_grad_()
        with torch.enable_grad():
            self.model.eval()  # the statistics of batch norm are not to learn from the search
            loss = F.cross_entropy(self.model(self.flow.inverse(z) * 2), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
            self.model.train()
        with torch.no_grad():
            moved = self.flow.inverse(z + 0.9 * length * F.normalize(gradient, dim=1))
        finite = moved.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels = levels.clone()
        levels[chosen] = pixels.model_to_levels(torch.where(finite, moved, x).clamp(-1, 1))
        return levels


class Safe(Arm):
    """Steps that are taken back where they cost the label: where the classifier, as it stands, had an image right before only."""

    def __init__(self, step: LevelsStep):
        super().__init__()
        self.step = step

    def start(self, model: nn.Module, steps: int) -> None:
        self.model = model

    @torch.no_grad()
    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        moved = self.step(levels, y, g)
        self.model.eval()
        before, after = (
            self.model(pixels.levels_to_model(v) * 2).argmax(1) == y for v in (levels, moved)
        )
        self.model.train()
        return torch.where((before & ~after).view(-1, 1, 1, 1), levels, moved)


@dataclass
class Settings:
    """Of the arms that use a flow, by default NFAugment's, and of RandAugment with RandomErasing, by default timm's usual."""

    strength: float = 0.5  # of `rotation`: the largest angle, radians
    modes: int = 32
    p: float = 0.5
    shrinkage: float = SHRINKAGE  # of `NFAugment.fit`
    place: str = "after"  # or "before" the crop and flip, on images as the flow knows them
    temperature: float = 0.7  # of `samples`
    randaugment: str = RANDAUGMENT  # of `sa` and `sa+...`, as these two
    reprob: float = 0.25  # probability of RandomErasing

    def __post_init__(self):
        if self.place not in ("after", "before"):
            raise ValueError(f"place must be after or before (the crop), got {self.place!r}")


# Arms on a flow that is given by name, and the arm whose flow they use unless one of their own is given.
NEEDS_FLOW = {
    "glem": "glem", "sa+glem": "glem", "isotropic": "glem", "adversarial": "glem", "samples": "glem", "pixel-pca": "glem",
    "patch-pca": "glem", "pooled": "glem", "rotation": "glem", "mode-rotation": "glem", "tangent": "glem",
    "deep": "glem", "safe": "glem",
    "ce": "ce", "ml": "ml", "random": "random", "own-modes": "own-modes",
}  # fmt: skip
KEEPS_MODES = ("ce", "own-modes")  # of its flow, instead of fitting them to the run's own images
# arms that shrinkage does not change: one class leans on itself, and a rotation about the mean takes no modes
SHRINKS_NOT = (*KEEPS_MODES, "pooled", "linear-pooled", "rotation", "linear-rotation")
# the same steps on the linear flow, alone and with an arm without a flow, in the order of timm
ADDED = ("sa+linear", "trivial+linear", "mixup+linear", "cutmix+linear")
LINEAR = (
    "linear",
    *ADDED,
    "linear-pooled",
    "linear-rotation",
    "linear-mode-rotation",
    "linear-safe",
)
ARMS = ("baseline", "sa", *LINEAR, "isda", "mixup", "cutmix", "trivial", *NEEDS_FLOW)


def make_arm(name: str, data: Images, flow: ConditionalFlow | None, s: Settings) -> Arm:
    """An arm for training on `data`.

    Args:
        flow: of the arms in `NEEDS_FLOW`. Its class Gaussians and modes are estimated anew on `data`, so that nothing but
            the network knows of other images; with conditional encoding, where there are none of a class, it stays as it is,
            and so it does in the arm `own-modes`, the control of that.
    """
    if name not in ARMS:
        raise ValueError(f"unknown arm {name!r}; known: {', '.join(ARMS)}")
    if name in ("adversarial", "safe", "linear-safe") and s.place != "after":
        raise ValueError(f"arm {name} needs the image that the classifier sees: --place after")
    if name == "tangent" and s.place != "before":
        raise ValueError("arm tangent knows the training images as they are stored: --place before")
    if name in NEEDS_FLOW and flow is None:
        raise ValueError(f"arm {name} needs a flow: --flow {NEEDS_FLOW[name]}=NAME")
    if (name == "ce") != bool(flow is not None and flow.config.code_rows) and name in NEEDS_FLOW:
        raise ValueError(
            f"arm {name} takes a flow {'with' if name == 'ce' else 'without'} conditional encoding (code_rows)"
        )
    classes = len(data.class_names)
    if name == "baseline":
        return Arm()
    if name == "sa":
        return Arm(randaugment(s.randaugment), reprob=s.reprob)
    if name == "isda":
        return ISDA()
    if name == "mixup":
        return Arm(
            mix=Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=classes)
        )
    if name == "cutmix":
        return Arm(
            mix=Mixup(
                mixup_alpha=0.0,
                cutmix_alpha=1.0,
                prob=0.5,
                label_smoothing=0.0,
                num_classes=classes,
            )
        )
    if name == "trivial":
        return Arm(v2.TrivialAugmentWide())
    if name in KEEPS_MODES:
        if flow.num_classes not in (1, classes):
            raise ValueError(
                f"arm {name} keeps the modes of the flow's own {flow.num_classes} classes, the data has {classes}"
            )
        labels = "none" if flow.num_classes == 1 else "given"
        return with_step(
            nfa_step(
                NFAugment(flow, s.strength, min(s.modes, flow.prior.num_modes), s.p, labels=labels)
            ),
            s,
        )
    if name in LINEAR:
        flow = linear_flow(data)
    method = name.removeprefix("linear-")
    if method == "pooled":
        step = nfa_step(fitted(flow, data.without_labels(), s))
        return with_step(lambda levels, y, g: step(levels, torch.zeros_like(y), g), s)
    if name == "deep" and not isinstance(flow.network, Multiscale):
        raise ValueError(
            f"arm deep needs a multi-scale flow (resnet_ms3), got {flow.config.architecture}"
        )
    augment = fitted(flow, data, s)
    if method == "rotation":
        return with_step(rotation_step(augment.flow, image_partner(augment.flow, data), s), s)
    if method == "mode-rotation":
        return with_step(rotation_step(augment.flow, mode_partner(augment.flow, s), s), s)
    if method == "safe":
        return Safe(nfa_step(augment))
    if name == "isotropic":
        return with_step(
            nfa_step(NFAugment(augment.flow, s.strength, s.modes, s.p, kind="isotropic")), s
        )
    if name == "adversarial":
        return Adversarial(augment.flow, s.strength, s.modes, s.p)
    if name == "tangent":
        return with_step(tangent_step(augment, data, s), s)
    if name == "samples":
        return with_step(sample_step(augment.flow, s), s)
    if name in ("pixel-pca", "patch-pca", "deep"):
        other = (
            flow
            if name == "deep"
            else linear_flow(data)
            if name == "pixel-pca"
            else patch_flow(data)
        )
        control = fitted(other, data, s)
        if name == "deep":
            control.flow.prior.set_modes(*deep_modes(flow, data, control.modes, s.shrinkage))
        control.strength *= mean_move(augment, data) / mean_move(control, data)
        return with_step(nfa_step(control), s)
    other, plus, _ = name.partition("+")
    return with_step(nfa_step(augment), s, make_arm(other, data, None, s) if plus else None)


def with_step(step: LevelsStep, s: Settings, arm: Arm | None = None) -> Arm:
    """The baseline, or `arm`, with `step` before the crop, or after the crop and the policy of `arm`."""
    arm = arm or Arm()
    setattr(arm, "before" if s.place == "before" else "levels", step)
    return arm


def randaugment(config: str) -> Policy:
    guard_posterize()
    return rand_augment_transform(config, {"translate_const": 10, "img_mean": (128, 128, 128)})


def nfa_step(augment: NFAugment) -> LevelsStep:
    return lambda levels, y, g: augment(levels, y, generator=g)[0]


Partner = Callable[
    [Tensor, torch.Generator], Tensor
]  # labels (B,), generator to codes about the class mean (B, D)


def rotation_step(flow: ConditionalFlow, partner: Partner, s: Settings) -> LevelsStep:
    """Codes turned about the mean of their class toward a partner, by 0 to `strength` radians.

    With r = z - mu, the new code is mu + cos(t) r + sin(t) r' for the r' of the partner. If r and r' are drawn from one
    Gaussian, so is the turned code, where a straight line between two codes would leave its shell.
    """

    @torch.no_grad()
    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen, turn = torch.rand(2, len(levels), generator=g).to(levels.device)
        chosen = chosen < s.p
        if not chosen.any():
            return levels
        t = (turn[chosen] * s.strength).unsqueeze(1)
        mu = flow.prior.mu[y[chosen]]
        x = pixels.levels_to_model(levels[chosen])
        moved = flow.inverse(mu + t.cos() * (flow(x)[0] - mu) + t.sin() * partner(y[chosen], g))
        finite = moved.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels = levels.clone()
        levels[chosen] = pixels.model_to_levels(torch.where(finite, moved, x).clamp(-1, 1))
        return levels

    return step


@torch.no_grad()
def image_partner(flow: ConditionalFlow, data: Images) -> Partner:
    """Partners are the codes of random training images of the class, now and then of the image itself."""
    codes = torch.cat([flow(pixels.levels_to_model(levels))[0] for levels, _ in batches(data, 512)])
    codes -= flow.prior.mu[data.labels]
    members = [torch.nonzero(data.labels == k).flatten() for k in range(len(data.class_names))]

    def partner(y: Tensor, g: torch.Generator) -> Tensor:
        places = torch.rand(len(y), generator=g)
        return codes[
            torch.stack(
                [
                    members[k][int(u * len(members[k]))]
                    for k, u in zip(y.tolist(), places, strict=True)
                ]
            )
        ]

    return partner


def mode_partner(flow: ConditionalFlow, s: Settings) -> Partner:
    """Partners are drawn from the class's Gaussian along its modes alone, and so are shorter than codes are."""

    def partner(y: Tensor, g: torch.Generator) -> Tensor:
        modes = min(s.modes, flow.prior.num_modes)
        return displacement(flow, y, draw_noise(len(y), modes, g).to(y.device), "pca", modes)

    return partner


@torch.no_grad()
def deep_modes(
    flow: ConditionalFlow, data: Images, count: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Modes (K, count, D) and standard deviations (K, count) of what passes all levels of a multi-scale flow.

    What leaves at the levels before, the finer detail, is in none of them.
    """
    moments = ClassMoments(len(data.class_names), flow.dim, count, shrinkage=shrinkage)
    deepest = math.prod(flow.network.kept_shapes[-1])
    for levels, y in batches(data, 512):
        z = flow(pixels.levels_to_model(levels))[0]
        z[:, :-deepest] = 0
        moments.update(z, y)
    _, _, modes, std = moments.finish()
    return modes, std


def tangent_step(augment: NFAugment, data: Images, s: Settings) -> LevelsStep:
    """Images moved by a cache of their own tangents, before the crop: the exact flow is not asked again."""
    augment.modes = min(
        augment.modes, augment.flow.prior.num_modes
    )  # a class of few images has fewer
    pairs = list(zip(data.levels.cpu(), data.labels.tolist(), strict=True))
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # the cache keeps its files open, so they outlive their names
        cache = NFACache.build(augment, pairs, folder, step=s.strength)
    rows = {(image.numpy().tobytes(), label): i for i, (image, label) in enumerate(pairs)}

    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        images = zip(levels.cpu(), y.tolist(), strict=True)
        own = torch.tensor([rows[image.numpy().tobytes(), label] for image, label in images])
        return cache.augment(levels, y, own, g, s.strength, s.p)

    return step


def sample_step(flow: ConditionalFlow, s: Settings) -> LevelsStep:
    """Images replaced by samples of their class, each with probability p."""

    @torch.no_grad()
    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen = (torch.rand(len(levels), generator=g) < s.p).to(levels.device)
        x = flow.sample(y[chosen], s.temperature, generator=g)
        levels = levels.clone()
        finite = x.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels[chosen] = torch.where(finite, pixels.model_to_levels(x.clamp(-1, 1)), levels[chosen])
        return levels

    return step


def linear_flow(data: Images) -> ConditionalFlow:
    """Of the size of `data`; no training."""
    return nfa.create_flow("linear", input_size=tuple(data.levels.shape[1:]))


def patch_flow(data: Images) -> ConditionalFlow:
    """The conv_p4 flows without their couplings: whitened patches."""
    shape = tuple(data.levels.shape[1:])
    flow = nfa.create_flow(
        "conv_p4_tiny", input_size=shape, num_classes=len(data.class_names), depth=0
    )
    flow.initialize(pixels.levels_to_model(data.levels[:2048].cpu()))
    return flow


def fitted(flow: ConditionalFlow, data: Images, s: Settings) -> NFAugment:
    """NFAugment with class Gaussians and modes of `data`."""
    flow = flow.to(data.levels.device).eval()
    count = torch.bincount(data.labels, minlength=len(data.class_names))
    rank = int((count - 1).clamp_min(0).sum() if s.shrinkage else count.min() - 1)
    modes = min(s.modes, rank)
    if modes < 1:
        raise ValueError(
            f"modes of a class need two images or more, one class has {int(count.min())}; take a larger fraction"
        )
    return NFAugment.to_fit(flow, modes, strength=s.strength, p=s.p).fit(
        batches(data, 512), len(data.class_names), shrinkage=s.shrinkage
    )


def mean_move(augment: NFAugment, data: Images, count: int = 256) -> float:
    """Mean absolute change of a pixel, in levels, over images spread over `data`."""
    pick = (
        torch.arange(min(count, len(data)), device=data.levels.device)
        * len(data)
        // min(count, len(data))
    )
    levels, labels = data.levels[pick], data.labels[pick]
    p, augment.p = augment.p, 1.0
    moved, _ = augment(levels, labels, generator=torch.Generator().manual_seed(0))
    augment.p = p
    return (moved.float() - levels.float()).abs().mean().item()
