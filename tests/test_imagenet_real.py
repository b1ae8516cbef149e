"""The ImageNet-ReaL harness: the recipe's constants, names and labels, the arms, and whole runs of a tiny EVA02."""

import json
import math
import os
import pkgutil
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TORCHRUN
from packaging.version import Version
from PIL import Image
from small_autoencoder import HALVES
from timm.data import ImageNetInfo, create_transform, resolve_data_config

import timm_nfaug as nfa
from benchmarks.core import common
from benchmarks.core.schema import validate_file
from benchmarks.imagenet import arms, evaluate
from benchmarks.imagenet import data as folders
from benchmarks.imagenet import real as imagenet_real
from benchmarks.imagenet import recipe as imagenet_recipe
from timm_nfaug import lift, pixels
from timm_nfaug.autoencoder import load_autoencoder

ROOT = Path(__file__).parents[1]
WNIDS = ("n01443537", "n02119789", "n15075141")  # classes 1, 278 and 999
TINY = "eva02_tiny_patch14_336"


@pytest.fixture(scope="module")
def tree(tmp_path_factory, toy_images):
    """train/ with 4 and val/ with 3 images of each of three classes under the validation archive's names."""
    root = tmp_path_factory.mktemp("imagenet")
    levels, labels = toy_images
    for split, count in (("train", 4), ("val", 3)):
        for k, wnid in enumerate(WNIDS):
            (root / split / wnid).mkdir(parents=True)
            for i, image in enumerate(levels[labels == k][:count]):
                number = 7 * i + k + 1
                name = (
                    f"{wnid}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
                )
                name = (
                    name.replace(".", f"_{wnid}.") if split == "val" and i == 0 else name
                )  # as copies on the Hub
                Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))).save(
                    root / split / wnid / name
                )
    return root


@pytest.fixture(scope="module")
def flow_dir(_small_flow, tmp_path_factory):
    return _small_flow.save_pretrained(tmp_path_factory.mktemp("flow") / "small")


@pytest.fixture(scope="module")
def data_config():
    return resolve_data_config(
        {"crop_pct": 1.0, "interpolation": "bicubic", "img_size": 28}, model=timm.create_model(TINY)
    )


