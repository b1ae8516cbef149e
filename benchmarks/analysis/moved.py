"""How far augmentations move images, and how often past the border of their class.

- kept: of the images that a classifier has right as they are, how many it still has right. It errs
  on strange pictures as well as on changed classes: what is lost bounds the drift of labels from
  above.
- spread: distance of the features of two augmented versions of one image over that of two images
  of a class: the variety that a training sees.
- move: mean change of a pixel, in levels.
- burnt: share of values that are black or white (0 or 255) afterwards and were not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from benchmarks.analysis.frozen import BATCH, Classifier
from benchmarks.cifar.arms import RANDAUGMENT, apply_policy
from benchmarks.cifar.training import seed_globals
from timm_nfaug import ConditionalFlow, NFAugment, lift, pixels
from timm_nfaug._utils.progress import progress
from timm_nfaug.autoencoder import Autoencoder
from timm_nfaug.change import LatentChange, add_change
from timm_nfaug.fit import fit_flow, latent_flow
from timm_nfaug.flows.cosine import cosine_flow
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.moves import draw_noise
from train_flow.data import Images
from train_flow.schedule import generator

VERSIONS = 2  # of each image
SIDE = 32  # pixels of `linear` and of the shading

Latents = list[tuple[Tensor, Tensor]]  # batches of latents (B, c, h, w) and labels (B,)


class Batch:
    """Images (B, 3, H, W), uint8, with what several augmentations of them need once."""

    def __init__(self, levels: Tensor, labels: Tensor):
        self.levels, self.labels = levels, labels
        self.x = pixels.levels_to_model(levels)
        self._latents: dict[int, tuple[Tensor, Tensor]] = {}

    def latents(self, autoencoder: Autoencoder, side: int) -> tuple[Tensor, Tensor]:
        """Latents of the images at `side` pixels, and the images that they decode to."""
        if side not in self._latents:
            z = encoded(autoencoder, side, self.levels)
            self._latents[side] = z, autoencoder.decode(z)
        return self._latents[side]


Augmentation = Callable[[Batch, torch.Generator], Tensor]  # gives levels (B, 3, H, W)


def encoded(autoencoder: Autoencoder, side: int, levels: Tensor) -> Tensor:
    """Latents of images (B, 3, H, W), uint8, brought to `side` pixels as a `LatentChange` does."""
    return autoencoder.encode(lift.down(pixels.levels_to_model(levels), (side, side)))


def latents_of(autoencoder: Autoencoder, side: int, images: Images) -> Latents:
    """The latents of all images, for fits of several kinds."""
    pairs = zip(images.levels.split(BATCH), images.labels.split(BATCH), strict=True)
    return [(encoded(autoencoder, side, levels), y) for levels, y in pairs]


def latent_modes(
    autoencoder: Autoencoder, side: int, latents: Latents, modes: int, num_classes: int = 1
) -> ConditionalFlow:
    """A linear flow with the modes of latents: pooled, or of each of `num_classes`."""
    batches = ((z, y if num_classes > 1 else torch.zeros_like(y)) for z, y in latents)
    return fit_flow(latent_flow(autoencoder, side), batches, num_classes, modes)


def linear_modes(images: Images, modes: int) -> ConditionalFlow:
    """A linear flow with the pooled modes of images at 32 pixels."""
    pairs = zip(images.levels.split(BATCH), images.labels.split(BATCH), strict=True)
    size = (3, SIDE, SIDE)
    return NFAugment.from_data(list(pairs), input_size=size, modes=modes).flow


def shading(like: ConditionalFlow, modes: int) -> ConditionalFlow:
    """The data-free control: cosine images (`timm_nfaug.flows.cosine`), of the energy of `like`."""
    flow = cosine_flow((3, SIDE, SIDE), modes)
    flow.prior.mode_std *= like.prior.mode_std[0, :modes].norm() / flow.prior.mode_std.norm()
    return flow


def by_nfa(augment: NFAugment) -> Augmentation:
    """NFA on every image, with the modes of its class if the augmentation has some."""
    change = augment.change

    def call(batch: Batch, g: torch.Generator) -> Tensor:
        y = batch.labels if change.num_classes > 1 else torch.zeros_like(batch.labels)
        noise = draw_noise(len(y), change.noise_size, g)
        if isinstance(change, LatentChange):  # what change() does, less what others did already
            z, same = batch.latents(change.autoencoder, change.size[1])
            moved = change.autoencoder.decode(z + move_of(change, z, y, noise)) - same
        else:
            moved = change.change(lambda: batch.x, y, noise)
        return add_change(batch.levels, moved.clamp(-2, 2))

    return call


def move_of(change: LatentChange, z: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """What a change adds to latents z (B, c, h, w) before they are decoded."""
    move = lift.down(change.inner.change(lambda: change.standardized(z), y, noise), z.shape[2:])
    std = change.flow.config.latent.get("std")
    return move if std is None else move * torch.tensor(std).view(1, -1, 1, 1)


def nfa(
    flow: ConditionalFlow,
    strength: float,
    modes: int,
    autoencoder: Any = None,
    side: int | None = None,
) -> Augmentation:
    """NFA along the modes of a flow; those of the classes if it has some."""
    labels = "given" if flow.num_classes > 1 else "none"
    return by_nfa(
        NFAugment(flow, strength, modes, 1.0, labels=labels, autoencoder=autoencoder, size=side)
    )


def randaugment(side: int) -> Augmentation:
    """timm's RandAugment on single PIL images, as timm's factory sets it up."""
    guard_posterize()
    hyper = {"translate_const": int(0.45 * side), "img_mean": (124, 116, 104)}
    policy = rand_augment_transform(RANDAUGMENT, hyper)

    def call(batch: Batch, g: torch.Generator) -> Tensor:
        seed_globals(g)
        return apply_policy(policy, batch.levels)

    return call


class Tally:
    """What one augmentation did to the images so far."""

    def __init__(self) -> None:
        self.images, self.sums = 0, dict.fromkeys(("move_levels", "burnt", "kept"), 0.0)
        self.features: list[list[Tensor]] = [[] for _ in range(VERSIONS)]

    def add(self, before: Tensor, after: Tensor) -> None:
        """Counts versions `after` of images `before`, both (B, 3, H, W), uint8."""
        self.images += len(before)
        change = after.to(torch.int16) - before
        ends = ((after == 0) | (after == 255)) & (before > 0) & (before < 255)
        self.sums["move_levels"] += change.abs().float().mean((1, 2, 3)).sum().item()
        self.sums["burnt"] += ends.float().mean((1, 2, 3)).sum().item()

    def judge(self, version: int, f: Tensor, right: Tensor) -> None:
        """Counts features f (B, F) of versions, and which of them are right and were before."""
        self.features[version].append(f)
        self.sums["kept"] += right.sum().item()

    def row(self, labels: Tensor, right: int, seed: int) -> dict[str, float]:
        """The measures; `right` images were right before (0: nothing was judged)."""
        row = {k: self.sums[k] / self.images for k in ("move_levels", "burnt")}
        if right:
            a, b = (torch.cat(v) for v in self.features)
            between = (a - partners(a, labels, seed)).norm(dim=1).mean()
            row["kept"] = self.sums["kept"] / (VERSIONS * right)
            row["spread"] = ((a - b).norm(dim=1).mean() / between).item()
        return row


def partners(rows: Tensor, labels: Tensor, seed: int) -> Tensor:
    """For each row that of another image of the same class: the next in a shuffled round of it."""
    out = torch.empty_like(rows)
    for k in labels.unique().tolist():
        own = torch.nonzero(labels == k).flatten()
        own = own[torch.randperm(len(own), generator=generator(seed, 9, k))]
        out[own] = rows[own.roll(1)]
    return out


@torch.no_grad()
def measure(
    arms: dict[str, Augmentation], images: Images, classifier: Classifier | None, seed: int
) -> dict[str, dict[str, float]]:
    """What each arm does to the same images; without a classifier move and burnt alone."""
    tallies, right = {name: Tally() for name in arms}, 0
    with progress(len(images), "measuring", "images") as bar:
        for start in range(0, len(images), BATCH):
            part = images.subset(torch.arange(start, min(start + BATCH, len(images))))
            batch = Batch(part.levels, part.labels)
            if classifier is not None:
                was = classifier.right(classifier.features(batch.levels), batch.labels)
                right += int(was.sum())
            for name, arm in arms.items():
                for version in range(VERSIONS):
                    levels = arm(batch, generator(seed, version, start))
                    tallies[name].add(batch.levels, levels)
                    if classifier is not None:
                        f = classifier.features(levels)
                        tallies[name].judge(version, f, was & classifier.right(f, batch.labels))
            bar.update(len(part))
    if classifier is not None and not right:
        raise ValueError("the classifier has none of the images right; give images of its classes")
    return {name: tally.row(images.labels, right, seed) for name, tally in tallies.items()}


def at_spread(points: list[tuple[float, float]], spread: float) -> float | None:
    """What an arm keeps at a spread, between its points (spread, kept); None beyond the last.

    >>> at_spread([(0.2, 0.9), (0.4, 0.7)], 0.1), at_spread([(0.2, 0.9)], 0.3)
    (0.95, None)
    """
    points = sorted([(0.0, 1.0), *points])
    if spread > points[-1][0]:
        return None
    return float(np.interp(spread, *zip(*points, strict=True)))
