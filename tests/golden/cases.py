"""What is pinned as arrays: a name for each case, and a function that computes it.

A function uses public names alone and returns an array or a dict of arrays. `make` records them
in values.npz, test_golden.py computes them again.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.data import FastCollateMixup, create_loader
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import timm_nfaug as nfa

from . import inputs
from .inputs import (
    CACHE,
    Moved,
    Pictures,
    array,
    augment,
    flow,
    generator,
    in_order,
    labels,
    levels,
    model_range,
    noise,
    parsed,
    pil,
)

Arrays = dict[str, torch.Tensor]
CASES: dict[str, Callable[[], torch.Tensor | Arrays]] = {}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
DEEP = ("--aug", "nfa-s1-k4-p0.5-lgiven", "--nfa-flow", str(inputs.FLOWS / "conv_p4_tiny"))
LINEAR = ("--aug", "nfa-s0.5-k3-p0.5-lgiven")


def case(name: str, *arguments):
    """Adds a function to the cases, with these arguments, under its name."""

    def add(function):
        CASES[name] = lambda: function(*arguments)
        return function

    return add


def compute(name: str) -> dict[str, np.ndarray]:
    """Names and arrays of one case."""
    found = CASES[name]()
    parts = found if isinstance(found, dict) else {"": found}
    return {f"{name}/{k}".rstrip("/"): thinned(v.detach().numpy()) for k, v in parts.items()}


def thinned(v: np.ndarray) -> np.ndarray:
    """Every third number of a large array: enough to see a change, and the file stays small."""
    return np.ascontiguousarray(v if v.size < 384 else v.reshape(-1)[::3])


def moved(before: torch.Tensor, after: torch.Tensor) -> Arrays:
    """Images as they came out, and which of them changed at all."""
    return {"images": after, "which": (before != after).flatten(1).any(1)}


def calls(count: int, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    return torch.stack([call() for _ in range(count)])


# -- what NFAugment takes and gives ----------------------------------------------------------------


def as_pil(x, t):
    return torch.stack([array(t(pil(image), k)[0]) for image, k in zip(x, labels(len(x)).tolist())])


def as_single(x, t):
    return torch.stack([t(image, k)[0] for image, k in zip(x, labels(len(x)).tolist())])


def as_batch(x, t):
    return t(x, labels(len(x)))[0]


def as_unit(x, t):
    return t(x.float() / 255, labels(len(x)))[0]


def as_normalised(x, t):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return t((x.float() / 255 - mean) / std, labels(len(x)))[0]


def as_tv(x, t):
    return t(tv_tensors.Image(x), labels(len(x)))[0].as_subclass(torch.Tensor)


KINDS = {
    "pil": as_pil,
    "single": as_single,
    "batch": as_batch,
    "unit": as_unit,
    "normalised": as_normalised,
    "tv": as_tv,
}


def kind_of_input(kind: str, name: str, size: tuple[int, ...]) -> torch.Tensor:
    """A few images at p 0.5, or one of another size than the flow's, which is moved."""
    stats = {"mean": MEAN, "std": STD} if kind == "normalised" else {}
    count, p = (3, 0.5) if size == (3, 8, 8) else (1, 1.0)
    return KINDS[kind](levels(count, size), augment(name, p=p, seed=4, **stats))


for _kind in KINDS:
    for _name in ("conv_p4_tiny", "linear"):
        case(f"input/{_kind}/{_name}", _kind, _name, (3, 8, 8))(kind_of_input)
case("input/pil/lift", "pil", "conv_p4_tiny", (3, 40, 48))(kind_of_input)
case("input/pil/lift_linear", "pil", "linear", (3, 40, 48))(kind_of_input)
case("input/batch/lift", "batch", "conv_p4_tiny", (3, 48, 40))(kind_of_input)
case("input/normalised/lift", "normalised", "linear", (3, 12, 20))(kind_of_input)


@case("input/bundled_grey", "conv_p4_tiny.digits", (1, 8, 8), {"modes": 8, "strength": 0.5})
def bundled(name, size, settings):
    t = nfa.NFAugment.from_pretrained(name, p=1.0, seed=2, **{"labels": "given"} | settings)
    x = levels(2, size)
    return {"batch": t(x, labels(2))[0], "pil": array(t(pil(x[0]), 1)[0])}


# -- settings, labels, random streams --------------------------------------------------------------


