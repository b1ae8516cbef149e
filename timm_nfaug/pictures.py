"""Pictures of what a flow does to images: moves, samples, and ways from one image to another."""

import itertools
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from . import lift, pixels
from ._utils.progress import progress
from .augment import NFAugment
from .autoencoder import Autoencoder, autoencoder_for
from .change.latent import scale_of
from .flows.model import ConditionalFlow
from .grid import CELL, PHOTO_CELL, SMALL, draw_grid
from .moves import usual_modes
from .space import name_of

Labelled = list[tuple[Image.Image, int | None]]  # images, and their labels where they are known
LARGEST = 1024  # side of an image that is augmented; a cell shows it smaller


def usual_strengths(strength: float = 0.5) -> list[float]:
    """The strengths of the columns of a picture: half of what it is about, itself, and twice.

    >>> usual_strengths()
    [0.25, 0.5, 1.0]
    """
    return [strength / 2, strength, strength * 2]


def shrink(image: Image.Image) -> Image.Image:
    """Shrinks an image in place to sides of at most `LARGEST`; a smaller one stays as it is.

    >>> shrink(Image.new("L", (2 * LARGEST, 8))).size
    (1024, 4)
    """
    image.thumbnail((LARGEST, LARGEST))
    return image


def to_pil(x: Tensor) -> Image.Image:
    """Makes a PIL image of one image (C, H, W) in [-1, 1].

    >>> to_pil(torch.zeros(3, 8, 6)).size
    (6, 8)
    """
    return TF.to_pil_image(pixels.model_to_levels(x).cpu())


def class_name(flow: ConditionalFlow, label: int) -> str:
    """Returns the name that the flow knows for a label, or its number.

    >>> class_name(ConditionalFlow.from_pretrained("conv_p4_tiny.digits"), 3)
    '3'
    """
    names = flow.config.class_names
    return names[label] if names else str(label)


class _Ends:
    """What a flow takes of images, and images of what it gives: through an autoencoder or not."""

    def __init__(self, flow: ConditionalFlow, autoencoder: Any = None):
        self.flow, self.autoencoder = flow, None
        self.size = flow.config.input_size[1:]
        if flow.config.latent:
            self.autoencoder = own = autoencoder_for(flow.config.latent, autoencoder)
            self.size = (self.size[0] * own.factor, self.size[1] * own.factor)
            self.mean, self.std = scale_of(flow.config)

    def given(self, x: Tensor) -> Tensor:
        """What the flow takes of images (B, C, h, w) in [-1, 1] at its size."""
        return (
            x if self.autoencoder is None else (self.autoencoder.encode(x) - self.mean) / self.std
        )

    def shown(self, x: Tensor) -> Tensor:
        """Images of what the flow gives back."""
        return x if self.autoencoder is None else self.autoencoder.decode(x * self.std + self.mean)

    def labels(self, images: Labelled) -> list[int]:
        """Labels of images, given, or else guessed by the flow."""
        given = [label for _, label in images]
        if self.flow.num_classes == 1 or None not in given:
            return [label or 0 for label in given]
        guess = self.flow.class_logits(self.given(_small(images, self.size))).argmax(1).tolist()
        return [own if label is None else label for label, own in zip(given, guess)]

    def said(self, x: Tensor) -> str:
        """What a picture of images says of the autoencoder."""
        return "" if self.autoencoder is None else " " + autoencoder_said(self.autoencoder, x)


def _small(images: Labelled, size: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) in [-1, 1], of this size."""
    large = (pixels.levels_to_model(TF.pil_to_tensor(image))[None] for image, _ in images)
    return torch.cat([lift.down(image, size) for image in large])


def autoencoder_said(autoencoder: Autoencoder, x: Tensor) -> str:
    """What a picture says of an autoencoder: its name, and the PSNR of images (B, 3, H, W) shown.

    >>> class Dark:
    ...     def encode(self, x): return x
    ...     def decode(self, z): return z - 0.2
    >>> autoencoder_said(Autoencoder(Dark(), "mine"), torch.zeros(1, 3, 64, 64))
    'The autoencoder mine alone, at 64 px, gives these images back with a PSNR of 20.0 dB.'
    """
    found = psnr(x, autoencoder.decode(autoencoder.encode(x)))
    return (
        f"The autoencoder {name_of(autoencoder)} alone, at {x.shape[3]} px, gives these images back "
        f"with a PSNR of {found:.1f} dB."
    )


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal to noise ratio, in dB, of images y in the place of x, (B, C, H, W) in [-1, 1].

    >>> round(psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2)), 3)
    20.0
    """
    error = (x - y.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))  # 2 is the width of the range


