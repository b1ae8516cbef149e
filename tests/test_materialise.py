"""Copies on disk: the same bytes by any number of processes, after kills, and as timm reads them."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset

import timm_nfaug as nfa
from timm_nfaug import materialise
from timm_nfaug._utils.files import locked
from timm_nfaug.copies import shards
from timm_nfaug.copies.job import Item, Job

ROOT = Path(__file__).parent.parent
AUTOENCODER = """
import torch

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = torch.nn.Conv2d(3, 4, 4, 4)
        self.up = torch.nn.ConvTranspose2d(4, 3, 4, 4)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)
"""


def make(data, out, *flags, code=0):
    """Runs the command in this process; returns its exit code."""
    argv = ["--data-dir", str(data), "--out", str(out), "--shard-images", "8", "--device", "cpu"]
    argv += [] if "--processes" in flags else ["--processes", "1"]
    try:
        found = materialise.main([*argv, *map(str, flags)])
    except SystemExit as e:
        found = e.code
    assert found == code
    return found


def contents(out):
    """Digest of every file by name: images, tar files and records, without what notes times."""
    own = {}
    for path in sorted(Path(out).rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(
            (".nfa/.lock", ".nfa/images", ".nfa/augmentation")
        ):
            own[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return own


@pytest.fixture(scope="module")
def data(tmp_path_factory, image_folder):
    """40 images: 20 of a, 12 of b, 8 of c, of which some have another size."""
    root = tmp_path_factory.mktemp("data") / "train"
    for name, count in {"a": 20, "b": 12, "c": 8}.items():
        (root / name).mkdir(parents=True)
        for i, path in enumerate(sorted((image_folder / "train" / name).iterdir())[:count]):
            image = Image.open(path)
            image.resize((40, 36)).save(root / name / path.name) if i == 3 else image.save(
                root / name / path.name
            )
    return root.parent


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A finished set of the data in class folders."""
    make(data, out := tmp_path_factory.mktemp("sets") / "whole")
    return out


def test_the_copies_are_those_of_the_augmentation(data, whole):
    """Seed, copy and place in the dataset give the noise; the saved augmentation the modes."""
    augment = nfa.NFAugment.from_pretrained(whole / ".nfa" / "augmentation")
    assert augment.p == 1 and augment.flow.config.info["images"] == 40
    names = [
        str(Path(p).relative_to(data / "train")) for p, _ in create_dataset("", data).reader.samples
    ]
    for name, copy in (("a/003.png", 1), ("b/025.png", 2), ("c/040.png", 3)):
        g = nfa._utils.random.keyed_generator(0, copy, names.index(name))
        wanted = augment(Image.open(data / "train" / name).convert("RGB"), generator=g)
        moved = Image.open(whole / "train" / name.replace(".png", f"_nfa{copy}.png"))
        assert moved.size == wanted.size and moved.tobytes() == wanted.tobytes()
        assert moved.tobytes() != Image.open(data / "train" / name).tobytes()


def test_timm_reads_the_folder_and_originals_are_as_they_were(data, whole):
    dataset = create_dataset("", whole, split="train")
    labels = [k for _, k in dataset.reader.samples]
    assert [labels.count(k) for k in range(3)] == [80, 48, 32]
    for path in (data / "train").rglob("*.png"):
        assert (
            whole / "train" / path.relative_to(data / "train")
        ).read_bytes() == path.read_bytes()
    assert {k for path, k in dataset.reader.samples if Path(path).parent.name == "b"} == {1}


def test_timm_reads_the_tar_files(data, whole, tmp_path):
    pytest.importorskip("webdataset")
    make(data, out := tmp_path / "tars", "--format", "webdataset")
    dataset = create_dataset("wds/", root=str(out), split="train", is_training=False)
    found = [(np.asarray(image).tobytes(), k) for image, k in dataset]
    names = create_dataset("", whole, split="train").reader.samples
    wanted = [(Image.open(p).convert("RGB").tobytes(), k) for p, k in names]
    assert sorted(found) == sorted(wanted) and len(dataset) == len(found) == 160
    first, *rest = sorted(out.glob("train-*.tar"))
    assert len(rest) == 4 and first.name == "train-000000.tar"
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}
        labels = [int(tar.extractfile(m).read()) for m in tar if m.name.endswith(".cls")]
    assert len(labels) == 32 and len(set(labels)) > 1  # a shard mixes classes
    training = create_dataset("wds/", root=str(out), split="train", is_training=True, batch_size=8)
    assert len(training) == 160


def test_jpeg_and_labels_of_their_folders(data, tmp_path):
    make(
        data, out := tmp_path / "jpeg", "--quality", 90, "--aug", "nfa-s1-k4-lgiven", "--copies", 1
    )
    found = list((out / "train").rglob("*_nfa1.jpg"))
    assert len(found) == 40 and {Image.open(p).format for p in found} == {"JPEG"}
    augment = nfa.NFAugment.from_pretrained(out / ".nfa" / "augmentation")
    assert augment.labels == "given" and augment.flow.num_classes == 3
    job = Job(str(out), str(data / "train"), 1, quality=90)
    image, item = Image.open(data / "train/c/040.png").convert("RGB"), Item(32, "c/040.png", 2)
    own = shards._changes(job, augment, [image], [item])
    other = shards._changes(job, augment, [image], [Item(32, "c/040.png", 1)])
    moved = shards._encoded(job, image, own[0])
    assert (out / "train/c/040_nfa1.jpg").read_bytes() == moved and not torch.equal(own, other)


