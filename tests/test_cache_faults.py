"""What happens to a cache and to kept copies: kills, full and read-only disks, damaged files, odd datasets."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as TF

import timm_nfaug as nfa
from tests.build_cache import build, contents
from timm_nfaug import NFAError, NFAWarning
from timm_nfaug._utils import files
from timm_nfaug._utils.files import locked
from timm_nfaug.change import Change
from timm_nfaug.data import NFACache, store

MODES = 4  # of the fixture `augment`
pytestmark = pytest.mark.usefixtures("small_shards")
ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")


# -- kills -------------------------------------------------------------------------------------------


def test_a_build_that_is_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    start = time.monotonic()
    build(tmp_path / "whole", images=256, shard=16)
    seconds, moments = time.monotonic() - start, random.Random(0)
    for sign in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        one = FORK.Process(target=build, args=(tmp_path / "cut", 256, 1, 16))
        one.start()
        time.sleep(moments.uniform(0.2, 0.9) * seconds)
        os.kill(one.pid, sign)
        one.join()
        with locked(tmp_path / "cut", wait=False):  # which no worker of it holds
            pass
    build(tmp_path / "cut", images=256, shard=16)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {
        "index.json", "crc.npy", "tangents.npy", ".lock"
    }  # fmt: skip


def wait_in_lock(folder, entered):
    with locked(folder):
        worker = FORK.Process(target=time.sleep, args=(60,))
        worker.start()
        entered.put(worker.pid)
        time.sleep(60)


def test_a_worker_does_not_hold_the_lock_of_its_killed_parent(tmp_path):
    entered = FORK.Queue()
    parent = FORK.Process(target=wait_in_lock, args=(tmp_path, entered))
    parent.start()
    worker = entered.get(timeout=30)
    parent.kill()
    parent.join()
    try:
        with locked(tmp_path, wait=False):
            os.kill(worker, 0)  # it lives
    finally:
        os.kill(worker, signal.SIGKILL)


def test_two_writers_make_one_cache_one_after_the_other(tmp_path, caplog):
    command = [sys.executable, "-m", "tests.build_cache", tmp_path, "--images=256", "--shard=16"]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "index.json").exists() and other.poll() is None:
        time.sleep(0.005)
    with caplog.at_level(logging.INFO, logger="timm_nfaug"):
        cache = build(tmp_path, images=256, shard=16)
    assert other.communicate()[0] == "256 images\n" and len(cache) == 256
    assert f"waiting for {tmp_path}, in use by process {other.pid} on" in caplog.text
    NFACache(tmp_path)  # all checksums


# -- disks -------------------------------------------------------------------------------------------

SMALL_DISK = """
import os, shutil, subprocess, sys
disk, whole = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
from tests.build_cache import build, contents
def fill(size):
    with open(f"{disk}/other", "wb") as f:
        f.write(bytes(size))
fill(800_000)
usage = shutil.disk_usage(disk)
shutil.disk_usage = lambda path: usage._replace(free=10**9)  # as if it filled up after the look
for _ in range(2):
    try:
        print("built:", len(build(f"{disk}/cache")))
    except OSError as e:
        print("refused:", e)
        print("left:", sorted(os.listdir(f"{disk}/cache")))
    os.remove(f"{disk}/other")
    fill(400_000)
print("same:", contents(f"{disk}/cache") == contents(whole))
"""
READ_ONLY = """
import os, shutil, subprocess, sys
disk, whole, copies = sys.argv[1:]
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", disk], check=True)
mount()
shutil.copytree(whole, f"{disk}/cache")
shutil.copytree(whole, f"{disk}/touched")
os.utime(f"{disk}/touched/crc.npy")
os.remove(f"{disk}/cache/.lock")
shutil.copytree(copies, f"{disk}/copies")
mount("-o", "remount,ro")
import torch, timm_nfaug as nfa
from PIL import Image
from tests.build_cache import build, contents
def main():
    for name in ("cache", "touched"):
        build(f"{disk}/{name}")
    print("same:", contents(f"{disk}/cache") == contents(whole))
    for call in (lambda: build(f"{disk}/cache", images=511), lambda: build(f"{disk}/new")):
        try:
            call()
        except (OSError, ValueError) as e:
            print("refused:", e)
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0, labels="given")
    base = [(Image.new("L", (8, 8), 20 * i), i) for i in range(4)]
    data = nfa.NFAugmentedDataset(base[:3], augment, cache=f"{disk}/copies")
    print("copies:", len({data[i][0].tobytes() for i in range(6)}))
    try:
        nfa.NFAugmentedDataset(base, augment, copies=2, cache=f"{disk}/copies")[11]
    except OSError as e:
        print("refused:", e)
