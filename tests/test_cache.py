"""The cache of a deep flow's work: what it holds is right, a stale or damaged one is refused, a build resumes after a kill."""

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import timm_nfaug as nfa
from timm_nfaug import lift, pixels
from timm_nfaug._utils.files import locked
from timm_nfaug._utils.random import keyed_generator
from timm_nfaug.change import Change
from timm_nfaug.change.tangents import packed, summed, tangents, weights
from timm_nfaug.data import NFACache, store
from timm_nfaug.data.cache import digest
from timm_nfaug.moves import create_move, draw_noise
from train_flow.data import load_data

MODES = 4  # of the fixture `augment`
pytestmark = pytest.mark.usefixtures("small_shards")


class Brightness(Change):
    """A change with no flow."""

    size, num_classes, noise_size = (3, 1, 1), 1, 1

    def change(self, images, y, noise):
        return (0.1 * noise).view(-1, 1, 1, 1).repeat(1, 3, 1, 1)


def test_tangents_are_the_derivatives_of_the_inverse(small_flow, toy_images):
    flow, x = small_flow.double(), pixels.levels_to_model(toy_images[0][:6]).double()
    y = toy_images[1][:6]
    z, _ = flow(x)
    found = tangents(flow, z, y, MODES, step=1e-6)
    for k in range(MODES):
        direction = flow.prior.mode_std[y, k].unsqueeze(1) * flow.prior.modes[y, k]
        _, exact = torch.func.jvp(flow.inverse, (z,), (direction,))
        torch.testing.assert_close(found[:, k], exact, rtol=1e-5, atol=1e-7)
    assert found.shape == (6, MODES + 4, 3, 32, 32) and found.abs().amax() > 0.05


def test_the_bend_of_two_modes_is_their_second_derivatives(small_flow, toy_images):
    flow, x = small_flow.double(), pixels.levels_to_model(toy_images[0][:6]).double()
    y, wanted = toy_images[1][:6], []
    z, _ = flow(x)
    directions = [flow.prior.mode_std[y, k].unsqueeze(1) * flow.prior.modes[y, k] for k in (0, 1)]
    for i, j, share in ((0, 0, 0.5), (0, 1, 1.0), (1, 1, 0.5)):
        slope = lambda v, d=directions[i]: torch.func.jvp(flow.inverse, (v,), (d,))[1]
        wanted.append(share * torch.func.jvp(slope, (z,), (directions[j],))[1])
    wanted = torch.stack(wanted, dim=1)
    found = tangents(flow, z, y, 2, step=1e-5)[:, 2:]
    assert found[:, 3].abs().max() < 1e-6, "there are no other modes"
    # a ReLU that switches on the way is seen by differences alone
    error = (found[:, :3] - wanted).abs() / wanted.abs().amax((0, 2, 3, 4)).view(3, 1, 1, 1)
    assert (error < 1e-3).double().mean((0, 2, 3, 4)).min() > 0.97 and wanted.abs().amax(
        (0, 2, 3, 4)
    ).min() > 1e-3


def test_a_fit_to_moves_of_their_size_errs_less_than_derivatives():
    """Of a flow that has learned to bend."""
    flow = nfa.ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    _, digits = load_data("digits")
    x, y = pixels.levels_to_model(digits.levels[:100]), digits.labels[:100]
    with torch.no_grad():
        z, _ = flow(x)
        noise = draw_noise(100, 8, torch.Generator().manual_seed(0))
        exact = flow.inverse(z + create_move("pca", 8, 0.5).displacement(flow, y, noise)) - x

    def error(pictures, own):
        return (
            (torch.einsum("bk,bkchw->bchw", own, pictures) - exact).norm() / exact.norm()
        ).item()

    w = torch.from_numpy(weights(noise.numpy(), 0.5, 8))
    fitted, derivatives = (tangents(flow, z, y, 8, step) for step in (0.5, 0.01))
    errors = error(fitted, w), error(fitted[:, :8], w[:, :8]), error(derivatives[:, :8], w[:, :8])
    assert errors[0] < 0.9 * errors[1] and errors[1] < 0.9 * errors[2], errors
    few = torch.from_numpy(weights(noise[:, :1].numpy(), 0.5, 8))
    assert torch.equal(few[:, 1:], torch.stack([noise[:, 0] ** 2 / 4, *[torch.zeros(100)] * 3], 1))