@case("stream/pca_p1_s1", {"kind": "pca"})
@case("stream/pca_p1_s0.5", {"kind": "pca", "strength": 0.5})
@case("stream/pca_p0.5_s0.5", {"kind": "pca", "p": 0.5, "strength": 0.5})
@case("stream/pca_two_modes", {"kind": "pca", "p": 0.5, "modes": 2})
@case("stream/axes_p0.5_s1", {"kind": "axes", "p": 0.5})
@case("stream/isotropic_p0.5_s1", {"kind": "isotropic", "p": 0.5})
@case("stream/isotropic_p1_s0.5", {"kind": "isotropic", "strength": 0.5})
@case("stream/posterior_p0.5", {"labels": "posterior", "p": 0.5})
@case("stream/seed_none_is_torchs", {"seed": None, "p": 0.5})
def own_generator(settings):
    """Three calls in a row with a batch, so that the transform's own stream is seen to go on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(21)
        t, x = augment(**{"seed": 8, **settings}), levels(5)
        after = calls(3, lambda: t(x, labels(5))[0])
    return moved(x.repeat(3, 1, 1, 1), after.flatten(0, 1))


@case("stream/none_linear", "pooled", {"labels": "none", "p": 0.5})
@case("stream/linear_axes", "linear", {"kind": "axes", "p": 0.5})
@case("stream/linear_isotropic", "linear", {"kind": "isotropic"})
@case("stream/linear_posterior", "linear", {"labels": "posterior"})
@case("stream/ce", "ce", {"p": 0.5})
@case("stream/half", "conv_p4_base", {"p": 0.5})
def other_flows(name, settings):
    t, x = augment(name, seed=8, **settings), levels(5)
    return {**moved(x, t(x, labels(5))[0]), "pil": array(t(pil(x[0]), 2)[0]), "no_label": t(x)}


@case("stream/generator")
def given_generator():
    """Two calls from the caller's generator; the transform's own is where it was."""
    t, x, g = augment(p=0.5, seed=8), levels(5), generator(77)
    own = [t(x, labels(5), generator=g)[0] for _ in range(2)]
    return {
        "given": torch.cat(own),
        "after": t(x, labels(5))[0],
        "next": torch.rand(2, generator=g),
    }


@case("stream/pil_in_a_row")
def pil_in_a_row():
    t, x = augment(p=0.5, seed=3), levels(12)
    return moved(x, as_pil(x, t))


@case("stream/no_label")
def without_labels():
    t, x = augment(p=0.5, seed=3), levels(6)
    single = torch.stack([array(t(pil(image))) for image in x])
    return {"pil": single, "batch": t(x)}


@case("stream/dict")
def in_dicts():
    t, x = augment(p=0.5, seed=3), levels(6)
    out = t({"id": torch.arange(6) + 9, "image": x, "label": labels(6)})
    ones = [t({"image": pil(image), "labels": int(k)})["image"] for image, k in zip(x, labels(6))]
    return {
        "batch": out["image"],
        "id": out["id"],
        "pil": torch.stack([array(image) for image in ones]),
    }


@case("stream/two_images_one_draw")
def two_images():
    """An image and its copy in one call get the same move."""
    t, x = augment(seed=3), levels(2)
    a, b, _ = t(pil(x[0]), pil(x[1]), {"label": 1})
    return torch.stack([array(a), array(b)])


@case("stream/compose")
def in_compose():
    t = v2.Compose([augment(p=0.5, seed=3), v2.ToDtype(torch.float32, scale=True)])
    return t(tv_tensors.Image(levels(4)), labels(4))[0].as_subclass(torch.Tensor)


# -- loaders ---------------------------------------------------------------------------------------


@case("loader/two_workers", 2, False)
@case("loader/persistent_workers", 2, True)
@case("loader/no_workers", 0, False)
def loaded(workers, persistent):
    """Two epochs of a loader whose dataset's transform is the augmentation with a seed."""
    x = levels(10)
    loader = DataLoader(
        Moved(x, augment(p=0.5, seed=6)),
        3,
        num_workers=workers,
        persistent_workers=persistent,
        generator=generator(31),
    )
    after = torch.cat([torch.cat([images for images, _ in loader]) for _ in range(2)])
    return moved(x.repeat(2, 1, 1, 1), after)


@case("loader/two_workers_no_seed")
def loaded_without_seed():
    x = levels(8)
    loader = DataLoader(Moved(x, augment(p=0.5)), 2, num_workers=2, generator=generator(31))
    return moved(x, torch.cat([images for images, _ in loader]))


def epochs(loader, count: int = 2) -> Arrays:
    """Images and labels of the first passes of a loader."""
    batches = [batch for _ in range(count) for batch in loader]
    return {
        "images": torch.cat([b[0] for b in batches]),
        "labels": torch.cat([b[1] for b in batches]),
    }