main()
"""


@pytest.fixture
def on_a_disk(tmp_path):
    """Runs a script with a folder where it may mount a disk of its own."""
    alone = ["unshare", "--mount", *(["--map-root-user"] * (os.geteuid() != 0))]
    disk = tmp_path / "disk"
    disk.mkdir()

    def run(script, *args):
        tried = [*alone, "mount", "-t", "tmpfs", "tmpfs", disk]
        if not shutil.which("unshare") or subprocess.run(tried, capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a disk")
        command = [*alone, sys.executable, "-c", script, disk, *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines(), done.stderr

    return run


def test_a_full_disk_ends_in_words(on_a_disk, tmp_path):
    build(tmp_path / "whole")
    said, _ = on_a_disk(SMALL_DISK, tmp_path / "whole")
    assert "[Errno 28]" in said[0] and "tangents.npy takes 0.00 GB, which cannot be" in said[0]
    assert said[1:] == ["left: ['.lock']", "built: 512", "same: True"]


def test_what_is_complete_is_used_on_a_read_only_disk(on_a_disk, tmp_path):
    build(tmp_path / "whole")
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0, labels="given")
    base = [(Image.new("L", (8, 8), 20 * i), i) for i in range(3)]
    data = nfa.NFAugmentedDataset(base, augment, cache=tmp_path / "copies")
    assert len({data[i][0].tobytes() for i in range(6)}) == 6
    said, warned = on_a_disk(READ_ONLY, tmp_path / "whole", tmp_path / "copies")
    assert said[0] == "same: True" and "Warning" not in warned
    assert "differs in count; name another directory" in said[1]
    assert "[Errno 30] Read-only file system" in said[2] and "disk/new" in said[2]
    assert said[3] == "copies: 6"
    assert "cannot write" in said[4] and ".png: Read-only file system" in said[4]


def test_a_complete_cache_needs_no_lock(augment, base, tmp_path, monkeypatch, recwarn):
    cache = NFACache.build(augment, base, tmp_path)
    (tmp_path / ".lock").unlink()

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    stamp = (tmp_path / "index.json").stat().st_mtime_ns
    recwarn.clear()
    again = NFACache.build(augment, base, tmp_path)
    assert len(again) == len(cache) and not recwarn.list
    assert (tmp_path / "index.json").stat().st_mtime_ns == stamp
    assert not (tmp_path / ".lock").exists()
    os.utime(tmp_path / "crc.npy")  # there is something to write: the new time
    with pytest.warns(NFAWarning, match="file system without locks"):
        NFACache.build(augment, base, tmp_path)


# -- damaged files -----------------------------------------------------------------------------------

HOSTILE = {
    "count": [1e12, 10**12, -1, 0, True, "60", None, [60]],
    "shard": [0, -16, 16.0, None],
    "modes": [0, -4, 2**40, "4"],
    "size": [[3, 32], [3, 32, -32], [3, 32, 32.0], "3x32", None],
    "shapes": [{}, {"crc": [], "tangents": [-8, 3080]}, {"crc": [1], "tangents": [8, 3080]}, [8]],
    "step": [0, "0.5", float("nan"), float("inf")],
    "complete": [1, "yes", None],
    "shards": [[], {"0": 1}, None],
    "stamps": [[], {"crc": "now"}],
    "unmoved": [3, {"0": "none"}],
    "flow": [None, 3],
    "labels": [None, 3],
    "mode_kind": [None, []],
}  # fmt: skip


def test_a_damaged_index_is_one_error_that_names_it(augment, base, tmp_path):
    file = NFACache.build(augment, base, tmp_path).path / "index.json"
    text = file.read_text()
    index, nested = json.loads(text), "[" * 100_000
    lacking = [{k: v for k, v in index.items() if k != name} for name in HOSTILE]
    lacking = [one for one in lacking if not {"stamps", "unmoved"} - one.keys()]
    wrong = [json.dumps(index | {name: v}) for name, values in HOSTILE.items() for v in values]
    damaged = ["", text[: len(text) // 2], nested, "[]", "3", "null", "\0" * 100]
    for content in (*damaged, *map(json.dumps, lacking), *wrong):
        file.write_text(content)
        for use in (NFACache, lambda path: NFACache.build(augment, base, path)):
            with pytest.raises(ValueError, match=r"index\.json is damaged.*delete .* build it"):
                use(tmp_path)
    file.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(ValueError, match=r"index\.json is damaged.*is not JSON"):
        NFACache(tmp_path)
    for name in ("stamps", "unmoved"):  # which older versions lack
        file.write_text(json.dumps({k: v for k, v in index.items() if k != name}))
        NFACache(tmp_path)
    NFACache.build(augment, base, tmp_path)


def test_an_array_of_hostile_size_is_made_again_and_never_believed(augment, base, tmp_path):
    cache = NFACache.build(augment, base, tmp_path)
    kept = (tmp_path / "crc.npy").read_bytes()
    for shape in ((10**12,), (-1,), (60, 10**9)):
        head = {"descr": "<u4", "fortran_order": False, "shape": shape}
        with open(tmp_path / "crc.npy", "wb") as f:
            np.lib.format.write_array_header_1_0(f, head)
        with pytest.raises(ValueError, match=r"crc\.npy is missing or damaged"):
            NFACache(tmp_path)
        NFACache.build(augment, base, tmp_path)
        assert (tmp_path / "crc.npy").read_bytes() == kept
    assert len(cache) == 60


def test_an_array_with_any_bit_of_its_header_flipped_is_refused_or_read(augment, base, tmp_path):
    """Whatever numpy's reader makes of it: a bracket that is not closed is a TokenError there."""
    NFACache.build(augment, base, tmp_path)
    whole, refused = (tmp_path / "crc.npy").read_bytes(), 0
    for position in range(8 * 128):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        (tmp_path / "crc.npy").write_bytes(data)
        try:
            NFACache(tmp_path, verify=False)
        except ValueError as e:
            assert "crc.npy is missing or damaged" in str(e)
            refused += 1
    assert refused > 300


