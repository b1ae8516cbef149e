"""The launcher on a script of train.py's shape, and NFA's place in timm's loader, in real subprocesses."""

import argparse
import inspect
import itertools
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data import (
    AugMixDataset,
    FastCollateMixup,
    IterableImageDataset,
    create_dataset,
    create_loader,
    create_transform,
)
from timm.data.random_erasing import RandomErasing
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, ToTensor, v2
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, to_pil_image

import timm_nfaug as nfa
from timm_nfaug.integration import NFAError, NFALoader, loader_factory
from timm_nfaug.integration import fit as timm_fit
from timm_nfaug.integration.classes import spread, stored_labels
from timm_nfaug.integration.fit import _fit_to_dataset
from timm_nfaug.integration.flags import augment_from_args
from timm_nfaug.integration.workers import _WorkerDataset
from timm_nfaug.train import main

SCRIPT = Path(__file__).parent / "toy_train.py"
ROOT = SCRIPT.parent.parent
SIZES = pytest.mark.skipif(
    "input_size_choices" not in inspect.signature(create_loader).parameters,
    reason="this timm has no scheduled sizes",
)


@pytest.fixture
def launch(run_script, flow_dir, capsys, tmp_path):
    """Runs the toy script in this process, through the launcher or not, and returns what it saved and its args.yaml."""

    def run(*flags, launcher=True, name="run", ok=True, data=True):
        try:
            run_script(*flags, launcher=launcher, name=name, data=data)
        except SystemExit as e:
            assert e.code in (0, None) or not ok, capsys.readouterr().err
            said = capsys.readouterr()
            return f"{said.out}{said.err}{e.code}"
        assert ok
        return torch.load(tmp_path / name / "seen.pt"), yaml.safe_load(
            (tmp_path / name / "args.yaml").read_text()
        )

    run.flow = ["--aug", "nfa-s0.5-k4-p1-lgiven", "--nfa-flow", str(flow_dir)]
    run.out = tmp_path
    return run


def tree(root, classes, count=6):
    """An ImageFolder tree of noise."""
    g = torch.Generator().manual_seed(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            to_pil_image(torch.rand(3, 40, 40, generator=g)).save(root / name / f"{i:02d}.png")
    return root


def to_fit(**kwargs):
    return nfa.NFAugment.to_fit(nfa.create_flow("linear"), p=1.0, **{"labels": "given"} | kwargs)


def test_fit_counts_the_labels_not_the_names(tmp_path):
    """A class map with classes that have no images, as that of ImageNet over a part of it."""
    root = tree(tmp_path / "data", ["a", "b"])
    (tmp_path / "map.txt").write_text("".join(f"{n}\n" for n in ("a", "none", "b", "nothing")))
    dataset = create_dataset("", root=str(root), class_map=str(tmp_path / "map.txt"))
    augment = to_fit(modes=8, labels="given")
    state = torch.get_rng_state()
    with pytest.warns(nfa.NFAWarning, match=r"2 of 4 classes \(1, 3\) have no modes"):
        augment = _fit_to_dataset(augment, dataset)
    assert torch.equal(torch.get_rng_state(), state) and dataset.transform is None
    assert augment.flow.num_classes == 4
    assert (augment.flow.prior.mode_std > 0).sum(1).tolist() == [8, 0, 8, 0]
    x = torch.rand(4, 3, 32, 32)
    moved, _ = augment(x, torch.arange(4))
    assert ((moved - x).abs() > 1e-5).flatten(1).any(1).tolist() == [True, False, True, False]
    assert set(augment.flow.class_logits(x * 2 - 1).argmax(1).tolist()) <= {0, 2}


def test_fit_reads_tar_files_and_through_augmix(tmp_path):
    root = tree(tmp_path / "data", ["a", "b"])
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(root, arcname=".")
    found = []
    for dataset in (
        create_dataset("", root=str(root)),
        AugMixDataset(create_dataset("", root=str(root)), num_splits=3),
        create_dataset("", root=str(tmp_path / "data.tar")),
    ):
        augment = to_fit(modes=3, labels="given")
        augment = _fit_to_dataset(augment, dataset)
        found.append(augment.flow.prior.mode_std)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    with pytest.raises(NFAError, match="the flow knows the classes x, y"):
        flow = nfa.create_flow(
            "linear", num_classes=2, class_names=["x", "y"], prior={"num_modes": 2}
        )
        timm_fit._check_classes(
            AugMixDataset(create_dataset("", root=str(root)), num_splits=3),
            nfa.NFAugment(flow, modes=2, labels="given"),
        )


def test_fit_reads_a_part_of_a_large_data_set(tmp_path, monkeypatch, caplog):
    """The same images, spread over each class, from every kind of dataset that tells its labels."""
    assert spread([0, 1, 0, 0, 1, 0, 0], 2) == [0, 1, 3, 4] and spread([3, 3], 5) == [0, 1]
    root = tree(tmp_path / "data", ["a", "b"], count=12)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(root, arcname=".")
    folder = create_dataset("", root=str(root))
    samples = folder.reader.samples
    for i in spread([k for _, k in samples], 8):  # 8 a mode
        few = tmp_path / "few" / Path(samples[i][0]).relative_to(root)
        few.parent.mkdir(parents=True, exist_ok=True)
        few.symlink_to(samples[i][0])
    by_hand = to_fit(modes=1, labels="given")
    by_hand = _fit_to_dataset(by_hand, create_dataset("", root=str(tmp_path / "few")))
    monkeypatch.setattr(timm_fit, "FIT_IMAGES", 4)
    reversed_labels = ImageFolder(
        str(root), target_transform=lambda k: 1 - k
    )  # only its samples tell them: all are read
    for dataset in (
        folder,
        ImageFolder(str(root)),
        create_dataset("", root=str(tmp_path / "data.tar")),
        reversed_labels,
    ):
        augment = to_fit(modes=1, labels="given")
        with caplog.at_level("INFO"):
            augment = _fit_to_dataset(augment, dataset)
        read = "24 of 24" if dataset is reversed_labels else "16 of 24"
        assert f"modes of 2 classes from {read} images" in caplog.messages[-1], type(
            dataset
        ).__name__
        assert augment.flow.config.class_names == ["a", "b"]
        if dataset is not reversed_labels:
            torch.testing.assert_close(augment.flow.prior.mu, by_hand.flow.prior.mu)


def test_fit_without_classes_reads_a_part_of_all_images(tmp_path, monkeypatch, caplog):
    """Of a dataset that does not know its classes, too."""
    monkeypatch.setattr(timm_fit, "FIT_IMAGES_POOLED", 8)
    dataset = ImageFolder(str(tree(tmp_path / "data", ["a", "b"], count=12)))
    dataset.class_to_idx = dataset.targets = None
    augment = to_fit(modes=1, labels="none")
    with caplog.at_level("INFO"):
        augment = _fit_to_dataset(augment, dataset)
    assert (
        "modes of all images together from 8 of 24 images" in caplog.text
        and augment.flow.num_classes == 1
    )
    x = torch.rand(4, 3, 40, 40)
    assert not torch.equal(augment(x, torch.tensor([0, 7, 900, 3]))[0], x)


class Tree:
    """A reader of timm's for streams, of an ImageFolder tree: every other image to either of two workers."""

    def __init__(self, root):
        self.samples, self.class_to_idx = ImageFolder(str(root)).samples, {"a": 0, "b": 1}

    def set_loader_cfg(self, num_workers):
        self.num_workers = num_workers

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        for path, k in self.samples[info.id if info else 0 :: max(self.num_workers, 1)]:
            yield Image.open(path).convert("RGB"), k


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_fitted_and_moved(tmp_path, monkeypatch, caplog, workers):
    """timm's iterable datasets (wds/, tfds/): their first images are read, in any number of workers."""
    root = tree(tmp_path / "data", ["a", "b"], count=12)
    stream = IterableImageDataset("", Tree(root))
    whole, part, map_style = (
        to_fit(modes=3, labels="given"),
        to_fit(modes=1, labels="given"),
        to_fit(modes=3, labels="given"),
    )
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        whole = _fit_to_dataset(whole, stream, workers=workers)
    assert "modes of 2 classes from the first 24 images of a stream" in caplog.messages[-1]
    assert torch.equal(torch.get_rng_state(), state) and stream.transform is None
    map_style = _fit_to_dataset(map_style, ImageFolder(str(root)))
    torch.testing.assert_close(whole.flow.prior.mu, map_style.flow.prior.mu)
    torch.testing.assert_close(whole.flow.prior.mode_std, map_style.flow.prior.mode_std)
    assert whole.flow.config.class_names == ["a", "b"]
    monkeypatch.setattr(
        timm_fit, "FIT_IMAGES", 1
    )  # 8 a mode, so 16 in all, in batches of up to 256
    monkeypatch.setattr(timm_fit, "BATCH", 4)
    with caplog.at_level("INFO"):
        part = _fit_to_dataset(part, stream, workers=workers)
    assert "from the first 16 images of a stream" in caplog.messages[-1]

    def batches(augment):
        make = create_loader if augment is None else loader_factory(create_loader, augment)
        loader = make(
            stream, input_size=(3, 40, 40), batch_size=6, is_training=True, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0),
            color_jitter=0.0, num_workers=workers, persistent_workers=False, device=torch.device("cpu"),
        )  # fmt: skip
        return torch.cat([x for x, _ in loader])

    stock, moved = batches(None), batches(whole)
    assert len(stock) == 24 and ((stock - moved).abs() > 1e-3).flatten(1).any(1).all()
    with pytest.raises(
        NFAError, match="--nfa-place dataset needs a map-style dataset, got IterableImageDataset"
    ):
        loader_factory(create_loader, whole, place="dataset")(
            stream, input_size=(3, 40, 40), batch_size=6, is_training=True
        )


