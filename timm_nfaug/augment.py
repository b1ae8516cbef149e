"""NFAugment: the augmentation, as a torchvision v2 transform for one image or a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2

from . import lift, pixels
from ._utils.checks import check_keys, check_probability, check_strength
from ._utils.random import keyed_generator
from .flows.model import ConditionalFlow
from .flows.prior import ClassGaussians
from .flows.registry import create_flow
from .moves.perturb import KINDS, check_kind, class_move, displacement, draw_noise, noise_size

DEFAULT_FLOW = "conv_p4_small.cifar10_jpeg"
LABELS = ("given", "posterior", "none")
SHRINKAGE = 100.0  # images


class NFAugment(v2.Transform):
    """Moves images along the principal modes of their class in the code space of a flow.

    Call it with a PIL image, a uint8 or float tensor (C, H, W) or (B, C, H, W), or a tv_tensor; with an int, or integers (B,)
    or (B, 1), of labels after it where there are some, in a `v2.Compose` too; in a dict they are what is called label or
    labels. Kind, dtype, device, range and size come back as they went in. Images of another size than the flow's go through
    `timm_nfaug.lift`.

    Args:
        flow: the flow; see `from_pretrained` for one by name.
        strength: 0 is the identity, 1 moves by one standard deviation of the class along each mode. 1 was better with 50
            images a class, 0.5 with 250 or more (benchmarks/README.md).
        modes: number of modes moved along.
        p: probability that an image is augmented. At strength 1 leave some images as they are: p 1 ruins a training.
        kind: pca, axes or isotropic (see `timm_nfaug.moves.perturb`).
        labels: "given" uses the labels it is called with, and the flow's own posterior where there are none;
            "posterior" always asks the flow, for data of other classes than the flow's; "none" takes no class at all: the
            modes are those of all images together, as `fit` and `from_data` then find them.
        mean, std: per channel, of float images normalised as (x - mean) / std; without them floats are in [0, 1].
        seed: of the transform's own generator; None takes torch's initial seed. Data-loader workers get streams of
            their own, which follow from this seed and the loader's (its `generator`, or torch's) and differ from epoch to
            epoch. The global generators are never drawn from.

    Attributes:
        fallbacks: images that came out of the flow non-finite and were returned unchanged.
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        strength: float = 0.5,
        modes: int = 32,
        p: float = 0.5,
        kind: str = "pca",
        labels: str = "given",
        mean=None,
        std=None,
        seed: int | None = None,
    ):
        super().__init__()
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(
                f"flow must be a ConditionalFlow, got {type(flow).__name__}; see NFAugment.from_pretrained"
            )
        p = check_probability(p)
        if labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together: give both or neither")
        if labels == "none" and flow.num_classes > 1:
            raise ValueError(
                f'labels="none" takes one set of modes for all images, the flow has {flow.num_classes} classes; '
                'find one with NFAugment.from_data(loader, labels="none"), or with to_fit and fit'
            )
        check_kind(flow, kind, modes)
        self.flow = flow
        self.strength, self.modes, self.p, self.kind = check_strength(strength), modes, p, kind
        self.labels, self.mean, self.std, self.seed = labels, mean, std, seed
        self.register_buffer("_fallbacks", torch.zeros((), dtype=torch.int64), persistent=False)
        self._own: tuple[Any, torch.Generator | None] = (None, None)

    @classmethod
    def from_pretrained(
        cls, name: str = DEFAULT_FLOW, revision: str | None = None, **kwargs
    ) -> NFAugment:
        """The augmentation with a flow by name (see `ConditionalFlow.from_pretrained`); kwargs as for the class.

        `modes` defaults to 32 or to what the flow stores, if that is less.
        """
        if name == "linear":
            raise ValueError(
                "linear has no weights of its own: NFAugment.from_data(loader) finds the eigen-images of your data"
            )
        flow = ConditionalFlow.from_pretrained(name, revision)
        kwargs.setdefault("modes", min(32, flow.prior.num_modes))
        return cls(flow, **kwargs)

    @classmethod
    def from_data(
        cls,
        loader,
        num_classes: int | None = None,
        input_size=(3, 32, 32),
        shrinkage: float = SHRINKAGE,
        allow_empty: bool = False,
        **kwargs,
    ) -> NFAugment:
        """The augmentation with the linear flow of `loader`: the eigen-images of each class; no network, no training.

        Args:
            loader, num_classes, shrinkage, allow_empty: as for `fit`.
            input_size: (C, H, W) that the eigen-images have; images of another size go through the lift.
            kwargs: as for the class.
        """
        return cls.to_fit(create_flow("linear", input_size=input_size), **kwargs).fit(
            loader, num_classes, allow_empty, shrinkage
        )

    @classmethod
    def to_fit(cls, flow: ConditionalFlow, modes: int = 32, **kwargs) -> NFAugment:
        """The augmentation with this flow's network and room for as many modes as wanted; it does nothing until `fit`."""
        low_rank = flow.prior.low_rank
        prior = ClassGaussians(1, flow.dim, a=None, num_modes=modes, low_rank=low_rank)
        return cls(flow.with_prior(prior), modes=modes, **kwargs)

    @property
    def fallbacks(self) -> int:
        return int(self._fallbacks)

    def extra_repr(self) -> str:
        return (
            f"flow={self.flow.config.architecture}, strength={self.strength:g}, modes={self.modes}, p={self.p:g}, "
            f"kind={self.kind}, labels={self.labels}"
        )

    def __repr__(self) -> str:  # the flow's layers would fill pages
        return f"{type(self).__name__}({self.extra_repr()})"

    # -- transform ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, generator: torch.Generator | None = None) -> Any:
        """Augments every image among `inputs` (any nesting); all else passes through.

        Args:
            generator: source of this call's random numbers, instead of the transform's own.
        """
        if not inputs:
            raise TypeError("NFAugment takes at least one image")
        if isinstance(inputs[0], PIL.Image.Image) and (
            len(inputs) == 1 or (len(inputs) == 2 and type(inputs[1]) is int)
        ):
            return self._forward_pil(*inputs, generator=generator)
        paths, spec = pytree.tree_flatten_with_path(inputs if len(inputs) > 1 else inputs[0])
        flat = [v for _, v in paths]
        where = _image_positions(flat)
        if not where:
            kinds = ", ".join(sorted({type(v).__name__ for v in flat}))
            raise TypeError(
                f"NFAugment found no image (PIL, tensor of 3 or 4 dimensions, tv_tensor) among: {kinds}"
            )
        if self.strength and self.p:
            labels = (
                _find_labels(paths, where, self.flow.num_classes > 1)
                if self.labels == "given"
                else None
            )
            params = self.make_params([flat[i] for i in where], labels, generator)
            for i in where:
                flat[i] = self.transform(flat[i], params)
        return pytree.tree_unflatten(flat, spec)

    def _forward_pil(
        self, image: PIL.Image.Image, *label: int, generator: torch.Generator | None
    ) -> Any:
        """`forward` of what a data set gives, one image with its label or without: in a loader's worker each call counts.

        Draws what `make_params` does.
        """
        if self.strength and self.p:
            self._check_kind(image)
            g = generator if generator is not None else self._generator()
            if self.p == 1 or bool(torch.rand(1, generator=g, device=g.device) < self.p):
                noise = draw_noise(1, noise_size(self.flow, self.kind, self.modes), g)
                image = self._moved(
                    image, label[0] if label and self.labels == "given" else None, noise
                )
        return (image, *label) if label else image

    def make_params(
        self,
        flat_inputs: list[Any],
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Random numbers for one call: which images (count,), the noise (chosen, n), and the labels (count,) or None."""
        counts = {_count(v) for v in flat_inputs}
        if len(counts) > 1:
            raise ValueError(
                f"images in one call must come in batches of one length, got {sorted(counts)}"
            )
        (count,) = counts
        if labels is not None and len(labels) != count:
            raise ValueError(
                f"{count} images came with {len(labels)} labels; give one label an image"
            )
        g = generator if generator is not None else self._generator()
        chosen = torch.ones(count, dtype=torch.bool)
        if self.p < 1:
            chosen = (torch.rand(count, generator=g, device=g.device) < self.p).cpu()
        noise = draw_noise(int(chosen.sum()), noise_size(self.flow, self.kind, self.modes), g)
        return {"chosen": chosen, "noise": noise, "labels": labels}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image or batch with the random numbers of `make_params`."""
        self._check_kind(
            inpt
        )  # all of them, so that a bad image is told at once and not when its turn comes
        if not bool(params["chosen"].any()):
            return inpt
        if isinstance(inpt, PIL.Image.Image):
            labels = params["labels"]
            return self._moved(inpt, None if labels is None else int(labels), params["noise"])
        batch = inpt.as_subclass(Tensor)
        new = self._transform_batch(
            batch if batch.ndim == 4 else batch.unsqueeze(0), params
        ).reshape(inpt.shape)
        return tv_tensors.wrap(new, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else new

    def _moved(self, image: PIL.Image.Image, label: int | None, noise: Tensor) -> PIL.Image.Image:
        change = self._eigen_change(label, noise)
        if change is None:
            labels = None if label is None else torch.tensor([label])
            images = lambda: pixels.levels_to_model(pixels.levels_of(image).unsqueeze(0))
            change = self._change(images, labels, noise)[0].mul_(128).cpu().numpy()
        return lift.add_to_image(image, change)

    def _eigen_change(self, label: int | None, noise: Tensor) -> np.ndarray | None:
        """`_change` of one image, (c, h, w) in levels, in as few calls as it can be had; None where it takes more than these."""
        flow = self.flow
        k = 0 if label is None and flow.num_classes == 1 else label
        modes = flow.prior.modes
        plain = modes.dtype == torch.float32 and modes.device.type == noise.device.type == "cpu"
        if not (
            flow.is_linear
            and plain
            and self.kind == "pca"
            and k is not None
            and 0 <= k < flow.num_classes
        ):
            return None
        if torch.is_autocast_enabled("cpu"):
            return None
        change = class_move(flow.prior, k, noise, self.modes)[0].numpy() * (128 * self.strength)
        if not math.isfinite(change.sum()):
            return None
        np.maximum(change, -256, out=change)
        return np.minimum(change, 256, out=change).reshape(flow.config.input_size)

    @torch.no_grad()
    def _transform_batch(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        """Images x (B, C, H, W), uint8 or float, the chosen ones moved."""
        self._check_range(x)
        chosen, labels, rows = params["chosen"], params["labels"], None
        if not bool(chosen.all()):
            rows = torch.nonzero(chosen).flatten()
            labels = None if labels is None else labels[rows.to(labels.device, non_blocking=True)]
            rows = rows.to(x.device, non_blocking=True)
        change = self._change(
            lambda: self._to_model(x if rows is None else x[rows]), labels, params["noise"]
        )
        c = x.shape[1]
        scale, low, high = (
            (128, [0] * c, [255] * c)
            if x.dtype == torch.uint8
            else (128 / 255, [0.0] * c, [1.0] * c)
        )
        if self.mean is not None and x.dtype != torch.uint8:
            mean, std = pixels.channel_stats(self.mean, self.std, change)
            scale = scale / std
            low, high = (((v - mean) / std).expand(c, 1, 1).flatten().tolist() for v in (0.0, 1.0))
        return lift.add(x, (change * scale).to(x.device), low, high, rows)

    @torch.no_grad()
    def augment(self, x: Tensor, y: Tensor | None, noise: Tensor) -> Tensor:
        """The augmentation itself: x (B, C, H, W) float32 in [-1, 1], labels y (B,) or None, noise (B, n) to x'.

        Any size; the result is clamped to [-1, 1], and rows whose change is not finite are the original's.
        """
        self._check_kind(x)
        if not len(x):
            return x.clone()
        change = self._change(lambda: x, y, noise).to(x.device)
        return lift.add(x, change, [-1.0] * x.shape[1], [1.0] * x.shape[1])

    @torch.no_grad()
    def _change(self, images: Callable[[], Tensor], y: Tensor | None, noise: Tensor) -> Tensor:
        """What the augmentation adds to images at the flow's size, (B, c, h, w) in its range; zero where not finite.

        Args:
            images: gives the images (B, c, H, W) in [-1, 1]; not asked where the change does not depend on them.
        """
        flow, device, linear = self.flow, self.flow.device, self.flow.is_linear
        size = flow.config.input_size
        noise = noise.to(device, flow.dtype, non_blocking=True)
        y = None if y is None else y.to(device)
        with torch.autocast(device.type, enabled=False):
            small = None
            if y is None and flow.num_classes == 1:
                y = torch.zeros(len(noise), dtype=torch.int64, device=device)
            if y is None or not linear:
                small = lift.down(images().to(device), size[1:])
            if y is None and (linear or flow.config.code_rows):
                y = flow.class_logits(small).argmax(1)
            if linear:  # the code is the image: its move is the change, and no pass is needed
                change = (
                    displacement(flow, y, noise, self.kind, self.modes)
                    .mul_(self.strength)
                    .view(-1, *size)
                )
            else:
                z, _ = flow(small, y)
                if y is None:
                    y = flow.code_logits(z).argmax(1)
                move = displacement(flow, y, noise, self.kind, self.modes)
                change = flow.inverse(torch.add(z, move, alpha=self.strength)) - small
        if not math.isfinite(change.sum()):
            finite = change.sum((1, 2, 3)).isfinite()
            self._fallbacks += (~finite).sum().to(self._fallbacks.device)
            change = torch.where(finite.view(-1, 1, 1, 1), change, 0.0)
        return change.clamp_(-2, 2).float()  # more than the whole range is no use

    # -- ranges ------------------------------------------------------------------------------------------------------

    def _check_kind(self, image: Any) -> None:
        """Refuses a PIL image or tensor (..., C, H, W) whose mode, channels or dtype the flow cannot take."""
        c = self.flow.config.input_size[0]
        if isinstance(image, PIL.Image.Image):
            mode = {1: "L", 3: "RGB"}.get(c)
            if image.mode != mode:
                deep = image.mode[0] in "IF"  # which convert() would clip to black and white
                remedy = (
                    "bring them to 8 bits first"
                    if deep
                    else f'convert first: image.convert("{mode}")'
                )
                raise ValueError(
                    f"this flow takes PIL images of mode {mode}, got {image.mode}; {remedy}"
                )
        elif image.shape[-3] != c:
            raise ValueError(
                f"this flow takes images of {c} channels, got {image.shape[-3]}; convert the images, or train a flow"
            )
        elif image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"NFAugment takes uint8 or float images, got {image.dtype}")

    def _check_range(self, x: Tensor) -> None:
        if x.dtype != torch.uint8 and self.mean is None and len(x):
            low, high = (float(v) for v in x.aminmax())
            if not (low >= -0.01 and high <= 1.01):
                raise ValueError(
                    f"float images must be in [0, 1], got {low:.3g} to {high:.3g}; "
                    "for normalised images pass mean= and std=, for levels 0..255 use uint8"
                )

    def _checked(self, x: Tensor) -> Tensor:
        self._check_kind(x)
        self._check_range(x)
        return self._to_model(x)

    def _to_model(self, x: Tensor) -> Tensor:
        """Checked images as float32 in [-1, 1]."""
        if x.dtype == torch.uint8:
            return pixels.levels_to_model(x)
        x = x.float()
        if self.mean is not None:
            mean, std = pixels.channel_stats(self.mean, self.std, x)
            x = x * std + mean
        return pixels.unit_to_model(x)

    # -- randomness --------------------------------------------------------------------------------------------------

    def _generator(self) -> torch.Generator:
        """The transform's own generator, made anew in each data-loader worker so that no two draw alike."""
        worker = get_worker_info()
        key = None if worker is None else (worker.id, worker.seed)
        if self._own[1] is None or self._own[0] != key:
            if self.seed is None:
                own = torch.Generator().manual_seed(
                    (torch.initial_seed() if worker is None else worker.seed) % 2**63
                )
            elif worker is None:
                own = torch.Generator().manual_seed(self.seed % 2**63)
            else:  # the loader's part is another one in each epoch
                own = keyed_generator(self.seed, worker.seed)
            self._own = (key, own)
        return self._own[1]

    def __getstate__(self) -> dict:
        return {
            **self.__dict__,
            "_own": (None, None),
        }  # generators do not pickle for a spawned worker

    # -- other data --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        loader,
        num_classes: int | None = None,
        allow_empty: bool = False,
        shrinkage: float = SHRINKAGE,
    ) -> NFAugment:
        """Takes class Gaussians and modes from another data set, in one pass and without training; returns self.

        The flow's network is kept and shared; this transform gets Gaussians of its own. Images too few for `modes`
        modes leave the rest unused.

        Args:
            loader: batches (images, labels, ...); images as the transform takes them, labels integers (B,), which are not
                looked at with ``labels="none"`` and may be missing there.
            num_classes: K; by default that of ``loader.dataset.classes``.
            allow_empty: classes without images have no modes and are never the posterior's; without, they raise.
            shrinkage: the spread within all classes counts for each as if it had been seen in so many more images of it
                (`ClassMoments`). 100 is about the best for 20 to 500 images a class (benchmarks/README.md); of 5,000 it would
                be 2%.
        """
        if isinstance(loader, Dataset) and not isinstance(
            loader, IterableDataset
        ):  # one may give batches
            raise TypeError(
                f"expected a loader of batches, got a data set, {type(loader).__name__}: DataLoader(dataset, 256)"
            )
        pooled = self.labels == "none"
        classes = None if pooled else getattr(getattr(loader, "dataset", None), "classes", None)
        if pooled:
            num_classes = 1
        elif num_classes is None:
            if classes is None:
                raise ValueError("loader.dataset has no `classes` to count; pass num_classes=")
            num_classes = len(classes)
        size = self.flow.config.input_size[1:]
        batches = (
            (
                lift.down(self._checked(x), size),
                torch.zeros(len(x), dtype=torch.int64) if pooled else torch.as_tensor(y),
            )
            for x, y in (_images_and_labels(batch, pooled) for batch in loader)
        )
        low_rank = self.flow.prior.low_rank
        moments = self.flow.moments(batches, num_classes, self.modes, allow_empty, shrinkage)
        prior = ClassGaussians(
            num_classes, self.flow.dim, a=None, num_modes=self.modes, low_rank=low_rank
        )
        prior.set_moments(moments)
        names = list(classes) if classes is not None and len(classes) == num_classes else []
        self.flow = self.flow.with_prior(prior, names)
        self.flow.log_prior[moments.empty] = -torch.inf
        return self


def _images_and_labels(batch: Any, pooled: bool) -> tuple[Tensor, Any]:
    """Of a loader's batch; without labels where they are not needed. Refuses batches of another make."""
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if not (len(parts) >= 2 - pooled and isinstance(parts[0], Tensor) and parts[0].ndim == 4):
        got = (
            f"a tensor {tuple(parts[0].shape)}"
            if isinstance(parts[0], Tensor)
            else type(parts[0]).__name__
        )
        raise TypeError(
            f"expected batches (images (B, C, H, W), labels (B,)), got {got}; take a collate_fn that makes them"
        )
    return parts[0], parts[1] if len(parts) > 1 else None


def _image_positions(flat: list[Any]) -> list[int]:
    """PIL images and tv_tensors.Image; plain tensors count only where there is neither, and then the first one."""
    typed = [i for i, v in enumerate(flat) if isinstance(v, (PIL.Image.Image, tv_tensors.Image))]
    if typed:
        return typed
    plain = [
        i
        for i, v in enumerate(flat)
        if isinstance(v, Tensor) and not isinstance(v, tv_tensors.TVTensor)
    ]
    return [i for i in plain if flat[i].ndim in (3, 4)][:1]


def _find_labels(paths: list[tuple[Any, Any]], where: list[int], needed: bool) -> Tensor | None:
    """Labels (B,) among what came with the images at `where`: what a dict calls label or labels, else the first integers.

    Args:
        paths: (path, value) pairs of `tree_flatten_with_path`.
        needed: whether there are several classes to choose from.

    Raises:
        TypeError: a class is needed, and only numbers came that name none.
        ValueError: several integers came, and which is the label is not to be seen.
    """
    count = _count(paths[where[0]][1])
    found, others = [], []
    for i, (path, value) in enumerate(paths):
        own = None if i in where else _numbers(value)
        if own is None or own.ndim > 2:
            continue
        if (
            own.is_floating_point()
            or own.dtype == torch.bool
            or (own.ndim == 2 and own.shape[1] != 1)
        ):
            others.append((own, value))
        else:
            found.append(
                ([k.key for k in path if isinstance(k, pytree.MappingKey)][-1:], own.reshape(-1))
            )
    named = [own for key, own in found if key in (["label"], ["labels"])]
    if named:
        return named[0]
    if len(found) > 1 and (len(where) > 1 or found[0][0]):  # in a tuple the label comes first
        raise ValueError(
            f"{len(where)} images came with {len(found)} integers, any of which may be the label: call it label in a dict, "
            "or give one image, or batch, and its labels"
        )
    for own, other in others if needed and not found else ():
        _refuse_soft_labels(own, count)
        if own.ndim and count != 1 and len(own) != count:
            continue
        kind = (
            f"{other.dtype} {tuple(other.shape)}"
            if isinstance(other, (Tensor, np.ndarray))
            else type(other).__name__
        )
        raise TypeError(
            f"expected integer labels ({count},), got {kind}: convert them, or let the flow choose the class with "
            'labels="posterior"'
        )
    return found[0][1] if found else None


def _numbers(value: Any) -> Tensor | None:
    """A number, an array or a plain tensor as a tensor; None for all else, a single truth value too."""
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return torch.tensor(value if isinstance(value, (int, float)) else value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else np.float64))
    if isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor):
        return value
    return None


