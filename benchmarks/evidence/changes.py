"""The controls of the evidence: data-free shading, colour PCA, white noise, and moves up the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import timm_nfaug as nfa
from benchmarks.cifar.arms import ClassifierChange, Settings, fitted, linear_flow
from timm_nfaug import lift, pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import Change
from train_flow.data import Images

NET_DTYPE = torch.bfloat16  # of a deep flow's networks: moves an image by less than one level
MODES = 32


def pooled(data: Images, strength: float) -> NFAugment:
    """Linear NFA with the pooled modes of the images, which the controls take their energy from."""
    return fitted(linear_flow(data), data, Settings(strength=strength, modes=MODES), "none")


def cosine(data: Images, strength: float) -> Change:
    """Data-free shading, as the package ships it."""
    return NFAugment.from_cosine(strength, MODES).change


def shuffle_networks(flow: nfa.ConditionalFlow) -> None:
    """Puts the entries of each tensor of the couplings' networks in random order.

    What they have learned is gone, the distribution of their weights stays, and so do the linear
    layers and the inverse.
    """
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in flow.named_parameters():
            if ".net." in name:
                order = torch.randperm(weights.numel(), generator=g).to(weights.device)
                weights.copy_(weights.flatten()[order].view_as(weights))


class ColourPCA(Change):
    """One colour offset an image, along the principal components of the colours of all pixels.

    Source: Krizhevsky, Sutskever & Hinton, NeurIPS 2012, with a standard deviation of 0.1 there.
    """

    noise_size, num_classes = 3, 1

    def __init__(self, data: Images, strength: float):
        self.size = tuple(data.levels.shape[1:])
        x = pixels.levels_to_model(data.levels).transpose(0, 1).flatten(1)  # (3, pixels)
        values, vectors = torch.linalg.eigh(torch.cov(x.double()))
        self.matrix = (vectors * values.clamp_min(0).sqrt() * strength).float()  # (3, 3)

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        colours = noise.to(self.matrix) @ self.matrix.T  # (B, 3)
        return colours[:, :, None, None].expand(-1, -1, *self.size[1:])


class WhiteNoise(Change):
    """Noise without correlation, of the energy of moves along the pooled modes."""

    num_classes = 1

    def __init__(self, data: Images, strength: float):
        self.size = tuple(data.levels.shape[1:])
        self.noise_size = data.levels[0].numel()
        flow = pooled(data, strength).flow
        energy = float(flow.prior.mode_std[0, :MODES].square().sum())
        self.std = strength * (energy / flow.dim) ** 0.5

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        return self.std * noise.view(-1, *self.size)


class PushedChange(ClassifierChange):
    """Another change whose noise is pushed up the classifier's loss by one gradient step, its length kept.

    Source: on-manifold adversarial training (Stutz, Hein & Schiele, CVPR 2019), here with random
    moves to start from.

    Args:
        inner: of modes of all images together.
        step: length of the push, in lengths of the noise.
        num_classes: of the labels, which the classifier's loss needs.
    """

    def __init__(self, inner: Change, step: float, num_classes: int):
        self.inner, self.step = inner, step
        self.size, self.num_classes = inner.size, num_classes
        self.noise_size = inner.noise_size

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        x, own = images(), torch.zeros_like(y)
        noise = noise.to(x).requires_grad_()
        with torch.enable_grad(), self.evaluated() as model:
            change = self.inner.change(lambda: x, own, noise)
            moved = (x + lift.enlarged(change, x.shape[2:])).clamp(-1, 1)
            with torch.autocast(x.device.type, torch.bfloat16):
                logits = model(moved * 2)
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
            (up,) = torch.autograd.grad(loss, noise)
        noise = noise.detach()
        length = noise.norm(dim=1, keepdim=True)
        pushed = noise + self.step * length * F.normalize(up, dim=1)
        pushed = length * F.normalize(pushed, dim=1)
        with torch.no_grad():
            return self.inner.change(lambda: x, own, pushed)