# -- a cache of nothing ------------------------------------------------------------------------------


def without_modes(flow, *classes):
    with torch.no_grad():
        flow.prior.mode_std[list(classes)] = 0
    return nfa.NFAugment(flow, modes=MODES, p=1.0, labels="given")


@pytest.mark.parametrize("said", ["have no modes: give more images", "not finite; load the flow"])
def test_a_cache_of_nothing_is_refused(small_flow, base, tmp_path, said):
    augment = without_modes(small_flow, *([0, 1, 2] if "modes" in said else []))
    if "finite" in said:
        with torch.no_grad():
            next(p for n, p in small_flow.named_parameters() if ".net." in n).fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(NFAError, match=f"cannot move 60 of 60 images: .*{said}"):
            NFACache.build(augment, base, tmp_path)
        with pytest.raises(ValueError, match="not complete"):
            NFACache(tmp_path)


def test_images_that_stay_as_they_are_are_counted(small_flow, base, tmp_path):
    one = without_modes(small_flow, 1)
    for _ in range(2):  # made, and found complete
        with pytest.warns(NFAWarning, match="cannot move 20 of 60 images"):
            cache = NFACache.build(one, base, tmp_path / "cache")
    assert not cache.change(30, *base[30], torch.ones(MODES), 1.0).any()
    assert cache.change(10, *base[10], torch.ones(MODES), 1.0).any()
    data = nfa.CachedNFADataset(base, cache, p=1.0)
    data.transform = TF.pil_to_tensor
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        moved = [not torch.equal(data[i][0], TF.pil_to_tensor(base[i][0])) for i in range(60)]
    assert [*np.flatnonzero(moved)] == [*range(20), *range(40, 60)]
    assert len(said) == 1 and "image 20 comes back unchanged" in str(said[0].message)
    assert sum(len(x) for x, _ in DataLoader(data, 20, num_workers=2)) == 60
    assert data.notices.count("no modes") == 20 + 20
    with pytest.raises(NFAError, match="cannot move 20 of 60 .*strict"):
        NFACache.build(one.replace(strict=True), base, tmp_path / "cache")
    many = [base[0]] * 119 + [base[30]]  # below 1%
    with warnings.catch_warnings():
        warnings.simplefilter("error", NFAWarning)
        NFACache.build(one, many, tmp_path / "many")