def test_p_by_its_name_leaves_some_copies_as_they_are(data, tmp_path, capsys):
    make(data, out := tmp_path / "some", "--aug", "nfa-p0.5", "--copies", 1)
    assert "a copy is moved with probability 0.5" in capsys.readouterr().err
    same = [
        Image.open(p).tobytes() == Image.open(p.with_name(f"{p.stem}_nfa1.png")).tobytes()
        for p in (out / "train").rglob("[0-9][0-9][0-9].png")
    ]
    assert len(same) == 40 and 8 < sum(same) < 32


def test_latent_space_with_an_autoencoder_of_your_own(data, tmp_path):
    (tmp_path / "own_ae.py").write_text(AUTOENCODER)
    flags = ["--autoencoder", f"{tmp_path / 'own_ae.py'}:Own", "--copies", 2, "--aug", "nfa-k4"]
    make(data, out := tmp_path / "latent", *flags, "--size", 64)
    saved = nfa.ConditionalFlow.from_pretrained(out / ".nfa" / "augmentation")
    assert saved.config.latent["size"] == 64 and saved.config.input_size == (4, 16, 16)
    make(data, out, *flags, "--size", 64, "--space", "latent")  # finished already
    make(data, tmp_path / "no", *flags, "--space", "pixels", code=2)
    name = flags[1]
    augment = nfa.NFAugment.from_pretrained(out / ".nfa" / "augmentation", autoencoder=name)
    image = Image.open(data / "train" / "a" / "000.png").convert("RGB")
    for copy in (1, 2):  # one encode for both copies gives what two calls give, up to rounding
        wanted = augment(image, generator=nfa._utils.random.keyed_generator(0, copy, 0))
        moved = np.asarray(Image.open(out / "train" / "a" / f"000_nfa{copy}.png")).astype(int)
        assert abs(moved - np.asarray(wanted)).max() <= 1 and (moved != np.asarray(image)).any()


# --- kills, damage, refusals


SINGLE = ("--shard-images", "1")  # 40 shards: kills fall between and into them


@pytest.fixture(scope="module")
def single(data, tmp_path_factory):
    """A finished set of 40 shards, made by one process without a break."""
    make(data, out := tmp_path_factory.mktemp("sets") / "single", *SINGLE)
    return out


def _records(out):
    return len(list((out / ".nfa" / "shards").rglob("*.json")))


def _stop_at(started, out, shards):
    """Waits until so many more shards are finished."""
    wanted = _records(out) + shards
    while started() and _records(out) < wanted:
        time.sleep(0.002)


