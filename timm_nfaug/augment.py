"""NFAugment: the augmentation, as a torchvision v2 transform for one image or a batch."""

from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import v2

from . import lift, pixels
from ._utils.checks import check_choice, check_labels, check_probability, check_seed
from ._utils.notices import Notices
from ._utils.random import Stream
from .autoencoder import Autoencoder, autoencoder_for, load_autoencoder
from .change import Change, LatentChange, add_change, change_of, draw, to_model
from .fit import (
    SHRINKAGE,
    Opened,
    count_classes,
    empty_flow,
    fit_flow,
    fitting_batches,
    latent_batches,
    latent_flow,
)  # fmt: skip
from .flows.cosine import cosine_flow
from .flows.model import ConditionalFlow
from .flows.registry import create_flow
from .hub import LINEAR
from .inputs import check_image, check_range, count_images, find_inputs
from .labels import GUESSED, LABELS, check_pooled
from .moves import Move, create_move
from .saved import SavedMixin
from .unchanged import say_fitted, say_unchanged

PARTS = ("flow", "autoencoder")  # modules of a change


class NFAugment(SavedMixin, v2.Transform):
    """Moves images along the principal modes of a dataset in the code space of a flow.

    Call it with a PIL image, a tv_tensor, a tensor (C, H, W) or (B, C, H, W), or an array (H, W, C)
    or (B, H, W, C), of uint8, or of floats or integers of any range (docs/ranges.md); in a
    `v2.Compose` and with dicts, too; with labels after the images, which pass through (and choose
    the modes with ``labels="given"``: docs/labels.md). Kind, dtype, device, range and size come back
    as they went in. Images of another size than the flow's take the change enlarged.

    Args:
        flow: the flow; `from_pretrained` takes one by name, `from_data` makes one of your images.
        strength: 0 is the identity, 1 moves by one standard deviation along each mode.
        modes: number of modes moved along.
        p: probability that an image is augmented. At strength 1 leave some images as they are.
        kind: a move of `timm_nfaug.moves.list_moves()`: pca, axes, isotropic, rotation.
        labels: whose modes: "none", those of all images together (the classes of a flow that has
            some are pooled); "given", of the class that the label names, and of the flow's own guess
            where there is no label; "posterior", always of the flow's guess.
        mean, std: per channel, of float images normalised as (x - mean) / std; without, floats are
            in [0, 1].
        seed: of the transform's own generator; None takes torch's initial seed. DataLoader workers
            (in each epoch), ranks, replicas and forks draw from streams of their own. The
            global generators are never drawn from.
        strict: raise an `NFAError` where an `NFAWarning` would say that it does nothing or guesses.
        value_range: (low, high) of the images' values, numbers or one for each channel, for floats
            and integers of any range; in place of mean and std.
        autoencoder: for a flow over latents: an `Autoencoder`, a module with `encode` and `decode`,
            or a name (`timm_nfaug.autoencoder.load_autoencoder`); by default what the flow names.
        size: side in pixels of the square at which latents are made; by default that of the flow.

    Attributes:
        change: what it adds to images, a `timm_nfaug.change.Change`.
        notices: how many images came back unchanged or with a guessed label, by cause.
        fallbacks: number of images whose change was not finite and which came back unchanged.

    >>> import timm_nfaug as nfa
    >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    >>> loader = [(images, torch.tensor([0, 1, 1, 0]))]
    >>> augment = nfa.NFAugment.from_data(loader, 2, (3, 8, 8), strength=1.0, modes=2, p=1.0)
    >>> moved, label = augment(images[0], 1)
    >>> moved.shape, moved.dtype
    (torch.Size([3, 32, 32]), torch.uint8)
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        strength: float = 0.5,
        modes: int = 32,
        p: float = 0.5,
        kind: str = "pca",
        labels: str = "none",
        mean: Any = None,
        std: Any = None,
        seed: int | None = None,
        strict: bool = False,
        value_range: Any = None,
        autoencoder: Any = None,
        size: int | None = None,
    ):
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(
                f"flow must be a ConditionalFlow, got {type(flow).__name__}; "
                "see NFAugment.from_data(loader) and NFAugment.from_pretrained(name)"
            )
        check_choice("labels", labels, LABELS)
        if labels == "none" and flow.num_classes > 1:
            flow = flow.pooled()
        change = self._make_change(flow, create_move(kind, modes, strength), autoencoder, size)
        self._set_up(change, p, labels, pixels.Scale(mean, std, value_range), seed, strict)

    def _set_up(
        self, change: Change, p: float, labels: str, scale: pixels.Scale, seed: Any, strict: bool
    ) -> None:
        super().__init__()
        check_choice("labels", labels, LABELS)
        check_pooled(labels, change.num_classes)
        self.p, self._labels = p, labels
        self.mean, self.std, self.value_range = scale.checked(change.size[0])
        self.notices = Notices(strict)
        self._stream = Stream(check_seed(seed))
        self._use(change)

    def _use(self, change: Change) -> None:
        self.change = change
        for name in PARTS:
            if isinstance(part := getattr(change, name, None), torch.nn.Module):
                setattr(self, name, part)  # registered: `to` and `state_dict` find its weights

    @staticmethod
    def _make_change(flow, move: Move, autoencoder: Any, size: int | None) -> Change:
        """The change by a flow over pixels, or over the latents of an autoencoder."""
        inner, latent = change_of(flow, move), flow.config.latent
        if latent:
            return LatentChange(inner, autoencoder_for(latent, autoencoder), size)
        if autoencoder is not None or size is not None:
            what = f"size={size}" if autoencoder is None else "autoencoder"
            raise ValueError(
                f"this flow moves pixels and takes no {what}; modes of latents are found by "
                "NFAugment.from_data(loader, autoencoder=...)"
            )
        return inner

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "p":
            value = check_probability(value)
        elif name in ("strength", "modes", "kind", "labels", "seed", "strict", "size"):
            raise AttributeError(f"the {name} of an NFAugment stays; use replace({name}=...)")
        elif name in PARTS and value is not getattr(self.change, name, value):
            if not getattr(self, "_is_replica", False):  # which DataParallel gives another copy
                raise AttributeError(f"the {name} of an NFAugment stays; use replace({name}=...)")
            self.change = self.change.with_part(name, value)  # type: ignore[attr-defined]
        super().__setattr__(name, value)

    @classmethod
    def from_change(
        cls, change: Change, p: float = 0.5, labels: str = "none", mean=None, std=None, seed=None,
        strict: bool = False, value_range=None,
    ) -> "NFAugment":  # fmt: skip
        """The augmentation with a `Change` of your own; arguments as for the class."""
        if not isinstance(change, Change):
            raise TypeError(f"expected a timm_nfaug.change.Change, got {type(change).__name__}")
        augment = cls.__new__(cls)
        augment._set_up(change, p, labels, pixels.Scale(mean, std, value_range), seed, strict)
        return augment

    @classmethod
    def from_data(
        cls,
        loader,
        num_classes: int | None = None,
        input_size: tuple[int, int, int] | None = None,
        shrinkage: float = SHRINKAGE,
        allow_empty: bool = False,
        value_range: Any = None,
        autoencoder: Any = None,
        size: int | None = None,
        **kwargs,
    ) -> "NFAugment":
        """The augmentation with the eigen-images of a loader's dataset: no network, no training.

        Arguments as for `fit` and the class. The eigen-images have `input_size` (C, H, W), by default
        that of the images up to 32 x 32. A `value_range` that the images need is found by a pass.

        With an `autoencoder` (see `timm_nfaug.autoencoder.load_autoencoder`) the modes are those of
        latents, of images brought to `size` x `size` pixels: by default the images' own size, 64 to
        112. Texture, contrast, light and background then change at full resolution.
        """
        loader = Opened(loader)
        if autoencoder is not None:
            autoencoder = load_autoencoder(autoencoder)
            if input_size is not None:
                raise ValueError("input_size is of modes of pixels; with an autoencoder give size")
            size = loader.side(autoencoder.factor) if size is None else size
            flow = latent_flow(autoencoder, size)
        else:
            flow = create_flow(LINEAR, input_size=input_size or loader.input_size)
        kwargs |= {"autoencoder": autoencoder, "size": size}
        fitted = lambda values: cls.to_fit(flow, value_range=values, **kwargs).fit(
            loader, num_classes, allow_empty, shrinkage
        )
        return loader.in_range(fitted, value_range, kwargs.get("mean"))

    @classmethod
    def from_cosine(
        cls, strength: float = 0.5, modes: int = 32, p: float = 0.5,
        input_size: tuple[int, int, int] = (3, 32, 32), **kwargs,
    ) -> "NFAugment":  # fmt: skip
        """The augmentation with smooth shading, in grey and two colours, that needs no data at all.

        Its modes are cosine images with the spectrum of photographs (`timm_nfaug.flows.cosine`), of
        `input_size` (C, H, W); larger images take the change enlarged. Other arguments as for the
        class. Images of other than 3 channels are shaded in grey alone.

        >>> NFAugment.from_cosine(p=1.0, seed=0)(torch.zeros(3, 48, 64)).shape
        torch.Size([3, 48, 64])
        """
        if kwargs.get("labels", "none") != "none":
            raise ValueError(
                f"labels={kwargs['labels']!r} takes modes of classes, cosine images are the same for "
                'all: leave it at labels="none" (-lnone), or take modes of your data'
            )
        return cls(cosine_flow(input_size, modes), strength, modes, p, **kwargs)

    @classmethod
    def to_fit(cls, flow: ConditionalFlow, modes: int = 32, **kwargs) -> "NFAugment":
        """The augmentation with this flow's network and no modes yet; moves nothing until `fit`."""
        return cls(empty_flow(flow, modes), modes=modes, **kwargs)

    def fit(
        self, loader, num_classes: int | None = None, allow_empty: bool = False,
        shrinkage: float = SHRINKAGE,
    ) -> "NFAugment":  # fmt: skip
        """Takes class Gaussians and modes from another dataset, in one pass; returns self.

        The flow's network is kept and shared; this transform gets Gaussians of its own.

        Args:
            loader: batches (images, labels, ...); images as the transform takes them, labels
                integers (B,), which may be missing with ``labels="none"``.
            num_classes: K; by default that of ``loader.dataset.classes``.
            allow_empty, shrinkage: as for `timm_nfaug.fit.fit_flow`.
        """
        flow = self._fitted_flow(loader, num_classes, allow_empty, shrinkage)
        move = create_move(self.kind, self.modes, self.strength)
        self._use(self._make_change(flow, move, self._autoencoder, self.size))
        say_fitted(self.notices, self.change)
        return self

    @torch.no_grad()
    def _fitted_flow(self, loader, num_classes, allow_empty, shrinkage=SHRINKAGE):
        if not hasattr(self, "flow"):
            raise TypeError("a Change of your own has no modes to fit; fit needs a flow")
        pooled, change = self.labels == "none", self.change
        classes, names = count_classes(loader, num_classes, pooled)
        batches = fitting_batches(loader, change.size, 0 if pooled else classes, self._scale)
        flow = self.flow
        if isinstance(change, LatentChange):
            if raw := flow.is_linear:  # of which other modes may have another size, basis and scale
                flow = latent_flow(change.autoencoder, change.size[1]).to(flow.device)
            batches = latent_batches(batches, change, raw)
        flow = fit_flow(flow, batches, classes, self.modes, allow_empty, shrinkage)
        flow.config.class_names = names
        return flow

    def replace(self, **settings) -> "NFAugment":
        """A copy with other settings (arguments of the class) that shares the flow."""
        names = ("p", "labels", "mean", "std", "seed", "strict", "value_range")
        same = {k: getattr(self, k) for k in names}
        if not hasattr(self, "flow"):
            if unknown := settings.keys() - same:
                raise TypeError(
                    f"a Change of your own has no {', '.join(sorted(unknown))} to replace"
                )
            return self.from_change(self.change, **same | settings)
        if settings.get("mean") is not None:  # which takes the place of the range
            same["value_range"] = None
        moved = {"strength": self.strength, "modes": self.modes, "kind": self.kind}
        moved |= {"autoencoder": self._autoencoder, "size": self.size}
        if "flow" not in settings and self.labels == "none" != settings.get("labels", "none"):
            raise ValueError(
                "the modes of this augmentation are those of all images together; make it anew "
                f"with labels={settings['labels']!r}"
            )
        return NFAugment(**{"flow": self.flow} | same | moved | settings)

    @property
    def _scale(self) -> pixels.Scale:
        return pixels.Scale(self.mean, self.std, self.value_range)

    @property
    def _autoencoder(self) -> Autoencoder | None:
        return self.change.autoencoder if isinstance(self.change, LatentChange) else None

    @property
    def size(self) -> int | None:
        """Side in pixels at which latents are made; None for a flow over pixels."""
        return self.change.size[1] if isinstance(self.change, LatentChange) else None

    @property
    def labels(self) -> str:
        return self._labels

    @property
    def move(self) -> Move | None:
        """How codes are moved; None for a `Change` of your own that has no move."""
        return getattr(self.change, "move", None)

    @property
    def strength(self) -> float:
        return self.move.strength if self.move else 1.0

    @property
    def modes(self) -> int:
        return self.move.modes if self.move else self.change.noise_size

    @property
    def kind(self) -> str:
        return self.move.name if self.move else type(self.change).__name__

    @property
    def seed(self) -> int | None:
        return self._stream.seed

    @property
    def strict(self) -> bool:
        return self.notices.strict

    @property
    def fallbacks(self) -> int:
        return self.notices.count("not finite")

    @property
    def idle(self) -> bool:
        """Whether it changes nothing: p or strength is 0."""
        return not self.p or (self.move is not None and not self.move.strength)

    def __repr__(self) -> str:  # the flow's layers would fill pages
        flow = getattr(self.change, "flow", None)
        name = flow.config.architecture if isinstance(flow, ConditionalFlow) else "none"
        if self._autoencoder is not None:
            name += f", autoencoder={self._autoencoder}, size={self.size}"
        values = "" if self.value_range is None else f", value_range={self.value_range}"
        return (
            f"{type(self).__name__}(flow={name}, strength={self.strength:g}, modes={self.modes}, "
            f"p={self.p:g}, kind={self.kind}, labels={self.labels}{values})"
        )

    def forward(self, *inputs: Any, generator: torch.Generator | None = None) -> Any:
        """Augments every image among `inputs` (any nesting); all else passes through.

        A `generator` is the source of this call's random numbers, instead of the transform's own.
        """
        idle = self.idle
        wanted = self.labels == "given" and not idle
        found = find_inputs(inputs, self.change.num_classes if wanted else 0)
        if not idle:
            images = [found.flat[i] for i in found.where]
            if found.labels is None and wanted and self.change.num_classes > 1:
                self.notices.say("guessed label", GUESSED, count_images(images[0]))
            params = self.make_params(images, found.labels, generator)
            for i, image in zip(found.where, images, strict=True):
                found.flat[i] = self.transform(image, params)
        return found.nested()

    def make_params(
        self, flat_inputs: list[Any], labels: Tensor | None = None, generator=None
    ) -> dict[str, Any]:
        """Draws for one call: rows (b,) that change (None: all), their noise (b, n), their labels."""
        count, *more = {count_images(image) for image in flat_inputs}
        if more:
            counts = sorted([count, *more])
            raise ValueError(f"images in one call must come in batches of one length, got {counts}")
        g = generator if generator is not None else self._stream.generator()
        rows, noise = draw(count, self.p, self.change.noise_size, g)
        if labels is not None and rows is not None and len(rows):
            labels = labels[rows.to(labels.device, non_blocking=True)]
        return {"rows": rows, "noise": noise, "labels": labels}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Augments one image or batch with the random numbers of `make_params`."""
        scale = self._scale
        check_image(inpt, self.change.size[0], scale)
        rows, noise, labels = params["rows"], params["noise"], params["labels"]
        if not noise.shape[0]:
            return inpt
        if isinstance(inpt, PIL.Image.Image) and scale.value_range is None:
            images = lambda: pixels.levels_to_model(pixels.levels_of(inpt).unsqueeze(0))
            return add_change(inpt, self._change(images, labels, noise))
        x = pixels.batch_of(inpt)
        if self.mean is None:
            check_range(x, scale)
        rows = None if rows is None else rows.to(x.device, non_blocking=True)
        images = lambda: to_model(x if rows is None else pixels.widened(x)[rows], scale)
        new = add_change(x, self._change(images, labels, noise), rows, scale)
        return pixels.as_came(new, inpt)

    def _change(self, images, labels: Tensor | None, noise: Tensor) -> Tensor:
        change, failed, still = self.change.bounded(images, labels, noise)
        if failed or still:
            say_unchanged(self.notices, self.change, len(noise), failed, still)
        return change

    @torch.no_grad()
    def augment(self, x: Tensor, y: Tensor | None, noise: Tensor) -> Tensor:
        """The augmentation with given noise: x (B, C, H, W), float32 in [-1, 1], to new images.

        Args:
            y: labels (B,), or None: the flow's own guess; not looked at with ``labels="none"``.
            noise: (B, n), as `make_params` draws it.
        """
        check_image(x, self.change.size[0])
        y = None if self.labels == "none" else y
        if y is not None:
            y = check_labels(y, self.change.num_classes, torch.as_tensor(y).device, len(x))
        if not len(x):
            return x.clone()
        change, c = self._change(lambda: x, y, noise).to(x.device), x.shape[1]
        return lift.add(x, change, [-1.0] * c, [1.0] * c)

    def _replicate_for_data_parallel(self) -> "NFAugment":
        replica = super()._replicate_for_data_parallel()
        replica._stream = self._stream.branch()
        return replica
