"""The cache of latents: what it keeps, whose it is, and the images that it moves, in workers and by timm's loader."""

import json
import pickle

import numpy as np
import pytest
import timm
import torch
from small_autoencoder import Small
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

import timm_nfaug as nfa
from timm_nfaug._utils.notices import NFAError
from timm_nfaug._utils.random import keyed_generator
from timm_nfaug.autoencoder import Autoencoder
from timm_nfaug.change import draw
from timm_nfaug.data import store
from timm_nfaug.data.cache import NFACache
from timm_nfaug.data.latents import LatentCache
from timm_nfaug.integration.factory import loader_factory


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(Small(), "small")


def fitted(levels, labels, autoencoder, kind, **kwargs):
    how = {"size": 64, "modes": 4, "p": 1.0, "labels": kind} | kwargs
    return nfa.NFAugment.from_data([(levels, labels)], 3, autoencoder=autoencoder, **how)


@pytest.fixture(params=["none", "given"])
def augment(request, toy_images, autoencoder):
    return fitted(*toy_images, autoencoder, request.param)


@pytest.fixture
def pooled(toy_images, autoencoder):
    return fitted(*toy_images, autoencoder, "none")


def test_it_moves_images_as_the_augmentation_does(augment, base, tmp_path, caplog):
    with caplog.at_level("INFO", logger="timm_nfaug"):
        cache = NFACache.build(augment, base, tmp_path / "cache", workers=1)
    assert "NFA cache" in caplog.text and "2.1 kB of latents an image" in caplog.text
    assert type(cache) is LatentCache and len(cache) == 60 and cache.modes == 4
    latents = np.load(tmp_path / "cache" / "latents.npy", mmap_mode="r")
    assert latents.dtype == np.float16 and latents.shape == (60, 4, 16, 16)
    augment.autoencoder.module.down.register_forward_hook(lambda *a: 1 / 0)  # no encode from here
    data = nfa.CachedNFADataset(base, cache, strength=0.7, p=0.5, seed=3)
    again = [data[i][0] for i in range(60)]
    augment.autoencoder.module.down._forward_hooks.clear()
    direct, moved = augment.replace(strength=0.7), 0
    for i in range(60):
        image, label = base[i]
        _, noise = draw(1, 0.5, 4, keyed_generator(3, 0, i))
        wanted = TF.pil_to_tensor(image)
        if len(noise):
            moved += 1
            y = None if augment.labels == "none" else torch.tensor([label])
            x = wanted.unsqueeze(0)
            wanted = direct.transform(x, {"rows": None, "noise": noise, "labels": y})[0]
        # float16 has 11 bits: its rounding may bring a level to the next
        gap = (TF.pil_to_tensor(again[i]).int() - wanted.int()).abs()
        assert gap.max() <= 1 and (gap > 0).float().mean() < 0.05
    assert 15 < moved < 45
    levels = torch.stack([TF.pil_to_tensor(base[i][0]) for i in range(60)])
    labels = torch.tensor([base[i][1] for i in range(60)])
    g = lambda: torch.Generator().manual_seed(0)
    found = cache.augment(levels, labels, torch.arange(60), g(), strength=0.7, p=0.5)
    given = (levels, labels) if augment.labels == "given" else (levels,)
    wanted = direct.replace(p=0.5)(*given, generator=g())
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found != levels).flatten(1).any(1).sum() > 15


def test_workers_and_copies_move_images_alike(pooled, base, tmp_path):
    cache = NFACache.build(pooled, base, tmp_path / "cache", workers=1)
    base.transform = TF.pil_to_tensor
    data = nfa.CachedNFADataset(base, cache, seed=1)
    alone = torch.cat([x for x, _ in DataLoader(data, 20)])
    assert torch.equal(torch.cat([x for x, _ in DataLoader(data, 20, num_workers=2)]), alone)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(torch.cat([x for x, _ in DataLoader(again, 20)]), alone)
    opened = nfa.CachedNFADataset(base, LatentCache(tmp_path / "cache", pooled), seed=1)
    assert torch.equal(torch.cat([x for x, _ in DataLoader(opened, 20)]), alone)
    data.set_epoch(1)
    assert not torch.equal(torch.cat([x for x, _ in DataLoader(data, 20)]), alone)