# -- the user's dataset ------------------------------------------------------------------------------


class OneFile:
    """Images in one file, which the first read opens; it is never to be read where it was made."""

    def __init__(self, path, count):
        self.path, self.count, self.file, self.owner = path, count, None, os.getpid()

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        assert os.getpid() != self.owner, "read in the main process"
        self.file = self.file or open(self.path, "rb")  # noqa: SIM115
        self.file.seek(i * 64)
        return torch.frombuffer(bytearray(self.file.read(64)), dtype=torch.uint8).view(
            1, 8, 8
        ), i % 10


@pytest.mark.parametrize(
    "context, images, workers", [("fork", 4_000, 2), ("spawn", 300, 1), ("forkserver", 300, 1)]
)
def test_a_dataset_that_opens_its_file_is_read_in_workers(
    tmp_path, monkeypatch, context, images, workers
):
    monkeypatch.setattr(store, "SHARD", 4096)
    levels = torch.randint(0, 256, (images, 1, 8, 8), dtype=torch.uint8)
    (tmp_path / "images").write_bytes(levels.numpy().tobytes())
    base = OneFile(tmp_path / "images", images)
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", modes=1, labels="given")
    own = multiprocessing.get_start_method()
    multiprocessing.set_start_method(context, force=True)
    try:
        cache = NFACache.build(augment, base, tmp_path / "cache", batch_size=256, workers=workers)
    finally:
        multiprocessing.set_start_method(own, force=True)
    assert vars(base) == {"path": base.path, "count": images, "file": None, "owner": os.getpid()}
    for i in range(images):
        cache._check([i], levels[i], i % 10)  # by its checksum