@case("wrap/deep", DEEP, {"seed": 5})
@case("wrap/no_seed", DEEP, {})
@case("wrap/fit", (*DEEP, "--nfa-fit"), {"seed": 5})
@case("wrap/linear", LINEAR, {"seed": 5})
@case("wrap/pooled", ("--aug", "nfa-s0.5-k3-p0.5-lnone", "--nfa-flow", "linear"), {"seed": 5})
@case("wrap/posterior", ("--aug", "nfa-s1-k4-p0.5-lposterior", *DEEP[2:]), {"seed": 5})
def wrapped(flags, others):
    data = TensorDataset(levels(12), labels(12))
    return epochs(nfa.wrap_loader(DataLoader(data, 4), parsed(*flags, **others), num_classes=3))


@case("wrap/normalised")
def wrapped_normalised():
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    data = TensorDataset((levels(8).float() / 255 - mean) / std, labels(8))
    loader = nfa.wrap_loader(DataLoader(data, 4), parsed(*DEEP, seed=5), mean=MEAN, std=STD)
    loader.epoch = 3  # as a resumed training sets it
    return epochs(loader, 1)


def seeded() -> None:
    """The global generators that timm's mixup and erasing draw from."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def timm_loader(data, prefetcher: bool, erase: bool, mix: bool):
    """timm's training loader without crop, flip, jitter or shuffling."""
    collate = FastCollateMixup(mixup_alpha=0.5, num_classes=3, label_smoothing=0.1) if mix else None
    loader = create_loader(
        data, input_size=(3, 16, 16), batch_size=2, is_training=True, use_prefetcher=prefetcher,
        num_workers=0, persistent_workers=False, device=torch.device("cpu"), mean=MEAN, std=STD,
        collate_fn=collate, re_prob=0.7 if erase else 0.0, re_mode="const", hflip=0.0,
        scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0,
    )  # fmt: skip
    return in_order(loader)


def plain_loader(loader, erase: bool) -> dict:
    """What wrap_loader is told of a loader without the prefetcher: nothing of it is guessed."""
    erasing = RandomErasing(0.7, mode="const", max_count=1, device="cpu") if erase else None
    fit_dataset = DataLoader(loader.dataset, 256)
    return {"mean": MEAN, "std": STD, "fit_dataset": fit_dataset, "erasing": erasing}


