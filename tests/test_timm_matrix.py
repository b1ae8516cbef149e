"""Every way the toy train.py trains, in this process: with NFA, without, and with p 0; and what is refused."""

import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from conftest import TORCHRUN
from PIL import Image
from timm.data import IterableImageDataset, create_dataset

SCRIPT = Path(__file__).parent / "toy_train.py"
ROOT = SCRIPT.parent.parent
FLAGS = ["--aug", "nfa-s0.5-k4-p1-lgiven"]


def images(seen):
    """Of every batch, flat: batches differ in size where resolutions are scheduled."""
    return [x.float() for x, _ in seen["train"]]


def targets(seen):
    return torch.cat([y for _, y in seen["train"]])


def check(run, how, flags):
    """p 0 is the stock training to the last bit; NFA changes the training images of the same order, and nothing else."""
    stock = run(*how)
    off = run(*how, "--aug", "nfa-p0-lgiven", *flags[2:])
    assert off["losses"] == stock["losses"] and len(stock["losses"]) >= 3
    new = run(*how, *flags)
    assert torch.equal(new["val"], stock["val"]) and all(np.isfinite(new["losses"]))
    assert [x.shape for x in images(new)] == [x.shape for x in images(stock)]
    assert all(a.dtype == b.dtype for (a, _), (b, _) in zip(new["train"], stock["train"]))
    if targets(stock).ndim == 1:
        assert torch.equal(targets(new), targets(stock))
    moved = torch.cat([(a != b).flatten(1).any(1) for a, b in zip(images(new), images(stock))])
    splits = 3 if "--aug-splits" in how else 1
    if splits == 1:
        assert moved.float().mean() > 0.95
    else:  # of each batch of 20 triples the first 20 images are clean
        assert (
            not moved.view(-1, 3, 20)[:, 0].any()
            and moved.view(-1, 3, 20)[:, 1:].float().mean() > 0.95
        )
    return stock, new


WAYS = {
    "plain": [],
    "smoothing": ["--smoothing", 0.1],
    "bce": ["--bce-loss"],
    "randaugment": ["--aa", "rand-m9-mstd0.5-inc1"],
    "mixup": ["--mixup", 0.8, "--smoothing", 0.1],
    "mixup and cutmix, pairs": ["--mixup", 0.8, "--cutmix", 1.0, "--mixup-mode", "pair"],
    "cutmix, elements": ["--cutmix", 1.0, "--mixup-mode", "elem"],
    "bce and mixup": ["--bce-loss", "--mixup", 0.8],
    "erasing": ["--reprob", 0.5, "--remode", "pixel"],
    "erasing and mixup": ["--reprob", 0.5, "--mixup", 0.8],
    "channels last, bfloat16": ["--channels-last", "--amp"],
    "bfloat16 model": ["--model-dtype", "bfloat16"],
    "accumulation": ["--grad-accum-steps", 2],
    "workers": ["-j", 2],
    "large": ["--img-size", 64],
    "statistics": ["--mean", 0.1, 0.2, 0.3, "--std", 0.3, 0.2, 0.1],
    "two epochs": ["--epochs", 2],
}
ON_BATCHES = {
    "splits": ["--aug-splits", 3, "--jsd-loss"],
    "splits, erasing": ["--aug-splits", 3, "--jsd-loss", "--reprob", 1.0, "--resplit"],
    "multi-epochs loader": ["--use-multi-epochs-loader", "-j", 1, "--epochs", 2],
}
PREFETCHER = pytest.mark.parametrize(
    "prefetcher", [[], ["--no-prefetcher"]], ids=["prefetcher", "no prefetcher"]
)


@PREFETCHER
@pytest.mark.parametrize("way", [*WAYS, *ON_BATCHES])
def test_on_batches(run, flow_dir, way, prefetcher):
    if prefetcher and "splits" in way:
        with pytest.raises(
            SystemExit, match="--aug-splits needs the prefetcher"
        ):  # stock timm ends with an AttributeError
            run(*ON_BATCHES[way], *prefetcher, *FLAGS)
    else:
        check(run, [*(WAYS | ON_BATCHES)[way], *prefetcher], [*FLAGS, "--nfa-flow", flow_dir])


@PREFETCHER
@pytest.mark.parametrize("way", WAYS)
def test_in_the_workers(run, flow_dir, way, prefetcher):
    check(
        run, [*WAYS[way], *prefetcher], [*FLAGS, "--nfa-flow", flow_dir, "--nfa-place", "dataset"]
    )