def test_one_cache_serves_every_flow_over_its_latents_and_no_other(
    pooled, toy_images, base, tmp_path, autoencoder
):
    path = tmp_path / "cache"
    NFACache.build(pooled, base, path, workers=1)
    before = (path / "latents.npy").stat().st_mtime_ns
    for other in (pooled.replace(kind="axes", strength=2.0), fitted(*toy_images, autoencoder, "given", modes=8)):  # fmt: skip
        assert len(NFACache.build(other, base, path, workers=1)) == 60
    assert (path / "latents.npy").stat().st_mtime_ns == before, "nothing was made anew"
    with pytest.raises(ValueError, match="holds a cache that differs in side, size, shapes"):
        NFACache.build(pooled.replace(size=32), base, path)
    strange = fitted(*toy_images, Autoencoder(Small(seed=1)), "none")
    with pytest.raises(ValueError, match="holds a cache that differs in autoencoder"):
        NFACache.build(strange, base, path)
    with pytest.raises(ValueError, match="differs in autoencoder; build it again"):
        LatentCache(path, strange)
    with pytest.raises(ValueError, match="a cache of kind latents, this version reads tangents"):
        NFACache(path)
    with pytest.raises(ValueError, match="modes must be from 1 to the 4 of the cache"):
        nfa.CachedNFADataset(base, LatentCache(path, pooled), modes=5)
    for kind in ("rotation", "isotropic"):
        with pytest.raises(ValueError, match="a cache is for moves along modes"):
            NFACache.build(pooled.replace(kind=kind), base, tmp_path / "other")


def test_it_resumes_repairs_and_knows_its_images(pooled, base, tmp_path, small_shards, monkeypatch):
    path = tmp_path / "cache"
    encode, left = type(pooled.autoencoder).encode, [3]

    def stopped(self, x):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(type(pooled.autoencoder), "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        NFACache.build(pooled, base, path, batch_size=16, workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(store, "SHARD", 16)
    assert not json.loads((path / "index.json").read_text())["complete"]
    with pytest.raises(ValueError, match="is not complete"):
        LatentCache(path, pooled)
    NFACache.build(pooled, base, path, batch_size=16, workers=1)
    whole = NFACache.build(pooled, base, tmp_path / "whole", batch_size=16, workers=1)
    assert (path / "latents.npy").read_bytes() == (tmp_path / "whole" / "latents.npy").read_bytes()
    rows = np.lib.format.open_memmap(path / "latents.npy", "r+")
    rows[20] = 7
    rows.flush()
    del rows
    with pytest.raises(ValueError, match="rows 16 to 31 .* damaged"):
        LatentCache(path, pooled)
    NFACache.build(pooled, base, path, workers=1)
    assert (path / "latents.npy").read_bytes() == (tmp_path / "whole" / "latents.npy").read_bytes()
    with pytest.raises(NFAError, match="image 3 or its label is not what the cache"):
        whole.change(3, base[4][0], base[4][1], torch.zeros(4), 0.5)


def test_images_without_latents_are_told(pooled, base, tmp_path):
    broken = Autoencoder(Small(), "small")
    with torch.no_grad():
        broken.module.down.bias.fill_(1e6)  # which float16 does not hold
    augment = nfa.NFAugment(
        pooled.flow.pooled() if pooled.flow.num_classes > 1 else pooled.flow, modes=4,
        autoencoder=pooled.autoencoder,
    )  # fmt: skip
    augment.change.autoencoder = broken
    with pytest.raises(NFAError, match="cannot move 60 of 60 images: their latents are not finite"):
        NFACache.build(augment, base, tmp_path / "cache", workers=1)


def test_it_runs_under_timms_loader(pooled, base, tmp_path):
    create = loader_factory(timm.data.create_loader, pooled, seed=0, cache=str(tmp_path / "cache"))
    loader = create(
        base, input_size=(3, 32, 32), batch_size=20, is_training=True, num_workers=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    batches = list(loader)
    assert len(batches) == 3 and all(x.isfinite().all() for x, _ in batches)
    assert (tmp_path / "cache" / "latents.npy").is_file()