@torch.no_grad()
def preview_augmentation(
    flow: ConditionalFlow, images: Labelled, strengths: list[float], per_strength: int = 2,
    modes: int | None = None, kind: str = "pca", seed: int = 0, cell: int | None = None,
    folders: list[str] | None = None, **settings: Any,
) -> Image.Image:  # fmt: skip
    """Draws rows of an original and `per_strength` augmented versions at each strength.

    Args:
        cell: pixels of a cell; by default 96 for images of up to 64 pixels, else 160.
        folders: names of rows without a label, where the flow's guess is not what moves them.
        settings: others of `NFAugment`, as labels, autoencoder and size.

    >>> flow = ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    >>> preview_augmentation(flow, [(Image.new("L", (8, 8)), 0)], [0.5, 1.0]).width > 500
    True
    """
    modes = usual_modes(flow) if modes is None else modes
    augment = NFAugment(flow, modes=modes, p=1.0, kind=kind, **settings)
    at = [augment.replace(strength=s) for s in strengths for _ in range(per_strength)]
    ends = _Ends(flow, getattr(augment, "autoencoder", None))
    labels = ends.labels(images)
    guessing = flow.num_classes > 1 and augment.labels != "none"
    guessing = guessing and any(own is None for _, own in images)
    rows, names = [], [class_name(flow, k) for k in labels]
    with progress(len(images), "NFA preview", "images") as bar:
        for i, (image, own) in enumerate(images):
            if own is None:
                names[i] = f"({names[i]})" if guessing else folders[i] if folders else ""
            seeds = [seed + 1000 * i + j % per_strength for j in range(len(at))]
            rows.append([image, *_moved(at, image, labels[i], seeds)])
            bar.update(1)
    space, over = flow.config.title, ""
    if augment.size is not None:
        space, over = f"latent {space}", f" over latents of images of {augment.size} px"
    titles = ["original", *(f"{space}, s {a.strength:g}" for a in at)]
    caption = (
        f"A row is one image: as it is, then moved {per_strength} times at each strength s, along "
        f"{modes} modes of the flow {flow.config.title}{over}. s 0.5 is the default of --aug "
        "nfa. The moves are random; under each strength the same ones come in the same order."
    )
    if guessing:
        caption += " A name in brackets is the flow's guess of the class."
    if augment.size is not None:
        caption += ends.said(_small(images, (augment.size, augment.size)))
    return draw_grid(rows, titles, names, cell or _cell(images), caption)


def _moved(at: list[NFAugment], image: Image.Image, label: int, seeds: list[int]) -> list:
    """The image by each augmentation; the same seed moves it in the same directions."""
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [augment(image, label, generator=g)[0] for augment, g in zip(at, draws, strict=True)]


def _cell(images: Labelled) -> int:
    return CELL if max(max(image.size) for image, _ in images) <= SMALL else PHOTO_CELL


@torch.no_grad()
def preview_samples(
    flow: ConditionalFlow, temperatures: list[float], mean_scale: float = 1.0, seed: int = 0,
    cell: int | None = None, autoencoder: Any = None,
) -> Image.Image:  # fmt: skip
    """Draws rows of 3 samples of a class at each temperature, from the same noise at each.

    >>> flow = ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    >>> preview_samples(flow, [1.0, 0.5], cell=32).height > 10 * 32
    True
    """
    ends, labels = _Ends(flow, autoencoder), range(min(10, flow.num_classes))
    y = torch.arange(len(labels)).repeat_interleave(3)
    noise = lambda: torch.Generator().manual_seed(seed)
    drawn = [ends.shown(flow.sample(y, t, mean_scale, noise())) for t in temperatures]
    rows = [[to_pil(image) for x in drawn for image in x[y == k]] for k in labels]
    titles = [f"T {t:g}" for t in temperatures for _ in range(3)]
    caption = (
        "A cell is an image drawn from the flow's Gaussian of the class in its row, at temperature "
        "T: 1 as learned, less is closer to the mean. Each T has the same noise."
    )
    if ends.autoencoder is not None:
        caption += (
            f" The flow gives latents, which the autoencoder {name_of(ends.autoencoder)} decodes to "
            f"images of {ends.size[1]} px."
        )
    names = [class_name(flow, k) for k in labels]
    usual = CELL if max(ends.size) <= SMALL else PHOTO_CELL
    return draw_grid(rows, titles, names, cell or usual, caption)


@torch.no_grad()
def preview_interpolation(
    flow: ConditionalFlow, images: Labelled, steps: int = 8, cell: int = CELL, caption: str = "",
    autoencoder: Any = None,
) -> Image.Image:  # fmt: skip
    """Draws rows from each image to the next, at the flow's size.

    >>> flow = ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    >>> preview_interpolation(flow, [(Image.new("L", (8, 8)), 0)] * 2).height
    126
    """
    if len(images) < 2:
        raise ValueError(f"--interpolate needs at least 2 images, got {len(images)}")
    ends = _Ends(flow, autoencoder)
    labels, small = ends.labels(images), _small(images, ends.size)
    x, y = ends.given(small), torch.tensor(labels)
    frames = flow.interpolate(x[:-1], x[1:], steps, y[:-1], y[1:])
    names = [class_name(flow, k) for k in labels]
    pairs = [f"{a} - {b}" for a, b in itertools.pairwise(names)]
    titles = [f"{i / (steps - 1):.2f}" for i in range(steps)]
    rows = [[to_pil(f) for f in ends.shown(row)] for row in frames]
    return draw_grid(rows, titles, pairs, cell, caption + ends.said(small))