def test_one_channel(run):
    """The linear flow takes any number of channels."""
    for place in ("batch", "dataset"):
        check(run, ["--in-chans", 1], [*FLAGS, "--nfa-place", place])
        check(
            run,
            ["--in-chans", 1, "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.2, 0.2],
            [*FLAGS, "--nfa-place", place],
        )


def test_scheduled_resolution(run, flow_dir):
    if "input_size_choices" not in inspect.signature(timm.data.create_loader).parameters:
        pytest.skip("this timm has no scheduled resolution")
    how = ["--train-img-sizes", 32, 48, 64, "--epochs", 2]
    stock, _ = check(run, how, [*FLAGS, "--nfa-flow", flow_dir])
    assert len({x.shape[-1] for x in images(stock)}) > 1


@PREFETCHER
@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_mixup_mixes_what_nfa_has_made(run, flow_dir, place, prefetcher):
    """Labels and images of a batch are mixed with its reverse by the same weight; NFA draws none of mixup's numbers."""
    flags = [*FLAGS, "--nfa-flow", flow_dir, "--nfa-place", place, *prefetcher]
    (plain, mixed) = run(*flags), run(*flags, "--mixup", 1.0)
    checked = 0
    for (x, y), (x_mixed, target) in zip(plain["train"], mixed["train"]):
        hard = torch.nn.functional.one_hot(y, 3).float()
        differ = torch.nonzero(y != y.flip(0)).flatten()[0]
        weight = target[differ, y[differ]]
        torch.testing.assert_close(
            target, weight * hard + (1 - weight) * hard.flip(0), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            x_mixed, weight * x + (1 - weight) * x.flip(0), rtol=0, atol=2e-3
        )
        checked += 0.05 < weight < 0.95
    assert checked


@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_erasing_erases_what_nfa_has_made(run, flow_dir, place):
    flags = [*FLAGS, "--nfa-flow", flow_dir, "--nfa-place", place]
    plain, erased = run(*flags), run(*flags, "--reprob", 1.0)
    for (x, _), (new, _) in zip(plain["train"], erased["train"]):
        gone = (new == 0).all(1, keepdim=True)
        assert (gone.flatten(1).sum(1) >= 10).all() and torch.equal(
            new, torch.where(gone, torch.zeros(()), x)
        )


@PREFETCHER
@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_mixup_off_epoch(run, flow_dir, place, prefetcher):
    """Workers that live on through the epochs go on mixing in stock timm; here they do not mix at all."""
    flags = [
        "--mixup",
        1.0,
        "--epochs",
        2,
        "--mixup-off-epoch",
        1,
        "-j",
        1,
        "--nfa-flow",
        flow_dir,
        "--nfa-place",
        place,
    ]
    first, second = torch.tensor_split(targets(run(*FLAGS, *flags, *prefetcher)), 2)
    assert (first.amax(1) < 1).any() and (second.amax(1) == 1).all()


@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_epochs_and_seeds_differ_and_worker_counts_do_not(run, flow_dir, place):
    flags = [*FLAGS, "--nfa-flow", flow_dir, "--nfa-place", place]
    none, one, two = (run(*flags, "-j", n, "--epochs", 2)["train"] for n in (0, 1, 2))

    def by_label(batches):  # one number an image, in an order that does not depend on the loader's
        return sorted(
            (int(k), float(v)) for x, y in batches for k, v in zip(y, x.double().flatten(1).sum(1))
        )

    first, second = by_label(one[:3]), by_label(one[3:])
    assert [first, second] == [by_label(two[:3]), by_label(two[3:])] and first == by_label(none[:3])
    assert len(first) == len(second) == 60 and not set(first) & set(second)
    if (
        place == "dataset"
    ):  # on batches the noise is that of the place in the batch, and torch's order is another here
        assert by_label(none[3:]) == second
        assert by_label(run(*flags, "-j", 2, "--start-epoch", 1)["train"]) == second
    assert not set(by_label(run(*flags, "--seed", 1)["train"])) & set(first)


def test_aa_is_nfa_in_the_workers(run, flow_dir):
    flags = ["--nfa-flow", flow_dir, "--reprob", 0.5]
    short = run("--aa", "nfa-s0.5-k4-p1-lgiven", *flags)
    long = run(*FLAGS, "--nfa-place", "dataset", *flags)
    assert short["losses"] == long["losses"]


def test_a_stream_of_images(run, flow_dir, monkeypatch, image_folder):
    """Datasets without an index: with a flow that needs no fitting, and fitted to their first images."""
    base = create_dataset("", root=str(image_folder), split="train")

    class Reader:
        def __iter__(self):
            return ((Image.open(path).convert("RGB"), k) for path, k in base.reader.samples)

        def __len__(self):
            return len(base)

    module = types.ModuleType("streams")
    module.make = lambda root: IterableImageDataset(root, Reader())
    monkeypatch.setitem(sys.modules, "streams", module)
    how = ["--dataset", "streams:make"]
    check(run, how, [*FLAGS, "--nfa-flow", flow_dir])
    check(run, how, FLAGS)
    with pytest.raises(
        SystemExit, match="--nfa-place dataset needs a map-style dataset, got IterableImageDataset"
    ):
        run(*how, *FLAGS, "--nfa-flow", flow_dir, "--nfa-place", "dataset")


def test_no_aug_and_strength_0_are_the_stock_training(run):
    stock = run()
    assert run("--aug", "nfa-s0-lgiven")["losses"] == stock["losses"]
    assert run("--no-aug", *FLAGS)["losses"] == run("--no-aug")["losses"]


REFUSED = {
    "mixup 'half'": (["--mixup", 1.0, "--mixup-mode", "half"], "use batch, pair or elem"),
    "splits in the workers": (
        ["--aug-splits", 3, "--jsd-loss", "--nfa-place", "dataset"],
        "does not work with --aug-splits",
    ),
    "epochs in the workers": (
        ["--use-multi-epochs-loader", "--nfa-place", "dataset", "-j", 1],
        "cannot tell the epochs",
    ),
    "sizes in the workers": (
        ["--train-img-sizes", 32, 48, "--nfa-place", "dataset"],
        "take --nfa-place batch",
    ),
    "channels in the workers": (
        ["--in-chans", 4, "--nfa-place", "dataset"],
        "L or RGB.* of 4 channels; take --nfa-place batch",
    ),
    "channels": (
        ["--in-chans", 1, "--nfa-flow", "conv_p4_tiny.digits"],
        "other classes|knows the classes",
    ),
    "channels of colour": (
        ["--in-chans", 1, "--nfa-flow", "conv_p4_small.cifar10"],
        "images of 3 channels, --in-chans",
    ),
    "a place that is none": (
        ["--config", "{tmp}/place.yaml"],
        "nfa_place must be one of batch, dataset, either, got 'worker'",
    ),
    "twice": (["--aa", "nfa-lgiven"], "both ask for NFA"),
    "NaFlex": (["--naflex-loader"], "does not work with --naflex-loader"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(run, capsys, caplog, tmp_path, what):
    flags, message = REFUSED[what]
    (tmp_path / "place.yaml").write_text("nfa_place: worker\n")
    flags = [str(f).replace("{tmp}", str(tmp_path)) for f in flags]
    if what == "NaFlex" and not hasattr(timm.data, "create_naflex_loader"):
        pytest.skip("this timm has none")
    if (
        what == "sizes in the workers"
        and "input_size_choices" not in inspect.signature(timm.data.create_loader).parameters
    ):
        pytest.skip("this timm has none")
    with pytest.raises(SystemExit) as e, caplog.at_level("INFO"):
        run(*FLAGS, *flags)
    assert "modes of" not in caplog.text, "refused before the dataset is read"
    assert re.search(message, f"{e.value} {capsys.readouterr().err}")


def launch(*command, cwd=ROOT, **env):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip


def test_two_processes_draw_differently_and_reproducibly(tmp_path):
    """Under torchrun, with repeated augmentation: the ranks see the same images, moved in different ways."""
    rng = np.random.default_rng(0)
    for i in range(256):  # timm's RepeatAugSampler takes whole 256s
        path = tmp_path / "data" / ("train" if i else "val") / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (tmp_path / "data/train/a/256.png").write_bytes(path.read_bytes())
    found = []
    for name in ("first", "again"):
        done = launch(
            *TORCHRUN[1:], "-m", "timm_nfaug.train", SCRIPT,
            "--data-dir", tmp_path / "data", "--output", tmp_path / name, "--aug-repeats", 2, "--aug", "nfa-s0.2-k2-p1-lgiven",
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append([torch.load(tmp_path / name / f"seen{rank}.pt") for rank in (0, 1)])
    for a, b in zip(*found):
        assert a["losses"] == b["losses"] and all(map(torch.equal, images(a), images(b)))
    one, other = (torch.cat(images(seen)).flatten(1) for seen in found[0])
    near = torch.cdist(one, other).min(1).values
    apart = torch.cdist(one, one).fill_diagonal_(torch.inf).min(1).values.median()
    assert near.min() > 1e-3, "the same draw on both ranks"
    assert (near < apart / 2).float().mean() > 0.3, (
        "the ranks share images, moved by less than images differ"
    )


def test_the_plugin_in_an_unmodified_script(run, tmp_path, image_folder, flow_dir):
    def command(name):
        return [SCRIPT, "--data-dir", image_folder, "--output", tmp_path / name]

    flags, plug = [*FLAGS, "--nfa-flow", flow_dir], ["--device-modules", "timm_nfaug.plugin"]
    done = launch(*command("plugged"), *plug, TIMM_NFAUG=" ".join(map(str, flags)))
    assert done.returncode == 0, done.stderr
    launched, plugged = run(*flags), torch.load(tmp_path / "plugged" / "seen.pt")
    assert plugged["losses"] == launched["losses"] and torch.equal(
        targets(plugged), targets(launched)
    )
    done = launch(*command("none"), *plug)
    assert (
        done.returncode != 0
        and "expected --aug in the environment variable TIMM_NFAUG" in done.stderr
    )
    done = launch("-c", "import timm_nfaug.plugin")
    assert done.returncode != 0 and "is no timm train.py" in done.stderr
