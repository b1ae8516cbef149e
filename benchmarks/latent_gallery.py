"""The pictures of docs/gallery.md that show moves of latents, samples of flows over them and lines between them.

`augmented`, `temperatures`, `interpolate` and `walk` follow figures 6 to 31 of the supplementary of
Enescu & Sahbi (ACCV 2024). All take an `NFAugment` over latents; `benchmarks.figures` is their
command.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from benchmarks import gallery
from benchmarks.gallery import CLASSES, LARGE, TEMPERATURES, check_finite
from timm_nfaug import ConditionalFlow, NFAugment, lift, pictures, pixels
from timm_nfaug.change.latent import scale_of
from timm_nfaug.grid import draw_grid
from timm_nfaug.pictures import class_name, to_pil

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
MODES, STDS = 8, (-2.0, -1.0, 1.0, 2.0)  # shown, and how far each is gone
STEPS = 7  # from one image to another
LATENT_CELL = 144  # of `moves`: fine texture has to be seen
VERSIONS = 5  # of one photograph at each strength


def batch(images: Sequence[Image.Image]) -> Tensor:
    """Photographs of one size as (B, 3, H, W) in [-1, 1]."""
    return pixels.levels_to_model(torch.stack([TF.pil_to_tensor(image) for image in images]))


def encoded(augment: NFAugment, images: Sequence[Image.Image]) -> Tensor:
    """Latents (B, c, h, w) of photographs as the flow knows them."""
    x = lift.down(batch(images), augment.change.size[1:])
    return augment.change.standardized(augment.autoencoder.encode(x))


def decoded(augment: NFAugment, z: Tensor) -> list[Image.Image]:
    """Images of latents (B, c, h, w) as the flow knows them."""
    mean, std = scale_of(augment.flow.config)
    return [to_pil(x) for x in augment.autoencoder.decode(z * std + mean)]


def psnr(augment: NFAugment, images: Sequence[Image.Image]) -> float:
    """PSNR in dB of photographs encoded and decoded, at the side that the flow works at."""
    x = lift.down(batch(images), augment.change.size[1:])
    return pictures.psnr(x, augment.autoencoder.decode(augment.autoencoder.encode(x)))


def caption(augment: NFAugment, images: Sequence[Image.Image], text: str) -> str:
    """What is shown, and how well the autoencoder gives these photographs back."""
    return (
        f"{text} The autoencoder alone, {augment.autoencoder.channels} channels at {augment.size} px, "
        f"gives what is shown back with a PSNR of {psnr(augment, images):.1f} dB."
    )


def moves(
    augments: dict[str, NFAugment], images: list[Image.Image], seed: int, cell: int = LATENT_CELL
) -> Image.Image:
    """Draws a row for each image: the original, then three moves in each space, the last over latents."""
    latent = list(augments.values())[-1]
    text = "A row is one photograph: as it is, then three random moves in each space."
    return gallery.in_spaces(augments, images, seed, cell, caption(latent, images, text))


def augmented(
    augments: dict[str, NFAugment], images: list[Image.Image], strengths: Sequence[float], seed: int
) -> Image.Image:
    """Draws a row for each image: the original, then one move by each augmentation at each strength."""
    at = {f"{k}, {s:g}": a.replace(strength=s) for k, a in augments.items() for s in strengths}
    latent = list(augments.values())[-1]
    text = "A row is one photograph: as it is, then moved once by each space at each strength."
    return gallery.in_spaces(at, images, seed, LARGE, caption(latent, images, text), count=1)


def strengths(augment: NFAugment, image: Image.Image, seed: int, cell: int = LARGE) -> Image.Image:
    """Draws a row for each strength: the original, then moves in the same directions."""
    rows = []
    for s in STRENGTHS:
        stronger = augment.replace(strength=s, p=1.0)
        (moved,) = gallery.moved(stronger, [(image, None)], seed, VERSIONS)
        rows.append([image, *moved])
    names = [f"{s:g}" for s in STRENGTHS]
    text = "A row is one strength; a column has one direction."
    titles = ["original", *[""] * VERSIONS]
    return draw_grid(rows, titles, names, cell, caption(augment, [image], text))


def modes(augment: NFAugment, image: Image.Image, cell: int = LARGE) -> Image.Image:
    """Draws a row for each of the first modes: the image moved along it alone."""
    whole, x, rows = augment.replace(strength=1.0, p=1.0), batch([image]), []
    for k in range(min(MODES, augment.modes)):
        noise = torch.zeros(len(STDS), augment.change.noise_size)
        noise[:, k] = torch.tensor(STDS)
        moved = [to_pil(m) for m in whole.augment(x.expand(len(STDS), -1, -1, -1), None, noise)]
        half = len(STDS) // 2
        rows.append([*moved[:half], image, *moved[half:]])
    titles = [f"{s:+g}" for s in STDS]
    titles.insert(len(STDS) // 2, "original")
    text = "A row is one mode alone, a column so many standard deviations along it."
    names = [f"mode {k + 1}" for k in range(len(rows))]
    return draw_grid(rows, titles, names, cell, caption(augment, [image], text))


@torch.no_grad()
def interpolate(
    augment: NFAugment, images: list[Image.Image], names: list[str], cell: int = LARGE
) -> Image.Image:
    """Draws rows from each image to the next, through the codes of its latents."""
    z = encoded(augment, images)
    frames = augment.flow.interpolate(z[:-1], z[1:], STEPS)  # (B - 1, STEPS, c, h, w)
    text = "A row goes from one photograph, at 0, to the next, at 1; both ends are decoded, too."
    titles = [f"{i / (STEPS - 1):.2f}" for i in range(STEPS)]
    rows = [decoded(augment, row) for row in frames]
    return draw_grid(rows, titles, names, cell, caption(augment, images, text))


@torch.no_grad()
def temperatures(augment: NFAugment, mean_scale: float, seed: int) -> Image.Image:
    """Draws a row for each temperature, a column for each class; in a column the noise is the same."""
    flow = with_gaussians(augment)
    y = torch.arange(min(CLASSES, flow.num_classes))
    noise = lambda: torch.Generator().manual_seed(seed)
    drawn = [check_finite(flow.sample(y, t, mean_scale, noise())) for t in TEMPERATURES]
    names = [f"{t:g}" for t in TEMPERATURES]
    titles = [class_name(flow, int(k)) for k in y]
    return draw_grid([decoded(augment, z) for z in drawn], titles, names, LARGE)


@torch.no_grad()
def walk(augment: NFAugment, label: int) -> Image.Image:
    """Draws a row for each of the first modes of a class: from its mean along the mode, to both sides."""
    flow = with_gaussians(augment)
    if not 0 <= label < flow.num_classes:
        raise ValueError(f"--label must be from 0 to {flow.num_classes - 1}, got {label}")
    prior, at = flow.prior, torch.tensor([*STDS[: len(STDS) // 2], 0.0, *STDS[len(STDS) // 2 :]])
    rows = []
    for mode, std in zip(prior.modes[label][:MODES], prior.mode_std[label], strict=False):
        codes = prior.mu[label] + at.unsqueeze(1) * std * mode
        rows.append(decoded(augment, check_finite(flow.inverse(codes))))
    titles, names = (
        [f"{t:+g}" if t else "mean" for t in at],
        [f"mode {k + 1}" for k in range(MODES)],
    )
    text = (
        f"Class {class_name(flow, label)}: from its mean, so many standard deviations along a mode."
    )
    return draw_grid(rows, titles, names[: len(rows)], LARGE, text)


def with_gaussians(augment: NFAugment) -> ConditionalFlow:
    """The flow, which must have class Gaussians of its own to sample from."""
    if augment.flow.config.code_rows:
        raise ValueError(
            "a flow with conditional encoding has one Gaussian for all classes; use class Gaussians"
        )
    return augment.flow