@case("timm/prefetcher", DEEP, True, False, False)
@case("timm/prefetcher_erase", DEEP, True, True, False)
@case("timm/prefetcher_mixup", DEEP, True, False, True)
@case("timm/prefetcher_erase_mixup_linear", LINEAR, True, True, True)
@case("timm/plain", LINEAR, False, False, False)
@case("timm/plain_erase", DEEP, False, True, False)
def wrapped_timm(flags, prefetcher, erase, mix):
    seeded()
    loader = timm_loader(Pictures(levels(6, (3, 16, 16))), prefetcher, erase and prefetcher, mix)
    more = {} if prefetcher else plain_loader(loader, erase)
    found = epochs(nfa.wrap_loader(loader, parsed(*flags, seed=5), num_classes=3, **more))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    found["images"] = ((found["images"] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return found


# -- datasets and caches ---------------------------------------------------------------------------


def items(data) -> torch.Tensor:
    return torch.stack([array(image) for image, _ in (data[i] for i in range(len(data)))])


@case("dataset/copies", 1.0)
@case("dataset/copies_p", 0.5)
def copies(p):
    data = nfa.NFAugmentedDataset(Pictures(levels(4)), augment(p=p), copies=2, seed=7)
    first = items(data)
    data.set_epoch(1)
    return {"first": first, "second": items(data)}


@case("dataset/kept_copies")
def kept_copies():
    """Copies that are kept as PNG are drawn as those of epoch 0, and read again."""
    with tempfile.TemporaryDirectory() as folder:
        data = nfa.NFAugmentedDataset(
            Pictures(levels(3)), augment(), copies=1, cache=folder, seed=7
        )
        data.set_epoch(4)
        first = items(data)
        return {"first": first, "again": items(data)}


@case("dataset/transform")
def dataset_with_transform():
    data = nfa.NFAugmentedDataset(
        Pictures(levels(2), v2.functional.hflip), augment(), copies=1, seed=7
    )
    return items(data)


def build(folder: str, **settings) -> nfa.NFACache:
    data = Pictures(levels(6, seed=3))
    return nfa.NFACache.build(augment(strength=0.5, **settings), data, Path(folder))


@case("cache/tangents", {})
@case("cache/tangents_posterior", {"labels": "posterior"})
@case("cache/tangents_axes", {"kind": "axes"})
def cached(settings):
    """A dataset and batches from a cache that is built here."""
    with tempfile.TemporaryDirectory() as folder:
        return from_cache(build(folder, **settings))


@case("cache/stored")
def stored_cache():
    """The same from the cache on disk, which an older version wrote."""
    return from_cache(nfa.NFACache(CACHE, flow("conv_p4_tiny")))


def from_cache(cache: nfa.NFACache) -> Arrays:
    x = levels(6, seed=3)
    data = nfa.CachedNFADataset(Pictures(x), cache, strength=0.8, p=0.5, modes=3, seed=7)
    first = items(data)
    data.set_epoch(1)
    rows, g = torch.tensor([4, 1, 3]), generator(5)
    batch = [cache.augment(x[rows], rows % 3, rows, g, strength=1.0, p=0.5) for _ in range(2)]
    change = cache.change(2, pil(x[2]), 2, noise(1)[0], 1.0)
    return {"first": first, "second": items(data), "batch": torch.cat(batch), "change": change}


# -- flows at fixed input --------------------------------------------------------------------------


def flow_values(name: str) -> Arrays:
    f, x, y = flow(name), model_range(levels(2)), labels(2)
    if name == "pooled":
        y = torch.zeros_like(y)
    z, log_det = f(x, y)
    drawn = {"temperature": 0.7, "mean_scale": 1.3}
    return {
        "code": z, "log_det": log_det, "inverse": f.inverse(z + 0.25), "log_prob": f.log_prob(x, y),
        "bits_per_dim": f.bits_per_dim(x, y), "class_logits": f.class_logits(x),
        "sample": f.sample(y, **drawn, generator=generator(1)),
        "interpolate": f.interpolate(x[:1], x[1:], 3, y[:1], y[1:]),
        "perturb": nfa.perturb(f, z, y, strength=0.5, modes=3, generator=generator(2)) - z,
    }  # fmt: skip


def change_values(name: str) -> Arrays:
    """`augment` at fixed noise, with labels and with the class that the flow chooses."""
    x, y, e = model_range(levels(2)), labels(2), noise(2)
    if name == "pooled":
        y = torch.zeros_like(y)
    t = augment(name, strength=0.75)
    isotropic, axes = (augment(name, strength=0.75, kind=kind) for kind in ("isotropic", "axes"))
    return {
        "pca": t.augment(x, y, e), "posterior": t.augment(x, None, e),
        "axes": axes.augment(x, y, e),
        "isotropic": isotropic.augment(x, y, noise(2, t.flow.dim)),
        "lift": t.augment(model_range(levels(1, (3, 12, 10))), y[:1], e[:1]),
    }  # fmt: skip


for _name in inputs.flow_names():
    case(f"flow/{_name}", _name)(flow_values)
    case(f"change/{_name}", _name)(change_values)


# -- fits ------------------------------------------------------------------------------------------


def batches(count: int = 30, size=(3, 8, 8)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of ten images."""
    return list(zip(levels(count, size).split(10), labels(count).split(10)))


def fit_values(t: nfa.NFAugment) -> Arrays:
    """What a fit gives: the change at fixed noise, the spread along the modes, and class logits."""
    count, size = t.flow.num_classes, t.flow.config.input_size
    x, y = model_range(levels(3, size)), labels(3).clamp_max(count - 1)
    out = t.augment(x, y, noise(3, t.modes))
    return {"change": out - x, "std": t.flow.prior.mode_std, "logits": t.flow.class_logits(x)}


@case("fit/from_data", {})
@case("fit/from_data_no_shrinkage", {"shrinkage": 0.0})
@case("fit/from_data_pooled", {"labels": "none"})
def from_data(settings):
    t = nfa.NFAugment.from_data(
        batches(), 3, input_size=(3, 8, 8), modes=3, **{"labels": "given"} | settings
    )
    return fit_values(t)


@case("fit/lifted")
def from_larger_data():
    loader = batches(size=(3, 20, 24))
    return fit_values(
        nfa.NFAugment.from_data(loader, 3, input_size=(3, 8, 8), modes=3, labels="given")
    )


@case("fit/deep", "conv_p4_tiny")
@case("fit/deep_bounded", "conv_p4_small")
def fit_deep(name):
    return fit_values(nfa.NFAugment.to_fit(flow(name), modes=3, labels="given").fit(batches(), 3))


@case("fit/allow_empty")
def fit_with_an_empty_class():
    t = nfa.NFAugment.to_fit(flow("linear"), modes=2, labels="given").fit(
        batches(), 4, allow_empty=True
    )
    found = fit_values(t)
    return {"std": found["std"], "choice": found["logits"].argmax(1)}
