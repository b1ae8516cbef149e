"""What each arm trains on: every image once as it is, and `recipe.COPIES` copies of it.

- baseline: plain copies, so that every arm sees as many images (not the paper's baseline, which is
  the untouched model);
- sa: copies through timm's RandAugment and RandomErasing;
- ce, glem: copies through NFAugment, with a flow of conditional encoding and one of class
  Gaussians;
- linear: the same without a network, with the eigen-images of each class, found in some training
  images at the start.

The last three work on pixels or, with `--space latent`, on latents of an autoencoder, as in the
paper.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo, create_transform
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.transforms.v2 import functional as TF

from benchmarks.imagenet import recipe
from benchmarks.imagenet.data import ImageNetFolder, normalized
from timm_nfaug import ConditionalFlow, NFAugment, NFAugmentedDataset
from timm_nfaug.autoencoder import Autoencoder
from timm_nfaug.integration.pillow import guard_posterize

ARMS = ("baseline", "sa", "linear", "ce", "glem")
WITH_FLOW = {"ce": "conditional encoding", "glem": "class Gaussians"}  # the flow that an arm takes
SPACES = ("pixels", "latent")


class StandardCopies(Dataset):
    """The originals first, then `COPIES` versions of them all through timm's RandAugment and RandomErasing.

    The random numbers of a sample follow from (seed, epoch, index) alone, as in NFAugmentedDataset.
    """

    def __init__(self, base: ImageNetFolder, data_config: dict[str, Any], seed: int):
        guard_posterize()
        self.base, self.seed, self.epoch = base, seed, 0
        self.clean = normalized(data_config)
        own = {k: data_config[k] for k in ("interpolation", "mean", "std")}
        # timm's own training transform; its crop is the whole image
        whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": 0.0}
        policy = {"auto_augment": recipe.RANDAUGMENT, **recipe.ERASING}
        self.augmented = create_transform(
            data_config["input_size"], is_training=True, **whole, **policy, **own
        )

    def __len__(self) -> int:
        return (1 + recipe.COPIES) * len(self.base)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        copy, i = divmod(index, len(self.base))
        image, label = self.base[i]
        if not copy:
            return self.clean(image), label
        with seeded(f"{self.seed} {self.epoch} {index}"):
            return self.augmented(TF.to_pil_image(image)), label


@contextlib.contextmanager
def seeded(key: str) -> Iterator[None]:
    """Seeds the global generators, from which timm's augmentations draw, and puts them back as they were."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def kind_of(flow: ConditionalFlow) -> str:
    """Returns the arm that a flow is for."""
    return "ce" if flow.config.code_rows else "glem"


def check_space(arm: str, space: str, autoencoder: str | None, size: int | None) -> None:
    """Raises ValueError where the flags of a space do not fit each other, or the arm moves nothing."""
    if space == "pixels" and (autoencoder is not None or size is not None):
        raise ValueError("--autoencoder and --size are for --space latent")
    if space == "latent" and arm not in (*WITH_FLOW, "linear"):
        raise ValueError(f"arm {arm} moves no codes: leave --space latent out")
    if space == "latent" and arm == "linear" and autoencoder is None:
        raise ValueError("arm linear with --space latent needs an autoencoder: --autoencoder NAME")


def make_augment(
    arm: str,
    flow_name: str | None,
    strength: float,
    space: str = "pixels",
    autoencoder: Autoencoder | None = None,
    size: int | None = None,
) -> NFAugment | None:
    """Creates the augmentation of the arms ce and glem; None for the others, which take no flow.

    Args:
        autoencoder, size: of latents; by default what the flow names.
    """
    if arm not in WITH_FLOW:
        if flow_name is not None:
            raise ValueError(
                f"arm {arm} uses no flow, got --flow {flow_name}; leave it out or choose --arm ce or glem"
            )
        return None
    if flow_name is None:
        raise ValueError(f"arm {arm} needs a flow: --flow NAME (bundled, directory or Hub id)")
    flow = ConditionalFlow.from_pretrained(flow_name)
    check_flow(flow, flow_name, arm, space)
    labels = "given" if flow.config.class_names == ImageNetInfo().label_names() else "posterior"
    modes = min(recipe.MODES, flow.prior.num_modes)
    where = {"autoencoder": autoencoder, "size": size}
    return NFAugment(flow, strength=strength, modes=modes, p=1.0, labels=labels, **where)


def check_flow(flow: ConditionalFlow, name: str, arm: str, space: str) -> None:
    """Raises ValueError for a flow of another space, of other images or of another arm."""
    own, kind = SPACES[bool(flow.config.latent)], kind_of(flow)
    if own != space:
        raise ValueError(f"{name} moves {own}, not {space}: use --space {own}, or another --flow")
    channels = flow.config.input_size[0]
    if space == "pixels" and channels != 3:
        raise ValueError(
            f"ImageNet's images have 3 channels, {name} takes {channels}; name another flow"
        )
    if kind != arm:
        raise ValueError(
            f"arm {arm} takes a flow of {WITH_FLOW[arm]}, {name} has {WITH_FLOW[kind]}: use --arm {kind}"
        )


def fit_linear(
    base: ImageNetFolder,
    strength: float,
    workers: int,
    autoencoder: Autoencoder | None = None,
    size: int | None = None,
) -> NFAugment:
    """Fits the augmentation of the arm linear to the first `FIT_IMAGES` training images of each class, in one pass.

    Args:
        autoencoder: modes of its latents in place of pixels. size: side of the images that it
            encodes; by default theirs, up to 112.
    """
    picked: dict[int, list[int]] = {}
    for i, label in enumerate(base.targets):
        if len(picked.setdefault(label, [])) < recipe.FIT_IMAGES:
            picked[label].append(i)
    some = Subset(base, [i for images in picked.values() for i in images])
    own = torch.Generator()  # so that nothing is drawn from the global one
    loader = DataLoader(some, 64, num_workers=workers, generator=own)
    pixels = (3, recipe.FIT_SIZE, recipe.FIT_SIZE) if autoencoder is None else None
    where = {"input_size": pixels, "autoencoder": autoencoder, "size": size}
    how = {"strength": strength, "modes": recipe.MODES, "p": 1.0, "labels": "given"}
    return NFAugment.from_data(loader, recipe.CLASSES, allow_empty=True, **where, **how)


def training_set(
    arm: str,
    base: ImageNetFolder,
    data_config: dict[str, Any],
    augment: NFAugment | None,
    seed: int,
) -> Dataset:
    """Creates a dataset of (1 + COPIES) * len(base) samples, the originals first."""
    if arm == "sa":
        return StandardCopies(base, data_config, seed)
    if augment is not None:
        data = NFAugmentedDataset(base, augment, recipe.COPIES, seed=seed)
        data.transform = normalized(data_config)
        return data
    base.transform = normalized(data_config)
    return ConcatDataset([base] * (1 + recipe.COPIES))
