"""Every augmentation that `benchmarks.speed.throughput` times, by its name, as a call and the images it augments.

"PIL" and "uint8 image" take one image at a time, as a loader's worker does; "uint8 batch" and
"float batch" (normalised) many, where the batch lies. Policies of timm exist for PIL images only;
torchvision's draw once for a batch, whose images are then all changed alike.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.cifar.arms import RANDAUGMENT
from benchmarks.cifar.resnet import make_classifier
from benchmarks.speed.peak import synchronised
from timm_nfaug import CachedNFADataset, NFACache, NFAugment, create_flow, lift, pixels
from timm_nfaug.moves import draw_noise
from train_flow.trainer import emulates_bfloat16

Call = Callable[[], Any]
Candidates = dict[str, tuple[Call, int]]  # a call and the number of images it augments

BASE = "timm RandAugment (PIL)"
STEP = "training step, "
CLASSES = 10
# of the slow flows a batch is so many times smaller, down to FEWEST images
FEWER = {"conv_p4_base": 4, "jet_p4": 4, "resnet_ms3": 16}
FEWEST = 8


def augmentation(name: str, **network: int) -> NFAugment:
    """Creates NFA at its full price: 32 modes, every image. The weights are random, which costs what trained ones do."""
    g = torch.Generator().manual_seed(0)
    images = smooth_levels(36 * CLASSES, 32, g)  # a class has more than its modes
    labels = torch.arange(len(images)) % CLASSES
    flow = create_flow(name, **network)
    if not flow.is_linear:
        flow.initialize(pixels.dequantize(images[:64], generator=g))
    return NFAugment.to_fit(flow.eval(), p=1.0, labels="given", seed=0).fit(
        [(images, labels)], CLASSES
    )


def smooth_levels(count: int, size: int, g: torch.Generator) -> Tensor:
    """Returns uint8 (count, 3, size, size)."""
    x = F.interpolate(torch.rand(count, 3, 8, 8, generator=g), size=size, mode="bicubic")
    return (255 * x.clamp(0, 1)).to(torch.uint8)


def candidates(size: int, flows: dict[str, NFAugment], device: str) -> Candidates:
    """Builds every candidate at one image size; `flows` holds "linear" and any deep ones."""
    g = torch.Generator().manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(0)
    batch = (128 if size <= 64 else 32) * (4 if torch.device(device).type == "cuda" else 1)
    levels = smooth_levels(batch, size, g)
    image = Image.fromarray(np.ascontiguousarray(levels[0].permute(1, 2, 0).numpy()))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    normal = ((levels / 255 - mean) / std).to(device)
    levels = levels.to(device)
    labels = torch.arange(batch, device=device) % CLASSES
    found = other_policies(image, levels, normal, labels)
    linear = flows["linear"]
    for name, augment in flows.items():
        found[f"NFA {name} (PIL)"] = (functools.partial(augment, image, 3), 1)
        found |= of_flow(name, copy.deepcopy(augment).to(device), levels, labels)
    found["NFA, cached tangents (PIL)"] = (cached(image), 1)
    found["NFA, cached tangents (uint8 batch)"] = (cached_batch(levels, labels), batch)
    normalised = copy.deepcopy(linear).to(device)
    normalised.mean, normalised.std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    found["NFA linear (float batch)"] = (lambda: normalised(normal, labels), batch)
    return {
        n: (call if takes_one_image(n) else synchronised(call, device), count)
        for n, (call, count) in found.items()
    }


def other_policies(
    image: Image.Image, levels: Tensor, normal: Tensor, labels: Tensor
) -> Candidates:
    """timm's, torchvision's and kornia's policies.

    Args:
        image: the first of the batch. levels: uint8 (B, 3, H, W). normal: the same, normalised.
        labels: (B,).
    """
    batch, size = len(levels), levels.shape[-1]
    one = levels[0].cpu()
    hyper = {"translate_const": int(0.45 * size), "img_mean": (124, 116, 104)}
    rand = rand_augment_transform(RANDAUGMENT, hyper)
    auto = auto_augment_transform("original-mstd0.5", hyper)
    augmix = augment_and_mix_transform("augmix-m3-w3", hyper)
    v2_rand, trivial = v2.RandAugment(), v2.TrivialAugmentWide()
    erasing = RandomErasing(1.0, mode="pixel", device=levels.device)
    mixup = Mixup(mixup_alpha=1.0, num_classes=CLASSES)
    found: Candidates = {
        BASE: (lambda: rand(image), 1),
        "timm AutoAugment (PIL)": (lambda: auto(image), 1),
        "timm AugMix (PIL)": (lambda: augmix(image), 1),
        "torchvision RandAugment (PIL)": (lambda: v2_rand(image), 1),
        "torchvision RandAugment (uint8 image)": (lambda: v2_rand(one), 1),
        "torchvision RandAugment (uint8 batch, all alike)": (lambda: v2_rand(levels), batch),
        "torchvision TrivialAugment (PIL)": (lambda: trivial(image), 1),
        "torchvision TrivialAugment (uint8 image)": (lambda: trivial(one), 1),
        "torchvision TrivialAugment (uint8 batch, all alike)": (lambda: trivial(levels), batch),
        "timm RandomErasing (float batch)": (lambda: erasing(normal.clone()), batch),
        "timm Mixup (float batch)": (lambda: mixup(normal.clone(), labels), batch),
    }
    if importlib.util.find_spec("kornia"):
        from kornia.augmentation.auto import RandAugment

        kornia, unit = RandAugment(2, 9), levels / 255
        found["kornia RandAugment (float batch)"] = (lambda: kornia(unit), batch)
    return found


def of_flow(name: str, augment: NFAugment, levels: Tensor, labels: Tensor) -> Candidates:
    """NFA with a flow on a uint8 batch; a deep one also from known codes and with bfloat16 networks."""
    count = max(FEWEST, len(levels) // FEWER.get(name, 1))
    x, y = levels[:count], labels[:count]
    found: Candidates = {f"NFA {name} (uint8 batch)": (lambda: augment(x, y), count)}
    if augment.flow.is_linear:
        return found
    found[f"NFA {name}, decode only (uint8 batch)"] = (decoding(augment, x, y), count)
    if not emulates_bfloat16(levels.device.type):
        half = copy.deepcopy(augment)
        half.flow.set_net_dtype(torch.bfloat16)
        found[f"NFA {name}, bfloat16 networks (uint8 batch)"] = (lambda: half(x, y), count)
    return found


def takes_one_image(name: str) -> bool:
    """Whether a candidate takes one image at a time, which is on the CPU and by one thread."""
    return "PIL" in name or "image)" in name


def decoding(augment: NFAugment, levels: Tensor, labels: Tensor) -> Call:
    """NFA on images whose codes are known, as they are where the same images come every epoch."""
    flow, g = augment.flow, torch.Generator().manual_seed(0)
    small = lift.down(pixels.levels_to_model(levels), flow.config.input_size[1:])
    with torch.no_grad():
        codes, _ = flow(small)

    @torch.no_grad()
    def call() -> Tensor:
        noise = draw_noise(len(codes), augment.modes, g).to(codes.device)
        change = flow.inverse(codes + augment.move.displacement(flow, labels, noise)) - small
        return lift.add(levels, change.clamp_(-2, 2) * 128, [0] * 3, [255] * 3)

    return call


def cached(image: Image.Image) -> Call:
    """One image of a dataset with a cache of tangents, of which this row is in memory already."""
    data = [(image, 3)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = CachedNFADataset(data, NFACache.build(shallow(), data, folder), p=1.0)
        dataset[0]  # which opens the files, and keeps them open
    return lambda: dataset[0]


def cached_batch(levels: Tensor, labels: Tensor) -> Call:
    """A batch from such a cache."""
    g, rows = torch.Generator().manual_seed(0), torch.arange(len(levels))
    pairs = list(zip(levels.cpu(), labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        cache = NFACache.build(shallow(), pairs, folder)
        cache.augment(levels, labels, rows, g, 0.5, 1.0)
    return lambda: cache.augment(levels, labels, rows, g, 0.5, 1.0)


@functools.cache
def shallow() -> NFAugment:
    """NFA with the smallest of flows: once cached, all cost the same."""
    return augmentation("conv_p4_tiny", depth=1, hidden=8)


def training_steps(size: int, device: str) -> Candidates:
    """At 32 px a step of ResNet18 with CIFAR's stem, at 224 px one of vit_small; elsewhere none."""
    # what small batches cost on a GPU is the launching of kernels
    many = 16 if torch.device(device).type == "cuda" else 1
    if size == 32:
        name, batch, make = "resnet18", 32 * many, lambda: make_classifier("resnet18", CLASSES)
    elif size == 224:
        name, batch = "vit_small", 8 * many
        make = lambda: timm.create_model("vit_small_patch16_224", num_classes=CLASSES)
    else:
        return {}
    torch.manual_seed(0)
    model = make().to(device).train()
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    bf16 = not emulates_bfloat16(device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    dtype = "bfloat16" if bf16 else "float32"
    return {f"{STEP}{name}, {dtype}": (synchronised(step, device), batch)}