def arguments(tree, out, *more, arm="baseline"):
    """The command line of a toy run: 48 samples an epoch, 3 steps of 16."""
    return [
        "--data-dir", str(tree), "--out", str(out), "--arm", arm, "--model", TINY, "--img-size", "28",
        "--no-pretrained", "--skip-check", "--batch-size", "16", "--accum", "1", "--workers", "0", "--device", "cpu",
        "--log-every", "1", *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def glem(tree, flow_dir):
    """The command line of a toy run of the arm glem, by its directory and further flags."""
    return lambda out, *more: arguments(
        tree, out, "--flow", flow_dir, "--amp", "bfloat16", *more, arm="glem"
    )


@pytest.fixture(scope="module")
def two_processes(glem, tmp_path_factory):
    """The run of the arm glem under torchrun, stopped after a step and resumed, and its directory.

    It goes on beside the tests before the one that waits.
    """
    out = tmp_path_factory.mktemp("two")
    command = [
        *TORCHRUN,
        "-m",
        "benchmarks.imagenet.real",
        *glem(out, "--batch-size", "4", "--accum", "2"),
    ]
    both = f"{shlex.join([*command, '--time-limit', '0'])} && exec {shlex.join([*command, '--resume'])}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(both, shell=True, cwd=ROOT, start_new_session=True, **pipes) as process:
        yield process, out
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def undisturbed(two_processes, glem, tmp_path_factory):
    """The last checkpoint of a run of the arm glem from start to end."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert imagenet_real.main(glem(out)) == 0
    return finished(out)


def finished(out) -> dict:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert len(state["epochs"]) == 3
    return state


def assert_same_run(out, expected: dict) -> None:
    state = finished(out)
    assert state["epochs"] == expected["epochs"] and state["untouched"] == expected["untouched"]
    assert all(torch.equal(v, expected["state_dict"][k]) for k, v in state["state_dict"].items())


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_the_recipe_to_the_letter():
    """Enescu & Sahbi, ACCV 2024, supplementary section 1 and table 1."""
    r = imagenet_recipe
    assert r.MODEL == "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"
    assert (r.IMAGE_SIZE, r.CROP_PCT, r.INTERPOLATION) == (448, 1.0, "bicubic")
    cfg = timm.get_pretrained_cfg(r.MODEL)  # what timm evaluates the model with
    assert (cfg.input_size, cfg.crop_pct, cfg.interpolation, cfg.num_classes) == (
        (3, 448, 448),
        1.0,
        "bicubic",
        r.CLASSES,
    )
    assert (r.EPOCHS, r.COPIES, r.CLIP_NORM, r.LEARNING_RATE) == (3, 3, 1.0, 1e-5)
    assert (r.RANDAUGMENT, r.ERASING) == (
        "rand-m9-mstd0.5-inc1",
        {"re_prob": 0.25, "re_mode": "pixel"},
    )  # timm's usual
    assert (r.BATCH_SIZE, r.MODES, r.FIT_IMAGES, r.FIT_SIZE, r.RESTART_EPOCHS) == (
        32,
        32,
        64,
        32,
        3,
    )
    assert (r.CLASSES, r.TRAIN_IMAGES, r.VAL_IMAGES) == (1000, 1281167, 50000)
    assert r.PUBLISHED == {"real_top1": 90.911, "real_top5": 98.811}
    assert r.PAPER == {
        "baseline": (90.896, 98.802), "sa": (91.191, 98.836), "ce": (91.182, 98.845), "glem": (91.229, 98.854),
    }  # fmt: skip
    optimizer, scheduler = r.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    rates = []
    for _ in range(r.EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0e-5, 0.75e-5, 0.25e-5], rel=1e-12)
    assert type(optimizer) is torch.optim.SGD
    defaults = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert {
        k: v
        for k, v in optimizer.param_groups[0].items()
        if k not in ("params", "lr", "initial_lr")
    } == {k: v for k, v in defaults.items() if k not in ("params", "lr")}
    args = imagenet_real.make_parser().parse_args([])
    assert (args.model, args.no_pretrained, args.img_size, args.skip_check) == (
        r.MODEL,
        False,
        None,
        False,
    )
    assert (args.check_top1, args.check_top5, args.tolerance) == (90.911, 98.811, 0.1)
    assert args.strength == 0.5
    assert arms.ARMS == ("baseline", "sa", "linear", "ce", "glem")


def test_plan(capsys):
    assert imagenet_real.main(["--plan"]) == 0
    text = capsys.readouterr().out
    assert "15,374,004 seen" in text and "480,435 of 32 images" in text and "an estimate" in text
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:-1]]
        for cells in map(lambda l: l.split("|"), text.splitlines())
        if len(cells) == 6
    }
    assert rows[""] == ["one 24 GB (RTX 4090)", "one 80 GB (A100)", "eight 80 GB (A100)"]
    devices = [1, 1, 8]
    for n, batch, accum in zip(devices, rows["--batch-size"], rows["--accum"]):
        assert n * int(batch) * int(accum) == imagenet_recipe.BATCH_SIZE
    for memory in rows["memory of a device, estimated"]:
        used, _, there, _ = memory.split()
        assert 0 < float(used) < 0.8 * float(there)
    hours, gpu_hours = ([float(c) for c in rows[k]] for k in ("hours", "GPU hours"))
    assert gpu_hours == pytest.approx(
        [n * h for n, h in zip(devices, hours)], rel=0.03
    )  # of rounding
    # timm publishes 107.11 GMACs for the model; it counts the rotary embedding and the norms too
    assert float(text.partition("compute: ")[2].split()[0]) / 2 == pytest.approx(107.11, rel=0.01)
    # by hand: forward and backward of all images at the share of the peak that timm's 313.81 images/s stand for
    assert hours[0] == pytest.approx((3 * 15_374_004 + 200_000) / 313.81 / 3600, rel=0.02)


def test_kept_bytes_are_those_of_a_real_backward_pass():
    cost = imagenet_recipe.cost("eva02_tiny_patch14_224")
    model = timm.create_model("eva02_tiny_patch14_224")
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    unfused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with unfused, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(torch.zeros(1, 3, 224, 224))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    real = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    assert cost["kept_bytes"] == pytest.approx(real, rel=0.05)


# -- names and labels --------------------------------------------------------------------------------------------------


def test_official_names():
    for name in (
        "ILSVRC2012_val_00000293.JPEG",
        "val/n01443537/ILSVRC2012_val_00000293_n01443537.JPEG",
    ):
        assert evaluate.real_name(name) == "ILSVRC2012_val_00000293.JPEG"
    assert evaluate.real_name("ILSVRC2012_val_00050000.JPEG") == "ILSVRC2012_val_00050000.JPEG"


@pytest.mark.parametrize(
    "name",
    [
        "n01443537_goldfish.JPEG",
        "ILSVRC2012_val_00000000.JPEG",
        "ILSVRC2012_val_00050001.JPEG",
        "ILSVRC2012_val_293.JPEG",
        "ILSVRC2012_val_00000293_n0144.JPEG",
        "ILSVRC2012_val_00000293.JPEG.png",
        "xILSVRC2012_val_00000293.JPEG",
        "ILSVRC2012_test_00000293.JPEG",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"must be named ILSVRC2012_val_00000001\.JPEG.*got {name}"
    ):
        evaluate.real_name(f"val/n01443537/{name}")


def test_one_image_under_two_names_is_refused():
    paths = [
        "a/ILSVRC2012_val_00000007.JPEG",
        "a/ILSVRC2012_val_00000008.JPEG",
        "b/ILSVRC2012_val_00000008_n01443537.JPEG",
    ]
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000008\.JPEG is there more than once"):
        evaluate.real_names(paths)


def test_accuracy_is_that_of_a_slow_twin():
    real = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json"))
    assert len(real) == 50000
    g = torch.Generator().manual_seed(0)
    numbers = torch.randperm(50000, generator=g)[
        :1200
    ].tolist()  # in no order, and over the batch of 1,000
    labels = torch.randint(0, 1000, (1200,), generator=g)
    logits = torch.randn(1200, 1000, generator=g)
    for i, n in enumerate(numbers):  # make some of them right, first or further down
        for label in [*real[n], int(labels[i])]:
            logits[i, label] += 3 * torch.rand(1, generator=g).item()
    counts = {"top1": 0, "top5": 0, "real_top1": 0, "real_top5": 0}
    for row, n, label in zip(logits.tolist(), numbers, labels.tolist()):
        best = sorted(range(1000), key=lambda k: -row[k])[:5]
        counts["top1"] += best[0] == label
        counts["top5"] += label in best
        counts["real_top1"] += best[0] in real[n]
        counts["real_top5"] += any(k in real[n] for k in best)
    with_labels = sum(bool(real[n]) for n in numbers)
    assert 0 < with_labels < 1200
    names = [f"ILSVRC2012_val_{n + 1:08d}.JPEG" for n in numbers]
    found = evaluate.accuracy(logits.topk(5).indices, labels, names)
    for key, count in counts.items():
        assert 0 < count and found[key] == pytest.approx(
            100 * count / (with_labels if "real" in key else 1200)
        )
    without = [f"ILSVRC2012_val_{n + 1:08d}.JPEG" for n in range(50000) if not real[n]][:3]
    with pytest.raises(ValueError, match="none of the 3 validation images has a ReaL label"):
        evaluate.accuracy(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3), without)


def test_the_untouched_model_is_checked():
    expected, good = (
        imagenet_recipe.PUBLISHED,
        {"real_top1": 90.896, "real_top5": 98.802, "top1": 88.7, "top5": 98.7},
    )
    evaluate.check_untouched(good, 50000, expected, 0.1)
    for found, images in (
        ({**good, "real_top1": 90.8}, 50000),
        ({**good, "real_top5": 98.95}, 50000),
        (good, 49999),
    ):
        with pytest.raises(
            SystemExit, match=rf"gives real_top1 {found['real_top1']:.3f} \(expected 90\.911\)"
        ):
            evaluate.check_untouched(found, images, expected, 0.1)


# -- data --------------------------------------------------------------------------------------------------------------


def test_images_and_labels_are_those_of_timms_evaluation(tree, data_config):
    val = folders.ImageNetFolder(tree / "val", data_config)
    val.transform = folders.normalized(data_config)
    timms = create_transform(**data_config, is_training=False)
    for (path, label), (image, y) in zip(val.samples, val):
        with Image.open(path) as original:
            expected = timms(original.convert("RGB"))
        # timm divides levels by 255 where torchvision multiplies by 1/255: a rounding
        assert image.shape == (3, 28, 28) and torch.allclose(image, expected, atol=1e-6)
        assert y == label == ImageNetInfo().label_names().index(Path(path).parent.name)
    assert sorted({y for _, y in val.samples}) == [1, 278, 999]


def test_crop_and_interpolation_are_the_recipes_whatever_the_models(tree, tmp_path):
    name = "resnet18.tv_in1k"  # 0.875 and bilinear of its own
    flags = [
        "--data-dir",
        tree,
        "--out",
        tmp_path,
        "--arm",
        "baseline",
        "--model",
        name,
        "--no-pretrained",
        "--workers",
        "0",
    ]
    run = imagenet_real.prepare(
        imagenet_real.make_parser().parse_args([str(v) for v in flags]), torch.device("cpu")
    )
    model = timm.create_model(name)
    config = resolve_data_config({"crop_pct": 1.0, "interpolation": "bicubic"}, model=model)
    path, label = run.val.samples[4]
    wanted = create_transform(**config)(Image.open(path).convert("RGB"))
    own = create_transform(**resolve_data_config({}, model=model))(Image.open(path).convert("RGB"))
    assert torch.allclose(run.val[4][0], wanted, atol=1e-6) and run.val[4][1] == label
    assert (own - wanted).abs().max() > 0.1


def test_other_folders_are_refused(tree, data_config, tmp_path):
    (tmp_path / "val" / "goldfish").mkdir(parents=True)
    for folder, error, message in (
        ("val", ValueError, "wnids.*goldfish"),
        ("train", FileNotFoundError, "no directory"),
    ):
        with pytest.raises(error, match=message):
            folders.ImageNetFolder(tmp_path / folder, data_config)


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("arm", ["baseline", "sa", "linear", "glem"])
def test_originals_stay_clean_in_every_arm(arm, tree, data_config, flow_dir):
    def make():
        base = folders.ImageNetFolder(tree / "train", data_config)
        augment = arms.make_augment(arm, str(flow_dir) if arm == "glem" else None, 0.5)
        if arm == "linear":
            augment = arms.fit_linear(base, 0.5, workers=0)
        return arms.training_set(arm, base, data_config, augment, seed=3)

    plain = folders.ImageNetFolder(tree / "train", data_config)
    clean = folders.normalized(data_config)
    data = make()
    assert len(data) == 48
    before = global_states()
    samples = [data[i] for i in range(48)]
    assert global_states() == before  # nothing is drawn from the global generators
    for i, (image, label) in enumerate(samples):
        original, y = plain[i % 12]
        assert label == y and image.shape == (3, 28, 28) and image.dtype == torch.float32
        if i < 12 or arm == "baseline":
            assert torch.equal(image, clean(original))
    if arm == "baseline":
        return
    copies = torch.stack([image for image, _ in samples]).view(4, 12, -1)
    assert all(
        (copies[a] != copies[b]).any(1).float().mean() > 0.5 for a in range(4) for b in range(a)
    )
    other = make()  # a sample depends on (seed, epoch, index) alone, not on what was drawn before
    assert torch.equal(other[40][0], samples[40][0])
    other.set_epoch(1)
    assert not torch.equal(other[40][0], samples[40][0]) and torch.equal(other[4][0], samples[4][0])


def test_sa_erases_and_randaugments(tree, data_config, monkeypatch):
    base = folders.ImageNetFolder(tree / "train", data_config)
    data = arms.StandardCopies(base, data_config, seed=0)
    shown = repr(data.augmented)
    assert "RandAugment(n=2" in shown and "RandomErasing(p=0.25, mode=pixel" in shown
    # without them the copies are the originals: there is no other change
    monkeypatch.setattr(imagenet_recipe, "RANDAUGMENT", None)
    monkeypatch.setattr(imagenet_recipe, "ERASING", {})
    data = arms.StandardCopies(base, data_config, seed=0)
    assert all(torch.allclose(data[i][0], data[12 + i][0], atol=1e-6) for i in range(12))


def test_linear_takes_the_eigen_images_of_each_class(tree, data_config, monkeypatch):
    base = folders.ImageNetFolder(tree / "train", data_config)
    before = global_states()
    prior = arms.fit_linear(base, 0.5, workers=0).flow.prior
    assert global_states() == before
    by_hand = nfa.create_flow("linear", input_size=(3, 32, 32))  # the change of coordinates alone
    codes = {}
    for k in sorted(set(base.targets)):
        images = pixels.levels_to_model(torch.stack([image for image, label in base if label == k]))
        codes[k] = by_hand(lift.down(images, (32, 32)))[0]
        assert torch.allclose(prior.mu[k], codes[k].mean(0), atol=1e-4)
    within = torch.cat(
        [z - z.mean(0) for z in codes.values()]
    )  # twelve images of three classes: 9 modes
    for k, z in codes.items():
        modes, std = prior.modes[k, :9], prior.mode_std[k, :9]
        assert (prior.mode_std[k] > 0).sum() == 9
        own, common = (((v - v.mean(0)) @ modes.T).square().sum(0) for v in (z, within))
        assert torch.allclose((own + 100 * common / 9) / (3 + 100), std**2, rtol=1e-3)
    monkeypatch.setattr(imagenet_recipe, "FIT_IMAGES", 2)  # the first two alone
    assert (
        (arms.fit_linear(base, 0.5, workers=0).flow.prior.mode_std > 0).sum(1)[base.targets] == 3
    ).all()


def test_a_run_of_linear_resumes(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    argv = [
        *arguments(tree, tmp_path / "run", "--record", "imagenet_real", arm="linear"),
        "--resume",
    ]
    assert imagenet_real.main([*argv, "--time-limit", "0"]) == 0
    assert imagenet_real.main(argv) == 0
    r = validate_file(tmp_path / "imagenet_real.json")
    assert (r["results"]["arm"], r["results"]["flow"]) == ("linear", "linear") and "modes=32" in r[
        "settings"
    ]["augment"]


def test_flows_of_the_arms(small_flow, flow_dir, tmp_path):
    make = arms.make_augment
    assert make("baseline", None, 0.5) is None and make("sa", None, 0.5) is None
    augment = make("glem", str(flow_dir), 0.25)
    assert (augment.strength, augment.modes, augment.labels, augment.p) == (
        0.25,
        6,
        "posterior",
        1.0,
    )
    coded = nfa.create_flow(
        "conv_p4_tiny", num_classes=3, depth=1, hidden=8, prior={"num_modes": 2}, code_rows=8
    )
    coded = str(coded.save_pretrained(tmp_path / "coded"))
    assert make("ce", coded, 0.5).labels == "posterior"
    # a flow of ImageNet's own classes takes the labels
    names = ImageNetInfo().label_names()
    own = nfa.create_flow(
        "linear", input_size=(3, 4, 4), num_classes=1000, prior={"num_modes": 1}, class_names=names
    )
    assert make("glem", str(own.save_pretrained(tmp_path / "own")), 0.5).labels == "given"
    for arm, flow, message in (
        ("baseline", coded, "arm baseline uses no flow"),
        ("sa", coded, "arm sa uses no flow"),
        ("linear", coded, "arm linear uses no flow"),
        ("glem", None, "arm glem needs a flow"),
        ("ce", str(flow_dir), "arm ce takes a flow of conditional encoding.*--arm glem"),
        ("glem", coded, "arm glem takes a flow of class Gaussians.*--arm ce"),
        ("glem", "conv_p4_tiny.digits", "3 channels, conv_p4_tiny.digits takes 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(arm, flow, 0.5)


# -- latents ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    """The name of an autoencoder of its own file: latents (3, H/2, W/2)."""
    return HALVES


@pytest.fixture(scope="module")
def latent_dirs(halves, tree, data_config, tmp_path_factory):
    """Deep flows over latents of images of 16 pixels, by arm: their modes are found, their networks untrained."""
    root, made = tmp_path_factory.mktemp("latent"), {}
    base = folders.ImageNetFolder(tree / "train", data_config)
    order = {label: k for k, label in enumerate(sorted(set(base.targets)))}
    x = torch.stack([image for image, _ in base])
    y = torch.tensor([order[label] for label in base.targets])
    latent = {"size": 16, "autoencoder": halves, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    for arm, more in {"glem": {}, "ce": {"code_rows": 8}}.items():
        flow = nfa.create_flow(
            "conv_p4_tiny", input_size=(3, 8, 8), num_classes=3, depth=1, hidden=8,
            prior={"num_modes": 4}, latent=latent, **more,
        )  # fmt: skip
        if arm == "glem":
            augment = nfa.NFAugment(flow, modes=4, labels="given", autoencoder=halves)
            flow = augment.fit([(x, y)], 3).flow
        made[arm] = str(flow.save_pretrained(root / arm))
    return made


@pytest.mark.parametrize("arm", ["linear", "glem"])
def test_a_run_over_latents_and_its_record(
    arm, halves, latent_dirs, tree, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(imagenet_recipe, "MODES", 4)  # twelve images have no 32
    flow = ["--flow", latent_dirs[arm]] if arm == "glem" else []
    latent = ["--autoencoder", halves, "--size", 16, *flow]
    argv = [*arguments(tree, tmp_path / "run", "--record", "r", *latent, arm=arm), "--resume"]
    assert imagenet_real.main([*argv, "--time-limit", "0"]) == 0
    assert imagenet_real.main(argv) == 0
    settings = validate_file(tmp_path / "r.json")["settings"]
    digest = load_autoencoder(halves).digest()
    assert (settings["space"], settings["autoencoder"]) == ("latent", "small_autoencoder.py:Halves")
    assert (settings["size"], settings["digest"]) == (16, digest)
    assert "autoencoder=Autoencoder(small_autoencoder.py:Halves" in settings["augment"]
    # a checkpoint of other latents is not resumed
    with pytest.raises(SystemExit) as e:
        imagenet_real.main([arg if arg != "16" else "28" for arg in argv])
    told = capsys.readouterr().err
    assert e.value.code == 2
    assert ("size=16 instead of 28" if arm == "linear" else "leave it out") in told


def test_linear_finds_modes_of_latents_of_each_class(halves, tree, data_config, monkeypatch):
    monkeypatch.setattr(imagenet_recipe, "MODES", 4)
    base = folders.ImageNetFolder(tree / "train", data_config)
    augment = arms.fit_linear(base, 0.5, 0, load_autoencoder(halves), 16)
    prior, network = augment.flow.prior, augment.flow.network
    assert (augment.size, augment.labels, augment.flow.num_classes) == (16, "given", 1000)
    for k in sorted(set(base.targets)):
        x = pixels.levels_to_model(torch.stack([image for image, label in base if label == k]))
        z = F.avg_pool2d(lift.down(x, (16, 16)), 2).flatten(1)
        assert torch.allclose(prior.mu[k] @ network.basis, z.mean(0), atol=1e-4)
        assert (prior.mode_std[k] > 0).any()
    assert (prior.mode_std[0] == 0).all()  # a class without images
    image = base[0][0]
    moved = augment(image, base[0][1], generator=torch.Generator().manual_seed(0))[0]
    assert not torch.equal(moved, image)
    assert arms.fit_linear(base, 0.5, 0, load_autoencoder(halves)).size == 64  # the least by itself


def test_copies_over_latents_are_moved_and_originals_clean(halves, latent_dirs, tree, data_config):
    base = folders.ImageNetFolder(tree / "train", data_config)
    where = {"space": "latent", "autoencoder": load_autoencoder(halves)}
    augment = arms.make_augment("glem", latent_dirs["glem"], 0.5, **where)
    assert (augment.size, augment.modes, augment.labels) == (16, 4, "posterior")
    data = arms.training_set("glem", base, data_config, augment, seed=3)
    plain, clean = (
        folders.ImageNetFolder(tree / "train", data_config),
        folders.normalized(data_config),
    )
    for i in (0, 7):
        assert torch.equal(data[i][0], clean(plain[i][0]))
        assert (data[i][0] != data[12 + i][0]).float().mean() > 0.3
    assert arms.make_augment("ce", latent_dirs["ce"], 0.5, **where).flow.config.code_rows == 8


@pytest.mark.parametrize(
    ("arm", "more", "message"),
    [
        ("linear", ["--space", "latent"], "needs an autoencoder: --autoencoder NAME"),
        ("linear", ["--space", "pixels", "--autoencoder", "HALVES"], "are for --space latent"),
        ("linear", ["--size", "16"], "are for --space latent"),
        ("linear", ["--autoencoder", "HALVES", "--size", "15"], "multiple of 2"),
        ("linear", ["--autoencoder", "no_module:make"], "no_module"),
        ("sa", ["--autoencoder", "HALVES"], "arm sa moves no codes"),
        ("glem", ["--flow", "LATENT"], "moves latent, not pixels: use --space latent"),
        ("glem", ["--space", "latent", "--flow", "LATENT"], "pass autoencoder="),
        ("glem", ["--autoencoder", "HALVES", "--flow", "PIXELS"], "moves pixels, not latent"),
    ],
)
def test_spaces_that_do_not_fit(
    arm, more, message, halves, latent_dirs, flow_dir, tree, tmp_path, capsys
):
    named = {"HALVES": halves, "LATENT": latent_dirs["glem"], "PIXELS": str(flow_dir)}
    with pytest.raises(SystemExit) as e:
        imagenet_real.main(arguments(tree, tmp_path, *[named.get(a, a) for a in more], arm=arm))
    assert e.value.code == 2 and message in capsys.readouterr().err


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_a_slow_twin(tree, tmp_path):
    """Mean loss over the whole batch, all gradients scaled to norm 1, plain SGD, whatever the accumulation."""
    parser = imagenet_real.make_parser()
    for accum in (1, 4):
        args = parser.parse_args(
            arguments(tree, tmp_path / str(accum), "--accum", accum, "--batch-size", 16 // accum)
        )
        run = imagenet_real.prepare(args, torch.device("cpu"))
        run.model.train()
        twin = timm.create_model(TINY, img_size=28)
        twin.load_state_dict(run.model.state_dict())
        batches = list(run._batches(0, 0))
        images, labels = (torch.cat([b[i] for b in batches[:accum]]) for i in range(2))
        if accum == 1:
            first = images
        assert len(batches) == 3 * accum and torch.equal(
            images, first
        )  # how a batch is split does not change it
        loss = F.cross_entropy(twin(images), labels)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        assert norm > 1  # or nothing would be clipped
        for group in run.optimizer.param_groups:
            group["lr"] = 1.0  # a step of 1e-5 would drown in the rounding of the weights
        before = [p.detach().clone() for p in run.model.parameters()]
        assert run._optimizer_step(iter(batches)) == pytest.approx(loss.item(), rel=1e-5)
        for old, new, g in zip(before, run.model.parameters(), grads):
            # float32 sums in another order
            assert torch.allclose(new, old - g / norm, atol=2e-5)
        assert all(p.grad is None for p in run.model.parameters())


def test_a_whole_run_and_its_result(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    out = tmp_path / "run"
    argv = arguments(tree, out, "--record", "imagenet_real")
    assert imagenet_real.main(argv) == 0
    printed = capsys.readouterr().out
    assert "untouched: top1" in printed and "step 9/9: loss" in printed and "| epoch 3 |" in printed
    state = finished(out)
    result = validate_file(tmp_path / "imagenet_real.json")
    assert result["data"].startswith(
        "images under ImageNet's names (not ImageNet-1k): 12 training images, 9 val"
    )
    r = result["results"]
    assert r["arm"] == "baseline" and r["flow"] is None and r["checked"] is False
    assert (r["optimizer_steps"], r["images_seen"]) == (9, 144) and r["seconds"] > 0
    assert [e["learning_rate"] for e in r["epochs"]] == pytest.approx([1e-5, 0.75e-5, 0.25e-5])
    assert r["epochs"] == state["epochs"] and r["untouched"] == state["untouched"]
    assert r["epochs"][2]["loss"] < r["epochs"][0]["loss"]  # it learns the 12 images
    assert (result["settings"]["batch_size"], result["settings"]["augment"]) == (16, None)
    # the weights moved, and timm reads them
    torch.manual_seed(0)
    start = timm.create_model(TINY, img_size=28).state_dict()
    model = timm.create_model(TINY, img_size=28, checkpoint_path=out / "checkpoint.pt")
    assert all(torch.equal(v, state["state_dict"][k]) for k, v in model.state_dict().items())
    assert any(not torch.equal(v, start[k]) for k, v in state["state_dict"].items())
    # a finished run has nothing left to do; a new one does not write over it; other settings are refused
    assert imagenet_real.main([*argv, "--resume"]) == 0
    assert_same_run(out, state)
    for more, message in (
        ([], "checkpoint.pt exists; continue with --resume"),
        (
            ["--resume", "--seed", "1", "--amp", "bfloat16"],
            "amp=None instead of 'bfloat16', seed=0 instead of 1",
        ),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            imagenet_real.main([*argv, *more])
        assert e.value.code == 2 and message in capsys.readouterr().err


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(glem, undisturbed, tmp_path, capsys):
    """With stops after each of the first four steps, over the end of an epoch, and then with gradient checkpointing."""
    for step in range(1, 5):
        assert imagenet_real.main(glem(tmp_path, "--resume", "--time-limit", "0")) == 0
        assert f"stopped at step {step} of 9; continue with --resume" in capsys.readouterr().out
    # timm before 1.0.15 cannot checkpoint EVA's blocks
    checkpointing = (
        ["--grad-checkpointing"] if Version(timm.__version__) >= Version("1.0.15") else []
    )
    assert imagenet_real.main(glem(tmp_path, "--resume", *checkpointing)) == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_killed_run_resumes_to_the_same_weights(glem, undisturbed, tmp_path):
    """SIGKILL at a random moment of a real process that saves after every step and has another one load the images."""
    command = [sys.executable, "-m", "benchmarks.imagenet.real"]
    command += glem(tmp_path, "--checkpoint-minutes", "0", "--workers", "1")
    step, delay = random.randint(1, 6), random.uniform(0, 0.05)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(f"step {step}/9"):
                time.sleep(delay)
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    (tmp_path / ".checkpoint.pt.abc").write_bytes(
        b"half a checkp"
    )  # of a kill in the middle of a write
    reached = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert step - 1 <= reached < 9, (step, delay)
    assert imagenet_real.main(glem(tmp_path, "--resume")) == 0
    assert_same_run(tmp_path, undisturbed)


def test_two_processes_are_one(two_processes, undisturbed):
    """The batch in shares of 4 images on two processes: same losses and metrics, each validation image counted once."""
    process, out = two_processes
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed[-3000:]
    assert (
        printed.count("step 9/9") == printed.count("stopped at step 1 of 9") == 1
    )  # the first process speaks for both
    state = finished(out)
    assert state["untouched"] == undisturbed["untouched"]
    for a, b in zip(state["epochs"], undisturbed["epochs"]):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # float32 sums in another order
        assert {k: a[k] for k in imagenet_real.METRICS} == {k: b[k] for k in imagenet_real.METRICS}


def test_it_stops_where_the_untouched_model_is_off(tree, tmp_path, capsys):
    argv = [a for a in arguments(tree, tmp_path / "run") if a != "--skip-check"]
    for more in ([], ["--resume"]):  # nor does it go on later
        with pytest.raises(
            SystemExit,
            match=r"real_top1 .* \(expected 90\.911\).* on 9 images.*--skip-check is for smoke runs",
        ):
            imagenet_real.main([*argv, *more])
    assert "step" not in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--batch-size", "5"],
            "--batch-size 5 on 1 devices does not divide the recipe's batch of 32",
        ),
        (["--batch-size", "0"], "at least 1"),
        (["--batch-size", "49", "--accum", "1"], "48 samples do not fill one batch of 49"),
        (["--model", "eva02_tiny_patch14_224.mim_in22k"], "has 0 classes, ImageNet 1000"),
        (["--flow", "conv_p4_tiny.digits"], "uses no flow"),
    ],
)
def test_errors(more, message, tree, tmp_path, capsys):
    argv = arguments(tree, tmp_path)
    if more[0] == "--batch-size":  # without an --accum that would make it another batch
        argv = [a for i, a in enumerate(argv) if "--accum" not in argv[max(i - 1, 0) : i + 1]]
    with pytest.raises(SystemExit) as e:
        imagenet_real.main([*argv, *more])
    assert e.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()