def test_wrapping_a_loader_of_a_stream_reads_a_part(monkeypatch):
    """Of a stream without end, too, from its start."""

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            g = torch.Generator().manual_seed(0)
            while True:
                yield torch.rand(3, 32, 32, generator=g), int(torch.randint(2, (), generator=g))

    monkeypatch.setattr(timm_fit, "FIT_IMAGES", 20)
    loader = nfa.wrap_loader(
        DataLoader(Endless(), batch_size=10), parsed("--aug", "nfa-k2-p1-lgiven"), num_classes=2
    )
    first = itertools.islice(DataLoader(Endless(), batch_size=10), 2 * 20 // 10)
    by_hand = timm_fit._fit_to_batches(to_fit(modes=2, labels="given"), first, 2)
    assert torch.equal(loader.augment.flow.prior.modes, by_hand.flow.prior.modes)
    x = next(iter(loader))[0]
    assert (x != next(iter(DataLoader(Endless(), batch_size=10)))[0]).flatten(1).any(1).all()


def test_wrapping_batches_that_come_from_no_data_set(toy_images, flow_dir):
    """As loaders of webdataset, ffcv or DALI are, or a list."""
    levels, y = toy_images
    batches = list(zip(levels.split(20), y.split(20), strict=True))
    args = parsed("--aug", "nfa-k2-p1-lgiven")
    loader = nfa.wrap_loader(batches, args, num_classes=3)
    assert torch.equal(
        loader.augment.flow.prior.modes,
        nfa.NFAugment.from_data(batches, 3, modes=2, labels="given").flow.prior.modes,
    )
    for _ in range(2):
        moved = list(loader)
        assert len(moved) == len(loader) == 3
        assert all(
            (x != own).flatten(1).any(1).all()
            for (x, _), (own, _) in zip(moved, batches, strict=True)
        )
    deep = nfa.wrap_loader(
        batches, parsed("--aug", "nfa-k2-p1-lgiven", "--nfa-flow", str(flow_dir))
    )
    assert (next(iter(deep))[0] != batches[0][0]).flatten(1).any(1).all()
    with pytest.raises(NFAError, match="a generator gives its images once.*wrap a list"):
        nfa.wrap_loader((b for b in batches), args, num_classes=3)


def fit_a_share(rank, root, out):
    """As the process `rank` of two does, whose reader gives it images of its own."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2
    )
    reader = Tree(root)
    reader.samples = reader.samples[rank::2]
    augment = to_fit(modes=2, labels="given")
    augment = _fit_to_dataset(augment, IterableImageDataset("", reader))
    torch.save(augment.flow.state_dict(), out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_modes_of_a_stream(tmp_path):
    root = tree(tmp_path / "data", ["a", "b"])
    torch.multiprocessing.spawn(fit_a_share, (root, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0]["prior.mode_std"].min() > 0 and all(
        torch.equal(found[0][k], found[1][k]) for k in found[0]
    )


def test_labels_come_from_a_reader_that_gives_them_one_by_one():
    """As timm's reader of the Hub's datasets does: without an image being read."""

    class Reader(list):
        def iter_targets(self):
            yield from (2, 0, 1)

    assert stored_labels(Reader("abc")) == [2, 0, 1]


@pytest.mark.parametrize("targets", [torch.zeros(6, 8), [[0, 1]] * 6, ["cat"] * 6, [0] * 5, None])
def test_labels_that_are_not_one_a_sample_are_left_alone(targets):
    class Data(list):
        pass

    data = Data(range(6))
    data.targets = targets
    assert stored_labels(data) is None
    data.targets = torch.arange(6)
    assert stored_labels(data) == list(range(6))


def test_what_cannot_be_fitted_is_named(tmp_path):
    with pytest.raises(
        NFAError,
        match="TensorDataset does not know its classes; say how many there are with --num-classes",
    ):
        _fit_to_dataset(to_fit(labels="given"), torch.utils.data.TensorDataset(torch.zeros(2)))
    dataset = create_dataset("", root=str(tree(tmp_path / "data", ["a", "b"])))
    with pytest.raises(NFAError, match="takes images of 3 channels, the training asks for 1"):
        loader_factory(create_loader, to_fit(labels="given"), fit=True)(
            dataset, input_size=(1, 32, 32), batch_size=2, is_training=True
        )


def images(seen):
    return torch.cat([x for x, _ in seen["train"]])


def test_the_launcher_changes_nothing_but_the_training_images(launch, image_folder):
    """In processes of their own."""

    def run(name, *command):
        done = subprocess.run(
            [sys.executable, *command, "--data-dir", str(image_folder), "--output", str(launch.out / name)],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "timm_nfaug" not in done.stderr and "Warning" not in done.stderr, done.stderr
        # of a script that logs nothing
        assert done.stderr.count("NFA on: flow conv_p4_tiny, modes of 3 classes") == (name == "on")
        return torch.load(launch.out / name / "seen.pt"), yaml.safe_load(
            (launch.out / name / "args.yaml").read_text()
        )

    launcher = ["-m", "timm_nfaug.train", str(SCRIPT)]
    stock, _ = run("stock", str(SCRIPT))
    same, args = run("off", *launcher)
    assert args["aug"] is None and stock["losses"] == same["losses"]
    nfa, args = run("on", *launcher, *launch.flow)
    assert (
        args["aug"] == "nfa-s0.5-k4-p1-lgiven"
        and args["nfa_flow"] == launch.flow[-1]
        and args["nfa_place"] == "batch"
    )
    assert (
        torch.equal(stock["val"], nfa["val"])
        and (images(stock) != images(nfa)).flatten(1).any(1).all()
    )
    here, _ = launch(*launch.flow, name="here")
    assert here["losses"] == nfa["losses"]


def test_config_file_and_args_yaml_round_trip(launch):
    (launch.out / "config.yaml").write_text(
        f"aug: nfa-s0.5-k4-p1-lgiven\nnfa_flow: {launch.flow[-1]}\n"
    )
    direct, _ = launch(*launch.flow, name="direct")
    config, args = launch("--config", str(launch.out / "config.yaml"), name="config")
    assert config["losses"] == direct["losses"] and args["aug"] == "nfa-s0.5-k4-p1-lgiven"
    again, _ = launch("--config", str(launch.out / "config" / "args.yaml"), name="again")
    assert again["losses"] == direct["losses"]


def labels(seen):
    return torch.cat([y for _, y in seen["train"]])


def test_linear_takes_its_modes_from_the_training_set(launch):
    stock, _ = launch(launcher=False, name="stock")
    flags = ["--aug", "nfa-s0.2-k3-p1-lgiven"]
    nfa, args = launch(*flags, name="linear")
    assert args["nfa_flow"] is None and torch.equal(stock["val"], nfa["val"])
    assert torch.equal(labels(stock), labels(nfa)), (
        "the pass at launch changed the order of the training"
    )
    assert launch(*flags, "-j", "2", name="again")[0]["losses"] == nfa["losses"]
    x, change = images(stock).flatten(1).double(), (images(nfa) - images(stock)).flatten(1).double()
    for k in range(3):
        own, moved = x[labels(stock) == k], change[labels(stock) == k]
        _, _, v = torch.linalg.svd(own - own.mean(0), full_matrices=False)
        inside = moved @ v[:3].T
        left = (
            moved - inside @ v[:3]
        ).square().sum() / moved.square().sum()  # clamping takes a little
        assert left < 0.05 and inside.abs().amax(0).min() > 0, (
            f"class {k}: {left:.3f} of the change is in no mode"
        )


def test_linear_without_classes(launch):
    stock, _ = launch(launcher=False, name="stock")
    nfa, args = launch("--aug", "nfa-s0.5-k3-p1-lnone", name="none")
    assert args["aug"].endswith("-lnone") and torch.equal(stock["val"], nfa["val"])
    assert (
        torch.equal(labels(stock), labels(nfa))
        and (images(stock) != images(nfa)).flatten(1).any(1).all()
    )


def test_a_cache_of_the_training_set(launch, image_folder, flow_dir):
    """Made at the first launch, used by the next; the images are those of `CachedNFADataset`, whatever the workers."""
    stock, _ = launch(launcher=False, name="stock")
    flags = [*launch.flow, "--nfa-cache", str(launch.out / "cache")]
    first, args = launch(*flags, "--epochs", "2", name="first")
    assert args["nfa_cache"] == flags[-1] and torch.equal(stock["val"], first["val"])
    made = (launch.out / "cache" / "tangents.npy").stat().st_mtime_ns
    again = launch(*flags, "-j", "2", name="again")[0]
    assert again["losses"] == first["losses"][: len(again["losses"])]
    assert (launch.out / "cache" / "tangents.npy").stat().st_mtime_ns == made
    n = len(images(stock))
    assert torch.equal(labels(stock), labels(first)[:n])
    assert (images(first)[:n] != images(stock)).flatten(1).any(1).all()
    base = create_dataset("", root=str(image_folder), split="train")
    cache = nfa.NFACache(launch.out / "cache", nfa.ConditionalFlow.from_pretrained(flow_dir))
    own = nfa.CachedNFADataset(base, cache, 0.5, 1.0, seed=42)
    for epoch in (0, 1):
        own.set_epoch(epoch)
        wanted = {pil_to_tensor(image).numpy().tobytes() for image, _ in own}
        mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)  # of the script
        found = (
            ((images(first)[epoch * n : (epoch + 1) * n] * 0.2 + mean) * 255)
            .round()
            .to(torch.uint8)
        )
        assert all(x.numpy().tobytes() in wanted for x in found)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--nfa-flow", "linear"], "cost next to nothing without: drop --nfa-cache"),
        (["--aug", "nfa-misotropic-lgiven"], "a cache is for moves along modes"),
        (["--use-multi-epochs-loader", "-j", "1"], "--nfa-cache cannot tell the epochs"),
        pytest.param(
            ["--train-img-sizes", "32", "48"],
            "--nfa-cache does not work with --train-img-sizes",
            marks=SIZES,
        ),
        (["--aug-splits", "3", "--jsd-loss"], "--nfa-cache does not work with --aug-splits"),
    ],
)
def test_what_goes_not_with_a_cache(launch, flags, message):
    assert message in launch(
        *launch.flow, "--nfa-cache", str(launch.out / "cache"), *flags, ok=False
    )


def test_a_flow_of_other_classes_is_fitted(launch, _small_flow, toy_images):
    """With modes that the launch finds it augments as with those that were found by hand."""
    prior = type(_small_flow.prior)(3, _small_flow.dim, num_modes=2)
    flow = _small_flow.with_prior(prior, ["x", "y", "z"])
    flags = [
        "--aug",
        "nfa-s0.5-k4-p1-lgiven",
        "--nfa-flow",
        str(flow.save_pretrained(launch.out / "xyz")),
    ]
    assert "this flow stores 2 principal modes" in launch(*flags, ok=False)
    flags[1] = "nfa-s0.5-k2-p1-lgiven"
    assert "error: the flow knows the classes x, y, z" in launch(*flags, ok=False)
    flags[1] = "nfa-s0.5-k4-p1-lgiven"
    fitted, args = launch(*flags, "--nfa-fit", name="fitted")
    assert args["nfa_fit"] is True
    by_hand = nfa.NFAugment(_small_flow, modes=4, labels="given").fit([toy_images], 3).flow
    flags[3] = str(by_hand.save_pretrained(launch.out / "abc"))
    torch.testing.assert_close(
        images(fitted), images(launch(*flags, name="stored")[0]), rtol=0, atol=0.02
    )


def test_a_resumed_training_draws_its_own_epochs_numbers(launch):
    first, third = (
        launch(*launch.flow, "--start-epoch", str(e), name=f"epoch{e}")[0] for e in (0, 2)
    )
    stock = launch("--start-epoch", "2", launcher=False, name="stock")[0]
    assert torch.equal(stock["val"], third["val"])
    assert (images(first) != images(third)).flatten(1).any(1).all()


def test_randaugment_does_not_end_a_launched_training(tmp_path):
    """timm asks Pillow's posterize for 0 bits now and then, which Pillow 13 refuses."""
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse\nfrom PIL import Image, ImageOps\nparser = argparse.ArgumentParser()\ncreate_loader = None\n"
        "def main():\n    parser.parse_args()\n    print(ImageOps.posterize(Image.new('L', (1, 1), 200), 0).getpixel((0, 0)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "timm_nfaug.train", str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stdout.strip() == "0", done.stderr


def test_a_launched_script_finds_what_it_finds_without_the_launcher(script_beside_timm):
    """The timm beside it, and in spawned workers its own classes."""
    done = subprocess.run(
        [sys.executable, "-m", "timm_nfaug.train", str(script_beside_timm)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stdout.strip() == "True [0, 1, 2]", done.stderr


def test_help_shows_the_flags_beside_timms_own(launch):
    text = launch("--help", data=False)
    assert "--aug NFA" in text and "--nfa-flow" in text and "--aug-repeats" in text


def test_the_first_augmentation_split_stays_clean():
    flow = nfa.create_flow("linear", num_classes=3, prior={"num_modes": 2})
    x = torch.rand(12, 3, 32, 32)
    y = torch.arange(12) % 3
    augment = nfa.NFAugment(flow, modes=2, strength=1.0, p=1.0, labels="given").fit(
        [(x, y)], num_classes=3
    )
    batch = [(image, int(k)) for image, k in zip(x, y)]
    loader = NFALoader(DataLoader(batch, batch_size=12), augment, (0.0,) * 3, (1.0,) * 3, splits=3)
    out, _ = next(iter(loader))
    changed = (out != x).flatten(1).any(1)
    assert not changed[:4].any() and changed[4:].all()
    assert len(loader) == 1 and loader.dataset is batch and loader.sampler is loader.loader.sampler
    assert loader.mixup_enabled is False


def test_a_loader_leaves_the_augmentation_it_is_given_alone():
    """One with a `Change` of the caller's own, too."""
    flow = nfa.create_flow("linear", num_classes=3, prior={"num_modes": 2})
    whole = nfa.NFAugment(flow, modes=2, p=1.0, labels="given")
    for augment in (whole, nfa.NFAugment.from_change(whole.change, p=1.0, labels="given")):
        x, y = torch.rand(6, 3, 32, 32), torch.arange(6) % 3
        own = NFALoader([(x, y)], augment, (0.5,) * 3, (0.2,) * 3)
        assert augment.mean is None and own.augment.mean == (0.5,) * 3
        assert own.augment.change.flow is augment.flow, "the flow is shared"
        assert [images.shape for images, _ in own] == [x.shape]


def parsed(*flags):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({}, (3, 32, 32)),
        ({"input_size": 224}, (3, 32, 32)),  # DeiT, MAE, BEiT, ConvNeXt
        ({"input_size": 28, "in_chans": 1}, (1, 28, 28)),
        ({"input_size": [1, 40, 24]}, (1, 24, 24)),
        ({"input_size": [1, 40, 24], "in_chans": 4}, (4, 24, 24)),
        ({"input_size": (20, 24)}, (3, 20, 20)),
        ({"input_size": None, "img_size": [24, 16]}, (3, 16, 16)),
        ({"input_size": None, "img_size": 30}, (3, 30, 30)),
        ({"img_size": (224,)}, (3, 32, 32)),
    ],
)
def test_sizes_as_scripts_give_them(sizes, wanted):
    args = argparse.Namespace(**vars(parsed("--aug", "nfa-lgiven")), **sizes)
    assert tuple(augment_from_args(args).flow.config.input_size) == wanted


def test_wrapping_a_plain_loader(toy_images):
    """Two lines in a script of one's own: levels in, moved along the eigen-images of their class, reproducibly."""
    levels, y = toy_images
    batches = DataLoader(list(zip(levels, y.tolist())), batch_size=20)
    assert (
        nfa.wrap_loader(batches, parsed()) is batches
        and nfa.wrap_loader(batches, parsed("--aug", "nfa-p0-lgiven")) is batches
    )
    args = parsed("--aug", "nfa-s0.3-k2-p1-lgiven")
    loader = nfa.wrap_loader(batches, args, num_classes=3)
    first = torch.cat([x for x, _ in loader])
    assert loader.dataset is batches.dataset and len(loader) == 3 and first.dtype == torch.uint8
    eigen = nfa.NFAugment.from_data([(levels, y)], 3, modes=2, labels="given").flow.prior.modes
    change = (first.float() - levels.float()).flatten(1)
    for k in range(3):
        own = change[y == k]
        assert (own @ eigen[k].T).square().sum() / own.square().sum() > 0.9, (
            "but for rounding and clamping"
        )
    again = nfa.wrap_loader(batches, args, num_classes=3)
    assert torch.equal(torch.cat([x for x, _ in again]), first) and not torch.equal(
        torch.cat([x for x, _ in again]), first
    )
    again.epoch = 0
    assert torch.equal(torch.cat([x for x, _ in again]), first)
    other = nfa.wrap_loader(
        batches, parsed("--aug", "nfa-s0.3-k2-p1-lgiven", "--seed", "1"), num_classes=3
    )
    assert not torch.equal(torch.cat([x for x, _ in other]), first)
    with pytest.raises(ValueError, match="pass num_classes="):
        nfa.wrap_loader(batches, args)


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)