def _refuse_soft_labels(v: Tensor, count: int) -> None:
    """Probabilities (B, K) or (K,), as mixup and one-hot encoding make them, name no class to move along."""
    if v.ndim in (1, 2) and v.shape[-1] > 1:
        rows = v.reshape(-1, v.shape[-1]).double()
        if (
            len(rows) == count > 0
            and bool((rows >= 0).all())
            and bool(((rows.sum(1) - 1).abs() < 1e-2).all())
        ):
            raise ValueError(
                f"expected integer labels ({count},), got probabilities {tuple(v.shape)}: run NFA before mixup and one-hot "
                'encoding, or let the flow choose the class with labels="posterior"'
            )


def _count(image: Any) -> int:
    return len(image) if isinstance(image, Tensor) and image.ndim == 4 else 1


# -- the string idiom of timm ----------------------------------------------------------------------------------------

KEYS = {"s": "strength", "k": "modes", "p": "p", "m": "kind", "l": "labels"}


def parse_config(text: str) -> dict[str, Any]:
    """``nfa-s0.5-k32-p0.5-mpca-lgiven`` to arguments of `NFAugment`: s strength, k modes, p, m kind, l labels."""
    head, *parts = re.split(r"-(?=[a-z])", text)  # a minus sign belongs to its number
    if head != "nfa":
        raise ValueError(
            f"an NFA string starts with 'nfa', got {text!r}; example: nfa-s0.5-k32-p0.5"
        )
    values: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z])(.+)", part)
        if not match:
            raise ValueError(
                f"cannot read {part!r} in {text!r}; each part is a letter and a value, as in s0.5"
            )
        key, value = match.groups()
        check_keys({key: value}, set(KEYS), f"{text!r}")
        name = KEYS[key]
        if name in values:
            raise ValueError(f"{key} stands twice in {text!r}")
        known = {"m": KINDS, "l": LABELS}.get(key)
        if known and value not in known:
            hint = "; the strength is s, as in s0.5" if value[0].isdigit() else ""
            raise ValueError(
                f"{key} ({name}) takes {', '.join(known)}, got {value!r} in {text!r}{hint}"
            )
        try:
            values[name] = value if known else int(value) if key == "k" else float(value)
        except ValueError:
            kind = "an integer" if key == "k" else "a number"
            raise ValueError(f"{key} ({name}) takes {kind}, got {value!r} in {text!r}") from None
    return values


def nf_augment_transform(
    config: str,
    flow: ConditionalFlow | str = DEFAULT_FLOW,
    mean=None,
    std=None,
    seed: int | None = None,
) -> NFAugment:
    """An `NFAugment` from a string, as timm's `rand_augment_transform` makes RandAugment.

    Args:
        config: ``nfa``, then any of s (strength), k (modes), p (probability), m (kind: pca, axes, isotropic) and
            l (labels: given, posterior, none), e.g. ``nfa-s0.5-k32-p0.5-mpca``.
        flow: a flow or the name of one.
    """
    values = parse_config(config)
    if isinstance(flow, ConditionalFlow):
        values.setdefault("modes", min(32, flow.prior.num_modes))
        return NFAugment(flow, mean=mean, std=std, seed=seed, **values)
    return NFAugment.from_pretrained(flow, mean=mean, std=std, seed=seed, **values)