def test_sums_of_packed_pictures_err_by_half_a_step_at_most():
    g = torch.Generator().manual_seed(0)
    t = torch.randn(3, 5, 3, 4, 4, generator=g) * torch.tensor([1e-3, 10.0, 1.0, 0.1, 0.0]).view(
        1, 5, 1, 1, 1
    )
    small = packed(t)
    assert small.dtype == torch.uint8 and small.shape == (3, 5, 3 * 4 * 4 + 8)
    rows, w = torch.tensor([[0, 1, 3], [14, 5, 7]]), torch.randn(2, 3, generator=g)
    found, flat = summed(small.flatten(0, 1), rows, w), t.flatten(0, 1).flatten(1)
    wanted = torch.stack([sum(w[i, j] * flat[rows[i, j]] for j in range(3)) for i in range(2)])
    step = (flat.amax(1) - flat.amin(1)) / 255
    assert ((found - wanted).abs() <= 0.501 * (w.abs() * step[rows]).sum(1, keepdim=True)).all()
    assert torch.equal(
        summed(small.flatten(0, 1), rows[:, :2], w[:, :2])[0],
        summed(small[0], rows[:1, :2], w[:1, :2])[0],
    )
    assert (summed(small.flatten(0, 1), torch.tensor([[4]]), torch.ones(1, 1)) == 0).all(), (
        "nothing stays nothing"
    )


def test_changes_are_those_of_the_flow(augment, base, tmp_path):
    """To first order, and the better the smaller the move."""
    cache = NFACache.build(augment, base, tmp_path / "cache", step=0.3)
    assert len(cache) == 60 and cache.modes == MODES
    errors = {}
    for strength in (0.1, 1.0):
        exact = augment.replace(strength=strength)
        wanted, found = [], []
        for i in range(0, 60, 7):
            image, label = base[i]
            noise = torch.randn(MODES, generator=torch.Generator().manual_seed(i))
            x = pixels.levels_to_model(pixels.levels_of(image)).unsqueeze(0)
            wanted.append(
                exact._change(lambda x=x: x, torch.tensor([label]), noise.unsqueeze(0))[0]
            )
            found.append(cache.change(i, image, label, noise, strength))
        wanted, found = torch.stack(wanted), torch.stack(found)
        errors[strength] = ((found - wanted).norm() / wanted.norm()).item()
    assert errors[0.1] < 0.05 and errors[0.1] < errors[1.0] < 0.5


def test_the_dataset_moves_images_by_the_cache(augment, base, tmp_path):
    cache = NFACache.build(augment, base, tmp_path / "cache")
    base.transform = TF.pil_to_tensor
    data = nfa.CachedNFADataset(base, cache, strength=0.5, p=0.5, seed=3)
    assert base.transform is not None and data.classes == ["a", "b", "c"] and len(data) == 60

    def images(data, **kwargs):
        return torch.cat([x for x, _ in DataLoader(data, 20, **kwargs)])

    stock, first = images(base), images(data)
    changed = (stock != first).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.8 and torch.equal(images(data, num_workers=2), first)
    assert torch.equal(images(data, num_workers=1, multiprocessing_context="spawn"), first)
    data.set_epoch(1)
    second = images(data)
    assert not torch.equal(changed, (stock != second).flatten(1).any(1)) and not torch.equal(
        first[changed], second[changed]
    )
    for off in (
        nfa.CachedNFADataset(base, cache, p=0.0),
        nfa.CachedNFADataset(base, cache, strength=0.0),
    ):
        state = torch.get_rng_state()
        assert torch.equal(images(off, generator=torch.Generator()), stock) and torch.equal(
            torch.get_rng_state(), state
        )