class Own(torch.utils.data.Dataset):
    """A script's own dataset, with a `transform` of its own make; `read(self, i)` gives an image."""

    def __init__(self, images, labels, read, transform=None):
        self.images, self.labels, self.read, self.transform = images, labels, read, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.read(self, i), int(self.labels[i])


class Handing(Own):
    """Hands `transform` on to a dataset within."""

    transform = property(
        lambda self: self.images.transform,
        lambda self, transform: setattr(self.images, "transform", transform),
    )

    def __init__(self, within):
        self.images, self.labels, self.read = within, within.labels, lambda data, i: within[i][0]


class ReadOnly(Handing):
    transform = property(lambda self: self.images.transform)


class Passing(Own):
    """Knows what the dataset within knows."""

    def __getattr__(self, name):
        if name == "images":
            raise AttributeError(name)
        return getattr(self.images, name)


class Folder(ImageFolder):
    """Of torchvision's make, with a transform of another."""

    def __getitem__(self, i):
        path, k = self.samples[i]
        image = self.loader(path)
        return (
            self.transform(image=np.asarray(image).copy())["image"] if self.transform else image
        ), k


def flipped(x):
    return x.flip(-1)


def as_keyword(image):
    return {"image": torch.from_numpy(image).permute(2, 0, 1)}