def test_ten_kills_at_random_moments_change_nothing(data, single, tmp_path):
    out, rng, killed = tmp_path / "out", random.Random(0), 0
    argv = ["--data-dir", str(data), "--out", str(out), "--device", "cpu", "--processes", "1"]
    for i in range(10):  # the first while it fits
        process = multiprocessing.get_context("fork").Process(
            target=materialise.main, args=([*argv, *SINGLE],)
        )
        process.start()
        _stop_at(process.is_alive, out, min(i, 1) * rng.randint(0, 1))
        time.sleep(rng.uniform(0, 0.01))  # in which a few shards are made
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed == 10 and 0 < _records(out) < 40
    make(data, out, *SINGLE)
    assert contents(out) == contents(single)
    make(data, out, *SINGLE, "--verify")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_two_processes_killed_with_their_command_give_the_same_bytes(data, single, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "timm_nfaug.materialise", "--data-dir", data, "--out", out]
    flags = ["--processes", "2", "--device", "cpu", *SINGLE]
    started = subprocess.Popen([*map(str, command), *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    _stop_at(lambda: started.poll() is None, out, 16)
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    assert len(workers) >= 2
    started.kill()
    started.wait()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_runs(pid) for pid in workers), "they would write into a set of the next run"
    assert _records(out) >= 16
    make(data, out, *SINGLE)
    assert contents(out) == contents(single)


def _runs(pid):
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_command_at_a_time(data, whole, capsys):
    with locked(whole / ".nfa"):
        make(data, whole, code=2)
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_verify_finds_a_flipped_byte_and_a_run_repairs_it(data, tmp_path, capsys, format):
    make(data, out := tmp_path / "out", "--format", format)
    good = contents(out)
    victim = next(iter(sorted(out.rglob("*_nfa2.png" if format == "folder" else "train-*3.tar"))))
    levels = bytearray(victim.read_bytes())
    levels[len(levels) // 2] ^= 1
    victim.write_bytes(levels)
    capsys.readouterr()
    make(data, out, "--format", format, "--verify", code=1)
    said = capsys.readouterr().out
    assert f"damaged: {victim}" in said and "1 damaged, 0 of 5 shards" in said
    make(data, out, "--format", format)
    assert contents(out) == good
    make(data, out, "--format", format, "--verify")
    stray = out / "train" / "a" / "x_nfa1.png" if format == "folder" else out / "train-000009.tar"
    stray.write_bytes(b"")
    make(data, out, "--format", format, "--verify", code=1)
    assert f"not of this set, delete it: {stray}" in capsys.readouterr().out


@pytest.fixture
def own(data, tmp_path):
    """Data of the test's own, and a set of it."""
    for path in (data / "train").rglob("*.png"):
        copy = tmp_path / "data" / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    make(tmp_path / "data", tmp_path / "out", "--copies", 1)
    return tmp_path / "data", tmp_path / "out"


def test_other_settings_are_refused(own, capsys):
    for flags, said in {
        ("--copies", 2): "copies 1, not 2",
        ("--copies", 1, "--seed", 1): "seed 0, not 1",
        ("--copies", 1, "--aug", "nfa-s1"): "aug nfa-s0.5-k32-p1-mpca-lnone, not nfa-s1-",
        ("--copies", 1, "--format", "webdataset"): "format folder, not webdataset",
        ("--copies", 1, "--flow", "linear.cifar10"): "modes of the images, not ",
        ("--copies", 1, "--size", 16): "side 32, not 16",
    }.items():
        make(*own, *flags, code=2)
        assert f"was begun with {said}" in capsys.readouterr().err


def test_other_images_are_refused(own, capsys):
    data, out = own
    path, new = data / "train" / "b" / "025.png", data / "train" / "b" / "99.png"
    before, stat = path.read_bytes(), path.stat()

    def refused(said):
        make(data, out, "--copies", 1, code=2)
        assert said in capsys.readouterr().err

    new.write_bytes(before)
    refused("the image b/99.png is new")
    new.unlink()
    path.unlink()
    refused("the image b/025.png is gone")
    path.write_bytes(before + b"0")
    refused("the size of the image b/025.png has changed")
    path.write_bytes(before[:-1] + b"0")
    os.utime(path, ns=(0, stat.st_mtime_ns + 1))
    refused(f"{path} has changed since its copies")
    path.write_bytes(before)  # only its time is another now
    make(data, out, "--copies", 1)


def test_places_that_are_refused(data, whole, tmp_path, capsys):
    for out, flags, said in (
        (data / "train" / "out", (), "lies in the data"),
        (data, (), "holds train already"),
        (tmp_path / "none", ("--verify",), "nothing to verify"),
        (tmp_path / "a", ("--aug", "nfa-s0"), "moves nothing"),
        (tmp_path / "b", ("--space", "latent"), "needs --autoencoder"),
        (tmp_path / "c", ("--processes", 0), "takes at least 1"),
    ):
        make(data, out, *flags, code=2)
        assert said in capsys.readouterr().err
    make(whole, tmp_path / "again", code=2)
    assert "a set with copies already?" in capsys.readouterr().err
    for path in (data / ".nfa", data / "train" / "out", tmp_path / "none"):
        assert not path.exists()


def test_an_unreadable_image_is_named(own, tmp_path, capsys):
    data, _ = own
    (data / "train" / "a" / "text.png").write_text("<html>")
    flags = ["--flow", "linear.cifar10", "--copies", 1]
    make(data, tmp_path / "new", *flags, code=2)
    assert f"cannot read {data / 'train' / 'a' / 'text.png'}" in capsys.readouterr().err


def test_a_shard_needs_no_more_memory_with_more_images(own):
    """The plan makes shards as they are asked for."""
    data, _ = own
    samples = create_dataset("", data).reader.samples
    plan = materialise.Plan(samples, data / "train", 0, 8)
    made = map(plan.shard, range(len(plan)))
    assert len(next(made).items) == 8 and len(list(made)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_ray_cluster_with_a_killed_worker_gives_the_same_bytes(data, whole, tmp_path):
    ray = pytest.importorskip("ray")
    killed, over = [], threading.Event()  # workers start late on a busy machine

    def kill_one():
        while not killed and not over.is_set():
            for pid in _ray_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
            time.sleep(0.005)

    before = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=80_000_000,
    )  # fmt: skip
    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        make(data, out := tmp_path / "ray", "--ray", "auto")
    finally:
        over.set()
        killer.join()
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)
    assert len(killed) == 1 and contents(out) == contents(whole)


def _ray_workers():
    """Numbers of processes of this test's cluster that make a shard at the moment."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("cmdline").read_bytes().startswith(b"ray::make_shard"):
                if _comes_from(int(path.name), os.getpid()):
                    yield int(path.name)
        except OSError:  # it has ended
            pass


def _comes_from(pid, ancestor):
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def test_the_records_hold_what_was_written(whole):
    records = [json.loads(p.read_text()) for p in (whole / ".nfa" / "shards").rglob("*.json")]
    files = {name for record in records for name in record["files"]}
    assert files == {p.relative_to(whole).as_posix() for p in (whole / "train").rglob("*.png")}
    size = sum((whole / name).stat().st_size for name in files)
    assert sum(r["bytes"] for r in records) == size and sum(r["images"] for r in records) == 40