def test_the_default_dtype_changes_no_image(augment, base, toy_images, tmp_path):
    cache = NFACache.build(augment, base, tmp_path / "cache")
    levels, y = (v[:8] for v in toy_images)
    moved = lambda: cache.augment(
        levels, y, torch.arange(8), torch.Generator().manual_seed(0), p=1.0
    )
    expected = moved()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(moved(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("size", [32, 50])
def test_a_batch_is_moved_as_the_flow_moves_it(augment, base, tmp_path, size):
    """To first order, with the same generator."""
    augment = augment.replace(strength=0.1, p=0.5)
    pairs = [(image.resize((size, size)), label) for image, label in (base[i] for i in range(20))]
    cache = NFACache.build(augment, pairs, tmp_path / "cache", step=0.1)
    rows = torch.tensor([3, 1, 19, 7, 8, 0, 12, 12])
    x, y = (
        torch.stack([TF.pil_to_tensor(pairs[i][0]) for i in rows]),
        torch.tensor([pairs[i][1] for i in rows]),
    )
    exact = augment(x, y, generator=torch.Generator().manual_seed(5))[0].int()
    found = cache.augment(x, y, rows, torch.Generator().manual_seed(5), 0.1, 0.5)
    moved = (exact != x).flatten(1).any(1)
    assert found.dtype == torch.uint8 and moved.any() and not moved.all()
    assert torch.equal((found != x).flatten(1).any(1), moved)
    assert (found - exact).abs().max() <= 3
    state = torch.get_rng_state()
    for off in ({"strength": 0.0}, {"p": 0.0}):
        assert torch.equal(cache.augment(x, y, rows, torch.default_generator, **off), x)
    assert torch.equal(torch.get_rng_state(), state)
    two, four = (
        cache.augment(x, y, rows, torch.Generator().manual_seed(5), 0.1, 1.0, modes=k)
        for k in (2, None)
    )
    assert not torch.equal(two, four)


def test_a_batch_of_other_images_is_refused(augment, base, tmp_path):
    cache = NFACache.build(augment, base, tmp_path / "cache")
    x, y = (
        torch.stack([TF.pil_to_tensor(base[i][0]) for i in range(3)]),
        torch.tensor([base[i][1] for i in range(3)]),
    )
    g = torch.Generator()
    cache.augment(x, y, torch.arange(3), g)
    with pytest.raises(ValueError, match="image 1 or its label is not what the cache"):
        cache.augment(x, y, torch.arange(1, 4), g)
    with pytest.raises(ValueError, match="image 0 or its label is not what the cache"):
        cache.augment(x, y + 1, torch.arange(3), g)
    with pytest.raises(IndexError, match="rows 0 to 60 are out of range for a cache of 60"):
        cache.augment(x, y, torch.tensor([0, 60, 1]), g)
    with pytest.raises(ValueError, match="expected uint8 images"):
        cache.augment(x.float(), y, torch.arange(3), g)
    with pytest.raises(ValueError, match="and 2 rows"):
        cache.augment(x, y, torch.arange(2), g)
    with pytest.raises(TypeError, match="one integer label an image, got None"):
        cache.augment(x, None, torch.arange(3), g)
    with pytest.raises(ValueError, match="modes must be from 1 to the 4"):
        cache.augment(x, y, torch.arange(3), g, modes=5)
    with pytest.raises(ValueError, match="p must be"):
        cache.augment(x, y, torch.arange(3), g, p=2.0)


def test_under_timms_loader_and_at_another_size(augment, image_folder, tmp_path):
    """Images of twice the flow's size: the cache is of the flow's size, the change goes through the lift."""
    large = ImageFolder(str(image_folder / "train"))
    large.loader = lambda path: Image.open(path).convert("RGB").resize((64, 64))
    cache = NFACache.build(augment, large, tmp_path / "cache")
    data = nfa.CachedNFADataset(large, cache, strength=0.5, p=1.0)
    image, _ = data[5]
    original, label = large[5]
    change = (TF.pil_to_tensor(image).float() - TF.pil_to_tensor(original).float()) / 128
    g = keyed_generator(0, 0, 5)
    torch.rand((), generator=g)
    noise = torch.randn(1, MODES, generator=g).clamp(-3, 3)[0]
    wanted = lift.enlarged(cache.change(5, original, label, noise, 0.5).unsqueeze(0), (64, 64))[0]
    assert image.size == (64, 64) and (change - wanted).abs().median() < 1.5 / 128
    common = dict(num_workers=0, persistent_workers=False, device=torch.device("cpu"))
    loader = create_loader(data, (3, 64, 64), 20, is_training=True, **common)
    assert sum(len(x) for x, _ in loader) == 60


class Counted:
    """A dataset whose reads, in any process, are noted in a file; one image cannot be read."""

    def __init__(self, base, notes, fails_at=None):
        self.base, self.notes, self.fails_at = base, notes, fails_at
        notes.write_text("")

    def __len__(self):
        return len(self.base)

    def __getitem__(self, i):
        if i == self.fails_at:
            raise OSError("the disk is gone")
        with open(self.notes, "a") as f:
            f.write(f"{i} ")
        return self.base[i]

    @property
    def reads(self):
        return [int(i) for i in self.notes.read_text().split()]


def test_a_build_cut_short_resumes(augment, base, tmp_path):
    with pytest.raises(OSError, match="image 40 cannot be cached: OSError: the disk is gone"):
        cut = Counted(base, tmp_path / "cut", fails_at=40)
        NFACache.build(augment, cut, tmp_path / "cache")
    with pytest.raises(ValueError, match="not complete; call NFACache.build again"):
        NFACache(tmp_path / "cache", augment.flow)
    rest = Counted(base, tmp_path / "rest")
    NFACache.build(augment, rest, tmp_path / "cache")
    assert set(rest.reads) >= set(range(32, 60)) and len(rest.reads) < 28 + 2 * 8 + 1, (
        "the rest, and a look at what is done"
    )
    whole = NFACache.build(augment, base, tmp_path / "whole")
    for part in ("crc", "tangents"):
        assert (tmp_path / "cache" / f"{part}.npy").read_bytes() == (
            whole.path / f"{part}.npy"
        ).read_bytes()
    with open(tmp_path / "cache" / "tangents.npy", "r+b") as f:
        f.seek(-(MODES + 4) * (3072 + 8) * 40, 2)  # in row 20
        f.write(b"\x77")
    with pytest.raises(ValueError, match="rows 16 to 31 of the cache in .* are damaged"):
        NFACache(tmp_path / "cache", augment.flow)
    again = Counted(base, tmp_path / "again")
    NFACache.build(augment, again, tmp_path / "cache")
    assert set(range(16, 32)) <= set(again.reads) and len(again.reads) < 16 + 4 * 8 + 1
    for content in (b"short", b""):
        (tmp_path / "cache" / "crc.npy").write_bytes(content)
        with pytest.raises(ValueError, match="crc.npy is missing or damaged"):
            NFACache(tmp_path / "cache", augment.flow)
        NFACache.build(augment, base, tmp_path / "cache")
        NFACache(tmp_path / "cache", augment.flow)
    (tmp_path / "cache" / "crc.npy").unlink()
    with pytest.raises(ValueError, match="crc.npy is missing or damaged"):
        NFACache(tmp_path / "cache")


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time, pathlib, timm_nfaug._utils.files as files\n"
        "with files.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with open(tmp_path / ".lock", "w") as f, pytest.raises(BlockingIOError):
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_a_cache_of_another_kind_or_format_is_refused(augment, base, tmp_path):
    """Caches of codes were made by an earlier version."""
    index = NFACache.build(augment, base, tmp_path).path / "index.json"
    for name, value, known in (("kind", "codes", "tangents"), ("format", 2, 3)):
        text = index.read_text()
        index.write_text(json.dumps(json.loads(text) | {name: value}))
        message = (
            f"holds a cache of {name} {value}, this version reads {known}; delete it and build"
        )
        for use in (NFACache, lambda path: NFACache.build(augment, base, path)):
            with pytest.raises(ValueError, match=message):
                use(tmp_path)
        index.write_text(text)
    NFACache(tmp_path, augment.flow)


def test_files_that_nobody_wrote_to_are_not_read_through_again(
    augment, base, tmp_path, monkeypatch
):
    read, checksum = [], store._checksum
    monkeypatch.setattr(
        store, "_checksum", lambda arrays, rows: read.append(rows) or checksum(arrays, rows)
    )
    cache = NFACache.build(augment, base, tmp_path / "cache")
    assert len(read) == 4, "once, as they were made"
    NFACache.build(augment, base, tmp_path / "cache")
    assert len(read) == 4
    os.utime(cache.path / "tangents.npy")  # as after a copy
    for _ in range(2):
        NFACache.build(augment, base, tmp_path / "cache")
    assert len(read) == 8, "read through once, and noted"
    with open(cache.path / "tangents.npy", "r+b") as f:
        f.seek(-5, 2)
        f.write(b"\x77")
    before = cache.change(59, *base[59], torch.ones(MODES), 1.0)
    again = NFACache.build(augment, base, tmp_path / "cache")
    assert len(read) == 13, "read through, and the last shard made again"
    assert not torch.equal(again.change(59, *base[59], torch.ones(MODES), 1.0), before)
    NFACache(cache.path, augment.flow)


def test_what_is_stale_is_refused(augment, base, tmp_path):
    cache = NFACache.build(augment, base, tmp_path / "cache")
    (image, label), noise = base[1], torch.ones(MODES)
    cache.change(1, image, label, noise, 1.0)
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    for wrong in ((other, label), (image, label + 1)):
        with pytest.raises(ValueError, match="image 1 or its label is not what the cache"):
            cache.change(1, *wrong, noise, 1.0)
    old = cache.change(1, image, label, noise, 1.0)
    relabelled = [(base[i][0], (base[i][1] + 1) % 3) for i in range(60)]
    changed = NFACache.build(augment, relabelled, tmp_path / "cache")
    fresh = NFACache.build(augment, relabelled, tmp_path / "fresh")
    new = changed.change(1, *relabelled[1], noise, 1.0)
    assert torch.equal(new, fresh.change(1, *relabelled[1], noise, 1.0)) and not torch.equal(
        new, old
    )
    cache = NFACache.build(augment, base, tmp_path / "cache")
    with pytest.raises(ValueError, match="holds a cache that differs in modes"):
        NFACache.build(
            nfa.NFAugment(augment.flow, modes=2, labels="given"), base, tmp_path / "cache"
        )
    NFACache(tmp_path / "cache", augment.flow)
    augment.flow.set_net_dtype(torch.bfloat16)
    with pytest.raises(ValueError, match="made with another flow"):
        NFACache(tmp_path / "cache", augment.flow)
    augment.flow.set_net_dtype(None)
    NFACache(tmp_path / "cache", augment.flow)
    with torch.no_grad():
        augment.flow.prior.mode_std.mul_(1.5)
    with pytest.raises(ValueError, match="made with another flow"):
        NFACache(tmp_path / "cache", augment.flow)
    with pytest.raises(ValueError, match="differs in flow"):
        NFACache.build(augment, base, tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="holds no index.json; NFACache.build makes"):
        NFACache(tmp_path)
    with pytest.raises(ValueError, match="the cache holds 60 images, the dataset has 24"):
        nfa.CachedNFADataset(ImageFolder(base.root.replace("train", "val")), cache)
    with pytest.raises(ValueError, match="modes must be from 1 to the 4"):
        nfa.CachedNFADataset(base, cache, modes=5)


def test_the_digest_of_a_flow_survives_saving(tmp_path):
    arguments = {
        "levels": np.int64(2),
        "steps": 1,
        "blocks": (1, 1),
        "hidden": 8,
        "prior": {"c": np.float32(0.5)},
    }
    flow = nfa.create_flow("resnet_ms3", input_size=(3, 8, 8), num_classes=2, **arguments)
    assert digest(nfa.ConditionalFlow.from_pretrained(flow.save_pretrained(tmp_path))) == digest(
        flow
    )


def test_a_dataset_with_a_transform_and_a_flow_that_moves_on(augment, image_folder, tmp_path):
    """The transform is no part of the cache, which needs the flow no more; nor does a copy."""
    base = ImageFolder(str(image_folder / "train"), transform=v2.RandomCrop(20))
    cache = NFACache.build(augment, base, tmp_path / "cache")
    assert base.transform is not None
    data = nfa.CachedNFADataset(base, cache, p=1.0)
    assert data[3][0].size == (20, 20)
    before = cache.change(3, *data.base[3], torch.ones(MODES), 0.5)
    with torch.no_grad():
        augment.flow.prior.modes.mul_(0)
    for one in (cache, pickle.loads(pickle.dumps(cache))):
        assert torch.equal(one.change(3, *data.base[3], torch.ones(MODES), 0.5), before)
    assert before.abs().max() > 0.01 and len(pickle.dumps(cache)) < 1000


def test_a_disk_without_room_is_told_before_anything_is_written(
    augment, base, tmp_path, monkeypatch, caplog
):
    """And what a cache takes is said before it is made; what is there already needs no room."""
    with caplog.at_level("INFO", logger="timm_nfaug"):
        NFACache.build(augment, base, tmp_path / "cache")
    size = 60 * (MODES + 4) * (3072 + 8)
    assert f"cache: {size / 1e9:.1f} GB for 60 images, of which 0 are there" in caplog.text
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(OSError, match=r"tangents.npy takes 0.00 GB, 0.00 GB are free; .* disk"):
        NFACache.build(augment, base, tmp_path / "full")
    assert not any((tmp_path / "full").glob("*.npy"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    os.utime(tmp_path / "cache" / "crc.npy")  # so that the build looks through it all
    NFACache.build(augment, base, tmp_path / "cache")


def test_what_cannot_be_cached_is_named(augment, base, tmp_path):
    with pytest.raises(ValueError, match="linear flow costs next to nothing"):
        NFACache.build(
            nfa.NFAugment.to_fit(nfa.create_flow("linear"), labels="given"), base, tmp_path
        )
    for kind in ("isotropic", "rotation"):
        with pytest.raises(ValueError, match=f"kind pca or axes; {kind}"):
            NFACache.build(
                nfa.NFAugment(augment.flow, modes=4, kind=kind, labels="given"), base, tmp_path
            )
    own = nfa.NFAugment.from_change(Brightness(), labels="none")
    with pytest.raises(ValueError, match="a cache is for changes by a flow, got Brightness"):
        NFACache.build(own, base, tmp_path)
    for step in (0.0, -0.5, float("nan"), float("inf"), "0.5", True):
        with pytest.raises(ValueError, match="step must be a finite number above 0, .* got"):
            NFACache.build(augment, base, tmp_path / "step", step=step)
    with pytest.raises(TypeError, match="PIL image of mode RGB or L, or a uint8 tensor"):
        pooled = nfa.NFAugment(augment.flow, modes=4)
        NFACache.build(pooled, [(np.zeros((32, 32, 3), np.uint8), 0)], tmp_path / "numpy")
    with pytest.raises(ValueError, match="image 0 .*expected integer labels .*got probabilities"):
        NFACache.build(augment, [(base[0][0], torch.tensor([0.5, 0.5]))], tmp_path / "soft")
    with pytest.raises(ValueError, match="PIL images of mode RGB, got L"):
        NFACache.build(augment, [base[0], (base[1][0].convert("L"), 0)], tmp_path / "grey")