def unit(data, i):
    return data.transform(data.images[i])


def normalised(data, i):
    return normalize(data.transform(data.images[i]), MEAN, STD)


def from_dicts(samples):
    return torch.stack([s["image"] for s, _ in samples]), torch.tensor([k for _, k in samples])


OWN = {
    "arrays": lambda levels, y, root: Own(levels.permute(0, 2, 3, 1).numpy(), y, unit, ToTensor()),
    "levels": lambda levels, y, root: Own(levels, y, lambda data, i: data.images[i]),
    "levels, transformed": lambda levels, y, root: Own(levels, y, unit, flipped),
    "floats, transformed": lambda levels, y, root: Own(levels / 255, y, unit, flipped),
    "keyword": lambda levels, y, root: Own(
        levels.permute(0, 2, 3, 1).numpy(),
        y,
        lambda data, i: data.transform(image=data.images[i])["image"],
        as_keyword,
    ),
    "keyword, torchvision": lambda levels, y, root: Folder(str(root), as_keyword),
    "dicts": lambda levels, y, root: Own(
        levels, y, lambda data, i: {"image": unit(data, i)}, flipped
    ),
    "normalised": lambda levels, y, root: Own(levels / 255, y, normalised, flipped),
    "handing": lambda levels, y, root: Handing(
        Own([to_pil_image(x) for x in levels], y, unit, ToTensor())
    ),
    "read only": lambda levels, y, root: ReadOnly(
        Own([to_pil_image(x) for x in levels], y, unit, ToTensor())
    ),
    "passing": lambda levels, y, root: Passing(
        Own(levels / 255, y, normalised, flipped), y, lambda data, i: data.images[i][0]
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_wrapping_a_loader_of_a_data_set_with_a_transform_of_its_own_make(
    toy_images, image_folder, kind
):
    """Modes are those of what the loader gives, or of what is given for the fit where the dataset
    may augment by itself; the dataset is left alone."""
    data = OWN[kind](*toy_images, image_folder / "train")
    transform = data.transform
    stats = {"mean": MEAN, "std": STD} if kind in ("normalised", "passing") else {}
    batches = DataLoader(data, 20, collate_fn=from_dicts if kind == "dicts" else None)
    args, given = parsed("--aug", "nfa-k2-p1-lgiven"), {"num_classes": 3, **stats}
    if transform is not None:
        with pytest.raises(NFAError, match="pass fit_dataset=, a dataset.*take a pretrained flow"):
            nfa.wrap_loader(batches, args, **given)
        given["fit_dataset"] = batches
    loader = nfa.wrap_loader(batches, args, **given)
    by_hand = nfa.NFAugment.from_data(batches, 3, modes=2, **{"labels": "given"} | stats)
    assert torch.equal(loader.augment.flow.prior.modes, by_hand.flow.prior.modes)
    assert data.transform is transform
    for (moved, _), (x, _) in zip(loader, batches, strict=True):
        assert (moved != x).flatten(1).any(1).all()


def test_wrapping_reads_torchvisions_data_sets_without_the_transform(image_folder):
    def crop(image):
        return torch.rand(3, 32, 32)

    data = ImageFolder(str(image_folder / "train"), crop)
    loader = nfa.wrap_loader(DataLoader(data, 20), parsed("--aug", "nfa-k2-p1-lgiven"))
    by_hand = to_fit(modes=2, labels="given")
    by_hand = _fit_to_dataset(by_hand, data)
    assert (
        torch.equal(loader.augment.flow.prior.modes, by_hand.flow.prior.modes)
        and data.transform is crop
    )


GREY = {
    "folder": lambda levels, y, root: ImageFolder(
        str(root), ToTensor(), loader=lambda path: Image.open(path).convert("L")
    ),
    "folder, from colour": lambda levels, y, root: ImageFolder(
        str(root), Compose([Grayscale(1), ToTensor()])
    ),
    "tensors": lambda levels, y, root: TensorDataset(levels[:, :1, :28, :24], y),
    "stream": lambda levels, y, root: Endless(levels[:, :1], y),
    "list": lambda levels, y, root: None,
}


class Endless(torch.utils.data.IterableDataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __iter__(self):
        return itertools.cycle(zip(self.images, self.labels.tolist()))


@pytest.mark.parametrize("kind", GREY)
def test_channels_and_size_come_from_the_loader_where_the_flags_do_not_say(
    toy_images, image_folder, flow_dir, kind
):
    levels, y = toy_images
    data = GREY[kind](levels, y, image_folder / "train")
    loader = [(levels[:, :1], y)] if data is None else DataLoader(data, 20)
    for sizes in ({}, {"in_chans": 1}):
        args = argparse.Namespace(**vars(parsed("--aug", "nfa-k2-p1-lgiven")), **sizes)
        wrapped = nfa.wrap_loader(loader, args, num_classes=3)
        side = 24 if kind == "tensors" else 32
        assert tuple(wrapped.augment.flow.config.input_size) == (1, side, side)
        assert (next(iter(wrapped))[0] != next(iter(loader))[0]).flatten(1).any(1).all()
    with pytest.raises(
        NFAError,
        match="takes images of 3 channels, the loader gives 1; convert the images, take --nfa-flow "
        "cosine or linear with --in-chans 1",
    ):
        nfa.wrap_loader(loader, argparse.Namespace(**vars(args) | {"in_chans": 3}), num_classes=3)
    deep = parsed("--aug", "nfa-k2-p1-lgiven", "--nfa-flow", str(flow_dir))
    for fit in (True, False):
        deep.nfa_fit = fit
        with pytest.raises(
            NFAError,
            match="takes images of 3 channels, the loader gives 1; convert the images, take --nfa-flow",
        ):
            next(iter(nfa.wrap_loader(loader, deep, num_classes=3)))


class Wrapper:
    """A script's own loader, of nothing but what a loop needs."""

    def __init__(self, loader):
        self.own, self.dataset = loader, loader.dataset

    def __len__(self):
        return len(self.own)

    def __iter__(self):
        return iter(self.own)


class Batches(list):
    """A dataset that gives whole batches."""


def noisy(image):
    """Draws from all three global generators."""
    x = pil_to_tensor(image).float() / 255 * random.random() * np.random.rand()  # noqa: NPY002
    return x * torch.rand(())


LOADERS = {
    "part": lambda levels, y, root: DataLoader(
        Subset(ImageFolder(str(root), noisy), range(60)), 20, shuffle=True
    ),
    "folder": lambda levels, y, root: DataLoader(ImageFolder(str(root), noisy), 20, shuffle=True),
    "wrapped folder": lambda levels, y, root: Wrapper(
        DataLoader(ImageFolder(str(root), noisy), 20, shuffle=True)
    ),
    "wrapped tensors": lambda levels, y, root: Wrapper(
        DataLoader(TensorDataset(levels, y), 20, shuffle=True)
    ),
    "batches": lambda levels, y, root: DataLoader(
        Batches(zip(levels.split(20), y.split(20))), batch_size=None, shuffle=True
    ),
    "batch sampler": lambda levels, y, root: DataLoader(
        TensorDataset(levels, y), batch_sampler=BatchSampler(RandomSampler(range(60)), 20, False)
    ),
    "timm's": lambda levels, y, root: timm_loader(
        create_dataset("", root=str(root.parent), split="train")
    ),
    "timm's, plain": lambda levels, y, root: timm_loader(
        ImageFolder(str(root)), use_prefetcher=False
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_wrapping_draws_none_of_the_trainings_random_numbers(toy_images, image_folder, kind):
    """Of loaders of every kind; and the modes do not hang on the numbers that a process has come to."""
    stats = (MEAN, STD) if kind == "timm's, plain" else (None, None)
    found = []
    for seed in (0, 1):
        loader = LOADERS[kind](*toy_images, image_folder / "train")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        wrapped = nfa.wrap_loader(
            loader, parsed("--aug", "nfa-k2-p1-lgiven"), *stats, num_classes=3
        )
        assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
        assert sum(len(x) for x, _ in wrapped) == 60
        found.append(wrapped.augment.flow.prior.modes)
    assert torch.equal(*found)


def timm_loader(data, create=create_loader, **more):
    return create(
        data, **{"input_size": (3, 32, 32), "batch_size": 20, "is_training": True, "num_workers": 0, "mean": MEAN, "std": STD,
        "persistent_workers": False, "device": torch.device("cpu")} | more
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["own", "handing", "levels", "worker", "copies"])
def test_wrapping_timms_loader_of_other_data_sets(toy_images, kind):
    """timm has set the transform, so a copy's can be replaced where it is a plain attribute."""
    levels, y = toy_images
    own = Own([to_pil_image(x) for x in levels], y, unit)
    off = to_fit(modes=1, labels="given").fit([(levels, y)], 3).replace(strength=0.0)
    data = {
        "own": lambda: own,
        "handing": lambda: Handing(own),
        "levels": lambda: Own(levels, y, lambda data, i: data.images[i]),
        "worker": lambda: _WorkerDataset(own, off),
        "copies": lambda: nfa.NFAugmentedDataset(
            Own(own.images, y, lambda data, i: data.images[i]), off, copies=1
        ),
    }[kind]()
    batches = timm_loader(data)
    transform, within = data.transform, own.transform
    args, given = parsed("--aug", "nfa-k2-p1-lgiven"), {}
    if kind in ("handing", "worker"):
        with pytest.raises(NFAError, match="no `transform` of its own.*; pass fit_dataset="):
            nfa.wrap_loader(batches, args, num_classes=3)
        given["fit_dataset"] = Own(own.images, y, lambda data, i: data.images[i])
    loader = nfa.wrap_loader(batches, args, num_classes=3, **given)
    by_hand = nfa.NFAugment.from_data(
        [(levels, y)] * (1 + (kind == "copies")), 3, modes=2, labels="given"
    )
    torch.testing.assert_close(
        loader.augment.flow.prior.mode_std, by_hand.flow.prior.mode_std, rtol=1e-4, atol=1e-4
    )
    assert (
        data.transform is transform and own.transform is within and len(next(iter(loader))[0]) == 20
    )


def test_what_is_given_for_the_fit(toy_images, image_folder):
    """A dataset of PIL images or tensors, or a loader; in the launcher's factory, too."""
    levels, y = toy_images
    data = Own(levels / 255, y, unit, flipped)
    args = parsed("--aug", "nfa-k2-p1-lgiven")
    by_hand = nfa.NFAugment.from_data([(levels, y)], 3, modes=2, labels="given").flow.prior.mode_std
    for given in (
        ImageFolder(str(image_folder / "train")),
        Own(levels, y, lambda data, i: data.images[i]),
        TensorDataset(levels / 255, y),
        DataLoader(TensorDataset(levels, y), 20),
    ):
        loader = nfa.wrap_loader(DataLoader(data, 20), args, num_classes=3, fit_dataset=given)
        found = loader.augment.flow.prior.mode_std
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
        augment = to_fit(modes=2, labels="given")
        factory = loader_factory(create_loader, augment, fit=True, num_classes=3, fit_dataset=given)
        if not isinstance(given, TensorDataset):  # floats here are normalised, as the loader's are
            loader = timm_loader(Handing(Own(levels, y, unit)), create=factory)
            found = loader.augment.flow.prior.mode_std
            torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
        assert augment.flow.num_classes == 1, "the caller's own is left alone"


def test_a_fit_dataset_that_nothing_reads_is_named(toy_images, capsys):
    levels, y = toy_images
    unread = Own(levels, y, lambda data, i: pytest.fail("it was read"))
    args = parsed("--aug", "nfa-k2-p1", "--nfa-flow", "cosine")
    nfa.wrap_loader(DataLoader(TensorDataset(levels, y), 20), args, fit_dataset=unread)
    assert "fit_dataset is not read, as nothing is fitted" in capsys.readouterr().err
    factory = loader_factory(create_loader, nfa.NFAugment.from_cosine(), fit_dataset=unread)
    timm_loader(Handing(Own(levels, y, unit)), create=factory)
    assert "fit_dataset is not read, as nothing is fitted" in capsys.readouterr().err


def test_a_fit_dataset_that_was_read_is_not_called_unread_at_the_next_loader(toy_images, capsys):
    levels, y = toy_images
    given, augment = Own(levels, y, lambda data, i: data.images[i]), to_fit(modes=2)
    factory = loader_factory(create_loader, augment, fit=True, num_classes=3, fit_dataset=given)
    for _ in range(2):
        timm_loader(Handing(Own(levels, y, unit)), create=factory)
    assert "not read" not in capsys.readouterr().err


def test_the_launcher_names_a_way_for_data_sets_without_a_transform(toy_images):
    levels, y = toy_images
    factory = loader_factory(create_loader, to_fit(labels="given"), fit=True, num_classes=3)
    with pytest.raises(NFAError, match="Handing has no `transform`.*take.*--nfa-flow NAME"):
        timm_loader(Handing(Own(levels, y, unit)), create=factory)


def test_wrapping_timms_loader_of_scheduled_sizes(image_folder, toy_images):
    """Every process fits to the dataset within, not to its own share of crops, and knows its classes."""
    scheduled = pytest.importorskip("timm.data.scheduled_sampler")
    folder = create_dataset("", root=str(image_folder), split="train")
    by_hand = to_fit(modes=2, labels="given")
    by_hand = _fit_to_dataset(by_hand, folder)
    for prefetcher in (True, False):
        batches = timm_loader(folder, input_size_choices=[32, 48], use_prefetcher=prefetcher)
        loader = nfa.wrap_loader(batches, parsed("--aug", "nfa-k2-p1-lgiven"), MEAN, STD)
        assert torch.equal(loader.augment.flow.prior.modes, by_hand.flow.prior.modes)
        assert loader.augment.flow.config.class_names == ["a", "b", "c"]
        assert {x.shape[-1] for x, _ in loader} == {32, 48}
    levels, y = toy_images  # no PIL images: read through the first of the transforms
    data = scheduled.ScheduledTransformDataset(
        Own(levels, y, lambda data, i: data.images[i]), [flipped, lambda x: x[:, ::2]]
    )
    sampler = scheduled.ScheduledBatchSampler(
        torch.utils.data.DistributedSampler(data, 2, 1), [20, 20]
    )
    loader = nfa.wrap_loader(
        DataLoader(data, batch_sampler=sampler), parsed("--aug", "nfa-k2-p1-lgiven"), num_classes=3
    )
    by_hand = nfa.NFAugment.from_data([(levels.flip(-1), y)], 3, modes=2, labels="given")
    torch.testing.assert_close(loader.augment.flow.prior.mode_std, by_hand.flow.prior.mode_std)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_networks_of_a_flow_follow_a_training_in_mixed_precision(toy_images, flow_dir, dtype):
    levels, y = toy_images
    batches = DataLoader(list(zip(levels, y.tolist())), batch_size=60)

    def moved(**amp):
        flags = ["--aug", "nfa-s0.5-k4-p1-lgiven", "--nfa-flow", str(flow_dir)]
        loader = nfa.wrap_loader(batches, argparse.Namespace(**vars(parsed(*flags)), **amp))
        ((images, _),) = loader
        return images.float(), {
            m.net_dtype for m in loader.augment.flow.modules() if hasattr(m, "net_dtype")
        }

    exact, full = moved(amp=False, amp_dtype=dtype)
    lower, kind = moved(amp=True, amp_dtype=dtype)
    assert full == {None} and kind == {getattr(torch, dtype)}
    assert 0 < (exact - lower).abs().max() <= 2, "levels"
    for elsewhere in (
        {"nfa_place": "dataset"},
        {"nfa_cache": "there"},
    ):  # in workers, and in what later trainings read
        flags = (
            vars(parsed("--aug", "nfa-s0.5-k4-p1-lgiven", "--nfa-flow", str(flow_dir))) | elsewhere
        )
        augment = augment_from_args(argparse.Namespace(**flags, amp=True, amp_dtype=dtype))
        assert {m.net_dtype for m in augment.flow.modules() if hasattr(m, "net_dtype")} == {None}


def test_wrapping_a_timm_loader_moves_mixup_and_erasing_behind_nfa(
    image_folder, small_flow, tmp_path
):
    small_flow.config.class_names = []
    flags = [
        "--aug",
        "nfa-s0.5-k4-p1-lgiven",
        "--nfa-flow",
        str(small_flow.save_pretrained(tmp_path / "flow")),
    ]
    common = dict(
        input_size=(3, 32, 32), batch_size=20, is_training=True, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0,
        num_workers=0, persistent_workers=False, device=torch.device("cpu"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2),
    )  # fmt: skip

    def batches(*flags, **more):
        torch.manual_seed(0)
        loader = create_loader(
            create_dataset("", root=str(image_folder), split="train"), **common, **more
        )
        own = loader.random_erasing, loader.loader.collate_fn
        wrapped = nfa.wrap_loader(loader, parsed(*flags))
        assert (loader.random_erasing, loader.loader.collate_fn) == own
        return wrapped, [torch.cat(part) for part in zip(*wrapped)]

    (_, (stock, y)), (loader, (moved, same)) = batches(), batches(*flags)
    assert torch.equal(y, same) and ((moved - stock).abs() > 1e-4).flatten(1).any(1).all()
    low, high = ((v - torch.tensor([0.5, 0.4, 0.3])) / 0.2 for v in (0.0, 1.0))
    assert (moved.amin((0, 2, 3)) >= low - 1e-5).all() and (
        moved.amax((0, 2, 3)) <= high + 1e-5
    ).all()
    assert loader.mixup_enabled is False and loader.sampler is loader.loader.sampler
    loader, (_, soft) = batches(*flags, collate_fn=FastCollateMixup(mixup_alpha=1.0, num_classes=3))
    assert soft.shape == (60, 3) and loader.mixup_enabled
    loader.mixup_enabled = False
    assert next(iter(loader))[1].max() > 0.9, "smoothed, not mixed"
    erased = batches(*flags, re_prob=1.0)[1][0]
    assert ((erased == 0).all(1).flatten(1).sum(1) >= 10).all(), (
        "rectangles of exact zeros, which NFA leaves alone"
    )


@pytest.mark.parametrize(
    "kind", ["timm", "torchvision", pytest.param("scheduled", marks=SIZES), "splits"]
)
def test_erasing_in_the_data_sets_transform_is_refused(image_folder, kind):
    """And runs after NFA where it is given to the wrapper; the dataset stays as it was."""
    root = image_folder / "train"
    data = (
        ImageFolder(str(root))
        if kind == "torchvision"
        else create_dataset("", root=str(image_folder), split="train")
    )
    data = AugMixDataset(data, 3) if kind == "splits" else data
    more = {"input_size_choices": [32, 48]} if kind == "scheduled" else {}
    more |= {"num_aug_splits": 3} if kind == "splits" else {}
    batches = timm_loader(data, re_prob=1.0, use_prefetcher=False, **more)
    own, args = dict(vars(batches.dataset)), parsed("--aug", "nfa-k2-p1-lgiven")
    with pytest.raises(NFAError, match="take timm's prefetcher, or leave re_prob out.*erasing="):
        nfa.wrap_loader(batches, args, MEAN, STD)
    assert vars(batches.dataset) == own and nfa.wrap_loader(batches, parsed()) is batches
    if kind == "splits":
        return  # which cannot be batched without the prefetcher

    erase = RandomErasing(probability=1.0, device="cpu")
    batches = timm_loader(data, use_prefetcher=False, **more)
    for _ in range(2):
        loader = nfa.wrap_loader(batches, args, MEAN, STD, erasing=erase)
        for x, _ in loader:
            assert ((x == 0).all(1).flatten(1).sum(1) >= 10).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--aug", "nfa-z3"], "unknown key 'z'"),
        (["--nfa-fit"], "error: --nfa-fit does nothing without --aug: add --aug nfa"),
        (["--nfa-flow", "conv_p4_tiny.digits"], "error: --nfa-flow does nothing without --aug"),
        (
            ["--aug", "nfa-lgiven", "--nfa-flow", "conv_p4_tiny.digitz"],
            "did you mean 'conv_p4_tiny.digits'",
        ),
        (
            ["--aug", "nfa-lgiven", "--nfa-flow", "conv_p4_tiny.digits"],
            "the flow knows the classes 0, 1, 2, 3",
        ),
    ],
)
def test_errors(launch, flags, message):
    assert message in launch(*flags, ok=False)


def test_a_script_of_another_shape_is_named(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("print('hello')\n")
    done = subprocess.run(
        [sys.executable, "-m", "timm_nfaug.train", str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode and "no timm train.py" in done.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("x.py", "no file x.py"),
        ("--help", "--nfa-place {batch,dataset,either}"),
        ("--aug", "expected the path of a train.py first, got --aug; train.py comes with timm's"),
    ],
)
def test_without_a_script_it_says_what_it_takes(argument, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([argument])
    captured = capsys.readouterr()
    assert said in f"{captured.out}{captured.err}{end.value}"
    assert (end.value.code == 0) == (argument == "--help")


def test_every_process_fits_a_plain_loader_alike(toy_images):
    """Whatever share of the data its sampler gives it, in whatever order."""
    levels, y = toy_images
    found = []
    for rank in (0, 1):
        data = list(zip(levels, y.tolist()))
        sampler = torch.utils.data.DistributedSampler(data, 2, rank)
        state = torch.get_rng_state()
        loader = nfa.wrap_loader(
            DataLoader(data, batch_size=20, sampler=sampler),
            parsed("--aug", "nfa-p1-lgiven"),
            num_classes=3,
        )
        assert torch.equal(torch.get_rng_state(), state)
        found.append(loader.augment.flow.prior.modes)
    assert torch.equal(*found)


def test_fit_reads_without_the_transform_that_torchvision_holds_twice(tmp_path):
    root = tree(tmp_path / "data", ["a", "b"])
    plain, pair = to_fit(modes=3, labels="given"), to_fit(modes=3, labels="given")
    dataset = ImageFolder(str(root))
    plain = _fit_to_dataset(plain, dataset)

    class Pair(ImageFolder):  # as VOC, COCO and others of torchvision read
        def __getitem__(self, i):
            path, k = self.samples[i]
            return self.transforms(self.loader(path), k)

    pair = _fit_to_dataset(pair, Pair(str(root), transform=lambda image: 1 / 0))
    assert torch.equal(plain.flow.prior.modes, pair.flow.prior.modes)


def worker_data(root, cls=ImageFolder):
    augment = to_fit(modes=3, labels="given")
    dataset = cls(str(root))
    augment = _fit_to_dataset(augment, dataset)
    data = _WorkerDataset(dataset, augment, seed=1)
    data.transform = create_transform(
        32, is_training=True, hflip=0.0, scale=(1, 1), ratio=(1, 1), color_jitter=0.0
    )
    assert dataset.transform is None, "it goes to a copy"
    return data


def test_worker_data_set_in_spawned_workers_and_over_batched_readers(tmp_path):
    class Batched(ImageFolder):  # torch's loaders prefer this, if _WorkerDataset let them see it
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    root = tree(tmp_path / "data", ["a", "b"])
    data = worker_data(root)
    assert data.class_to_idx == {"a": 0, "b": 1} and len(data) == 12

    def images(data, **kwargs):
        loader = NFALoader(DataLoader(data, 6, **kwargs), None)
        return [torch.cat([x for x, _ in loader]) for _ in range(2)]

    first, second = images(data)
    assert not torch.equal(first, second), "each epoch has its own numbers"
    for others in (images(data, num_workers=1, multiprocessing_context="spawn", persistent_workers=True),
                   images(worker_data(root, Batched))):  # fmt: skip
        assert torch.equal(others[0], first) and torch.equal(others[1], second)
    with pytest.raises(NFAError, match="no conversion to a tensor.*take --nfa-place batch"):
        data.transform = torch.nn.Identity()


def test_what_a_batch_holds_beside_images_and_labels_passes(toy_images):
    levels, y = toy_images
    loader = DataLoader(list(zip(levels, y.tolist(), range(60))), batch_size=20)
    wrapped = nfa.wrap_loader(loader, parsed("--aug", "nfa-p1-lgiven"), num_classes=3)
    assert torch.equal(torch.cat([index for _, _, index in wrapped]), torch.arange(60))


def _flags(*flags):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    return parser.parse_args(list(flags))


def test_batches_of_another_kind_are_refused():
    """They would be taken apart image by image, or end in an error of another place."""
    images = torch.rand(8, 3, 32, 32)
    flags = _flags("--aug", "nfa-p1-k4-lnone")
    for loader in ([images, images], DataLoader(TensorDataset(images), 4)):
        wrapped = nfa.wrap_loader(loader, flags)
        with pytest.raises(NFAError, match=r"expected batches \(images, labels"):
            next(iter(wrapped))


def test_more_kinds_of_data_can_be_fitted_to():
    x, y = torch.rand(12, 3, 32, 32), torch.arange(12) % 3
    flags = _flags("--aug", "nfa-p1-k4-lgiven")
    column = DataLoader(TensorDataset(x, y[:, None]), 4)  # labels (B, 1)
    assert nfa.wrap_loader(column, flags, num_classes=3).augment.flow.num_classes == 3
    pairs = [(image, int(k)) for image, k in zip(x, y)]

    class Own(Dataset):
        transform, classes = staticmethod(lambda image: image), 3

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return self.transform(x[i]), int(y[i])

    loader = DataLoader(Own(), 4)
    with pytest.raises(NFAError, match="fit_dataset="):
        nfa.wrap_loader(loader, flags, num_classes=3)
    for data in (pairs, DataLoader(TensorDataset(x, y), 4)):
        wrapped = nfa.wrap_loader(loader, flags, num_classes=3, fit_dataset=data)
        assert wrapped.augment.flow.num_classes == 3
    with pytest.raises(NFAError, match=r"gives dict, not \(image, label\)"):
        dicts = [{"image": x[0], "label": 0}]

        class Dicts(Dataset):
            def __len__(self):
                return 1

            def __getitem__(self, i):
                return dicts[i]

        nfa.wrap_loader(loader, flags, num_classes=3, fit_dataset=Dicts())


def test_erasing_inside_a_subset_is_refused(image_folder):
    steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.RandomErasing(1.0)]
    inner = ImageFolder(image_folder / "train", v2.Compose(steps))
    loader = DataLoader(Subset(inner, range(12)), 4)
    with pytest.raises(NFAError, match="erasing="):
        nfa.wrap_loader(loader, _flags("--aug", "nfa-p1-k4-lgiven"), num_classes=3)