def test_a_build_draws_nothing_from_the_global_generators(augment, base, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    NFACache.build(augment, base, tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    for workers in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="workers must be an integer of at least 1, got"):
            NFACache.build(augment, base, tmp_path, workers=workers)


class Named:
    """Knows the files of its images as timm's datasets do."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return Image.open(self.pairs[i][0]).convert("RGB"), self.pairs[i][1]

    def filename(self, index, basename=False, absolute=False):
        return self.pairs[index][0] if absolute else "a short name"


def test_an_image_that_cannot_be_read_is_named(augment, image_folder, tmp_path, monkeypatch):
    shutil.copytree(image_folder / "train", tmp_path / "data")
    data = tmp_path / "data"
    whole = (data / "b" / "030.png").read_bytes()
    (data / "b" / "030.png").write_bytes(whole[:-400])
    folder = ImageFolder(str(data))
    datasets = {30: [folder, Named(folder.samples)], 2: [Subset(folder, [1, 2, 30, 4])]}
    for i, several in datasets.items():
        for one in several:
            with pytest.raises(OSError, match=rf"image {i} \(.*data/b/030\.png\) cannot be cached"):
                NFACache.build(augment, one, tmp_path / type(one).__name__)
    (data / "b" / "030.png").write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"image 0 \(.*000\.png\) .*DecompressionBombError"):
        NFACache.build(augment, folder, tmp_path / "bomb")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="none"):
        NFACache.build(augment, [], tmp_path / "empty")
    with pytest.raises(TypeError, match="map-style"):
        NFACache.build(augment, iter([]), tmp_path / "stream")


class AlwaysTransformed:
    """Calls its transform without asking whether there is one."""

    def __init__(self, base, transform):
        self.base, self.transform = base, transform

    def __len__(self):
        return len(self.base)

    def __getitem__(self, i):
        image, label = self.base[i]
        return self.transform(image), label


def test_a_transform_that_is_always_called_is_taken_out(augment, base, tmp_path):
    data = AlwaysTransformed(base, TF.hflip)
    cache = NFACache.build(augment, data, tmp_path)
    moved = nfa.CachedNFADataset(data, cache, p=1.0)
    copies = nfa.NFAugmentedDataset(data, augment)
    assert data.transform is moved.transform is copies.transform is TF.hflip
    assert copies[3][0].tobytes() == TF.hflip(base[3][0]).tobytes()
    wanted = nfa.CachedNFADataset(base, cache, p=1.0)[3][0]
    assert moved[3][0].tobytes() == TF.hflip(wanted).tobytes() != copies[3][0].tobytes()


# -- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest", [lambda k: (np.int64(k),), lambda k: (torch.tensor([k]),), lambda k: ("a.png", k, 7.5),
             lambda k: ({"index": 99, "target": k},)],
)  # fmt: skip
def test_labels_are_found_as_the_transform_finds_them(augment, base, tmp_path, rest):
    data = [(image, *rest(k)) for image, k in (base[i] for i in (5, 25, 45))]
    plain = [(image, k) for image, k in (base[i] for i in (5, 25, 45))]
    caches = [NFACache.build(augment, d, tmp_path / str(i)) for i, d in enumerate((data, plain))]
    assert contents(caches[0].path) == contents(caches[1].path)
    for i in range(3):
        one, other = (nfa.CachedNFADataset(d, caches[0], p=1.0)[i] for d in (data, plain))
        assert one[0].tobytes() == other[0].tobytes() and len(one) == len(data[i])
        one, other = (nfa.NFAugmentedDataset(d, augment)[3 + i] for d in (data, plain))
        assert one[0].tobytes() == other[0].tobytes() != data[i][0].tobytes()


@pytest.mark.parametrize("label", ["cat", True, 1.0, 7])
def test_what_is_no_label_is_refused(augment, base, tmp_path, label):
    data = [(base[0][0], label)]
    cache = NFACache.build(augment, [base[0]], tmp_path / "cache")
    wanted = "labels must be in 0..2" if label == 7 else "expected integer labels .*posterior"
    with pytest.raises((TypeError, ValueError), match=f"image 0 cannot be cached: .*{wanted}"):
        NFACache.build(augment, data, tmp_path / "other")
    with pytest.raises((TypeError, ValueError), match=wanted):
        nfa.NFAugmentedDataset(data, augment)[1]
    with pytest.raises((TypeError, ValueError)):
        nfa.CachedNFADataset(data, cache, p=1.0)[0]
    free = augment.replace(labels="posterior")
    NFACache.build(free, data, tmp_path / "free")
    image, same = nfa.NFAugmentedDataset(data, free)[1]
    assert same == label and image.tobytes() != data[0][0].tobytes()


@pytest.mark.parametrize("shape", [lambda image: (image,), lambda image: image])
def test_a_dataset_without_labels(augment, base, tmp_path, shape):
    """The cache asks for them; copies follow the transform, which guesses or is strict."""
    data = [shape(base[i][0]) for i in (0, 30)]
    with pytest.raises(
        TypeError, match="image 0 .*one integer label an image, got None.*posterior"
    ):
        NFACache.build(augment, data, tmp_path / "cache")
    free = augment.replace(labels="posterior")
    cache = NFACache.build(free, data, tmp_path / "cache")
    for one in (
        nfa.CachedNFADataset(data, cache, p=1.0)[1],
        nfa.NFAugmentedDataset(data, free)[3],
        nfa.NFAugmentedDataset(data, free, cache=tmp_path / "copies")[3],
    ):
        assert type(one) is type(data[1])
        image = one[0] if isinstance(one, tuple) else one
        assert image.tobytes() != base[30][0].tobytes()
    with pytest.warns(NFAWarning, match="label") as said:
        guessed = [nfa.NFAugmentedDataset(data, augment)[i] for i in (2, 3)]
    wanted = [nfa.NFAugmentedDataset(data, free)[i] for i in (2, 3)]
    assert pickle.dumps(guessed) == pickle.dumps(wanted) and len(said) == 1
    with pytest.raises(NFAError, match="label"):
        nfa.NFAugmentedDataset(data, augment.replace(strict=True))[2]


class Broken(Change):
    size, num_classes, noise_size = (3, 1, 1), 1, 1

    def change(self, images, y, noise):
        return torch.full((len(noise), *self.size), torch.nan)


def test_what_workers_leave_alone_is_counted_here(base):
    augment = nfa.NFAugment.from_change(Broken(), p=1.0, labels="none")
    base.transform = TF.pil_to_tensor
    data = nfa.NFAugmentedDataset(base, augment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NFAWarning)
        assert sum(len(x) for x, _ in DataLoader(data, 20, num_workers=2)) == 120
    assert augment.notices.count("not finite") == 60


# -- kept copies -------------------------------------------------------------------------------------


def all_of(data):
    return [data[i][0].tobytes() for i in range(len(data))]


def test_a_damaged_copy_is_made_again_and_said_once(augment, base, tmp_path):
    data = nfa.NFAugmentedDataset(Subset(base, range(3)), augment, cache=tmp_path)
    wanted = all_of(data)
    kept = sorted(tmp_path.rglob("*.png"))
    for content in (kept[1].read_bytes()[:-900], b"", b"no picture"):
        whole = [p.read_bytes() for p in kept]
        kept[0].write_bytes(content)
        kept[1].write_bytes(content)
        Image.new("RGB", (4, 4)).save(kept[2])
        again = nfa.NFAugmentedDataset(Subset(base, range(3)), augment, cache=tmp_path)
        with pytest.warns(NFAWarning, match=r"copy in .*000000003-.*\.png is damaged") as said:
            assert all_of(again) == wanted
        assert len(said) == 1 and [p.read_bytes() for p in kept] == whole


def test_a_kept_copy_has_the_info_of_its_original(augment, base, tmp_path):
    image = base[0][0]
    image.info = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "dpi": (72, 72)}
    data = nfa.NFAugmentedDataset([(image, 0)], augment, cache=tmp_path)
    assert [data[1][0].info for _ in range(2)] == [image.info] * 2


def test_what_killed_writers_left_is_removed(augment, base, tmp_path):
    data = nfa.NFAugmentedDataset(Subset(base, range(3)), augment, cache=tmp_path)
    data[3]
    (kept,) = tmp_path.rglob("*.png")
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    host = files.socket.gethostname()
    left = [kept.parent / f".{kept.name}.{host}-{pid}.x" for pid in (dead, os.getpid())]
    for path in left:
        path.touch()
    nfa.NFAugmentedDataset(Subset(base, range(3)), augment, cache=tmp_path)[4]
    assert [path.exists() for path in left] == [False, True]


def test_a_full_disk_names_the_copy(augment, base, tmp_path, monkeypatch):
    data = nfa.NFAugmentedDataset(base, augment, cache=tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*000000060-.*\.png: No space left") as e:
        data[60]
    assert e.value.errno == errno.ENOSPC and not any(p.is_file() for p in tmp_path.rglob("*"))


def copy_all(base, augment, folder, start):
    data = nfa.NFAugmentedDataset(base, augment, cache=folder)
    start.wait()
    all_of(data)


def test_two_processes_that_write_the_same_copies(augment, base, tmp_path):
    start = FORK.Barrier(2)
    both = [FORK.Process(target=copy_all, args=(base, augment, tmp_path, start)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = all_of(nfa.NFAugmentedDataset(base, augment, cache=tmp_path))
    assert kept == all_of(nfa.NFAugmentedDataset(base, augment))
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 60
