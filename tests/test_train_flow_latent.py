"""Training a flow on latents: their cache, the likelihood of the raw ones, every objective, and the flow that is saved."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import LowRankMultivariateNormal

import timm_nfaug as nfa
from tests.test_train_flow import read_log
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from timm_nfaug.pixels import levels_to_model
from train_flow import latents
from train_flow.__main__ import main
from train_flow.config import TrainConfig, load_config
from train_flow.data import load_folder
from train_flow.distributed import Processes
from train_flow.evaluate import evaluate
from train_flow.images import TrainingImages
from train_flow.latents import cached, load_latents
from train_flow.trainer import Trainer

SMALL = {"flow": "conv_latent", "network": {"depth": 2, "hidden": 16}, "prior": {"num_modes": 4}}
SMALL |= {"space": "latent", "image_size": 64, "batch_size": 12, "steps": 12, "lr": 0.003}
SMALL |= {"warmup_steps": 2, "gaussian_every": 4, "ema_decay": 0.5, "log_every": 1, "eval_every": 0}


@pytest.fixture
def tiny(tiny_autoencoder):
    return tiny_autoencoder


class Counting(torch.nn.Module):
    """Counts the images that are encoded."""

    def __init__(self, name):
        super().__init__()
        self.inner, self.count = load_autoencoder(name).module, torch.zeros(1)

    def encode(self, x):
        self.count += len(x)
        return self.inner.encode(x)

    def decode(self, z):
        return self.inner.decode(z)


@pytest.fixture
def encoder(tiny):
    made = Autoencoder(Counting(tiny))
    made.module.count.zero_()
    return made


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.npy"))}


def train(out, data_dir, tiny, **settings):
    """Trains through the command line's own function; returns its log."""
    given = {**SMALL, "autoencoder": tiny, **settings}
    config = out.parent / f"{out.name}.yaml"
    config.write_text(json.dumps(given))
    assert main(["--config", str(config), "--data-dir", str(data_dir), "--out", str(out)]) == 0
    return read_log(out)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_the_images_and_made_once(
    image_folder, tmp_path, encoder, small_shards
):
    found = cached(image_folder / "train", tmp_path, encoder, 64, views=2)
    images = load_folder(image_folder / "train", 64)
    assert encoder.module.count == 120 and len(found) == 60
    assert found.labels.tolist() == images.labels.tolist()
    x = levels_to_model(images.levels)
    for where, view in ((False, x), (True, x.flip(3))):
        wanted = encoder.encode(view).half().float()
        got = found.mirrored(torch.full((60,), where)).raw()
        assert (got - wanted).abs().max() < 2e-3  # a rounding of float16; batches differ
    assert not torch.equal(encoder.encode(x.flip(3)), encoder.encode(x).flip(3))
    before, count = contents(tmp_path), encoder.module.count.clone()
    cached(image_folder / "train", tmp_path, encoder, 64, views=2)
    assert encoder.module.count == count and contents(tmp_path) == before


KILLED = """
import sys
from pathlib import Path
from timm_nfaug.autoencoder import load_autoencoder
from timm_nfaug.data import store
from train_flow.latents import cached
store.SHARD = 16
cached(Path(sys.argv[1]), Path(sys.argv[2]), load_autoencoder(sys.argv[3]), 64, 2)
"""


def test_a_killed_cache_is_resumed_to_the_same_bytes(image_folder, tmp_path, tiny, small_shards):
    root, out = image_folder / "train", tmp_path / "killed"
    given = [sys.executable, "-c", KILLED, str(root), str(out), tiny]
    process = subprocess.Popen(given, env=os.environ | {"SLEEP": "0.5"}, stderr=subprocess.DEVNULL)
    noted = lambda: json.loads((out / "index.json").read_text())["shards"]
    deadline = time.monotonic() + 60
    while not ((out / "index.json").exists() and noted()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(noted()) < 4
    cached(root, tmp_path / "whole", load_autoencoder(tiny), 64, 2)
    resumed = cached(root, out, load_autoencoder(tiny), 64, 2)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(resumed) == 60 and len(noted()) == 4


def test_a_damaged_block_is_made_again_and_no_other(image_folder, tmp_path, encoder, small_shards):
    root = image_folder / "train"
    cached(root, tmp_path, encoder, 64, views=2)
    before = contents(tmp_path)
    with open(tmp_path / "latents.npy", "r+b") as f:
        f.seek(-100, 2)
        f.write(b"\x77")
    os.utime(tmp_path / "latents.npy")
    encoder.module.count.zero_()
    cached(root, tmp_path, encoder, 64, views=2)
    assert contents(tmp_path) == before
    assert encoder.module.count == 2 * 12  # the last of the blocks of 16


def test_the_block_of_a_file_that_changed_is_made_again(tmp_path, encoder, small_shards):
    for k in range(40):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, k, k)).save(path)
    before = cached(tmp_path / "data", tmp_path / "cache", encoder, 64, 1).raw()
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "data" / "a" / "00.png")
    encoder.module.count.zero_()
    after = cached(tmp_path / "data", tmp_path / "cache", encoder, 64, 1).raw()
    assert encoder.module.count == 16
    assert (before != after).flatten(1).any(1).nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    "settings, what",
    [({"autoencoder": "other"}, "autoencoder"), ({"flip": False}, "views"), ({"image_size": 96}, "side")],
)  # fmt: skip
def test_a_cache_of_other_settings_is_refused(image_folder, tmp_path, tiny, settings, what):
    config = TrainConfig(**SMALL, autoencoder=tiny)
    load_latents(config, image_folder, tmp_path, torch.device("cpu"))
    if "autoencoder" in settings:
        settings = {"autoencoder": tiny.replace(":load", ":other")}
    other = TrainConfig(**{**SMALL, "autoencoder": tiny, **settings})
    with pytest.raises(ValueError, match=f"differs in .*{what}.*; name another directory"):
        load_latents(other, image_folder, tmp_path, torch.device("cpu"))


def test_images_that_cannot_be_read_are_refused_or_left_out(tmp_path, encoder):
    for k in range(6):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="5.png.*skip_unreadable=true"):
        cached(tmp_path / "data", tmp_path / "cache", encoder, 64, 1)
    left = cached(tmp_path / "data", tmp_path / "cache", encoder, 64, 1, skip=True)
    assert left.labels.tolist() == [0, 0, 0, 1, 1] and len(left.raw()) == 5
    with pytest.raises(ValueError, match="1 of 6 images in .* cannot be read"):
        cached(tmp_path / "data", tmp_path / "cache", encoder, 64, 1)


def test_latents_are_standardised_and_mirrored_at_random(image_folder, tmp_path, tiny):
    config = TrainConfig(**SMALL, autoencoder=tiny)
    data, val = load_latents(config, image_folder, tmp_path, torch.device("cpu"))
    x = data.centres()
    assert x.mean((0, 2, 3)).abs().max() < 1e-4 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert val.latent == data.latent and len(val) == 24
    images = TrainingImages(data, config, Processes(), torch.device("cpu"))
    drawn, labels = images(torch.arange(60), step=3, purpose=1)
    other = data.mirrored(torch.ones(60, dtype=torch.bool)).centres()
    same = [(drawn == view).flatten(1).all(1) for view in (x, other)]
    assert bool((same[0] ^ same[1]).all()) and 18 < int(same[1].sum()) < 42
    assert torch.equal(labels, data.labels)


# -- likelihood and training -------------------------------------------------------------------------------------------


def test_nats_of_the_linear_flow_are_those_of_gaussians_of_raw_latents(
    image_folder, tmp_path, tiny
):
    own = {"flow": "linear", "network": {}, "objective": "moments", "autoencoder": tiny}
    config = TrainConfig(**{**SMALL, **own})
    data, val = load_latents(config, image_folder, tmp_path, torch.device("cpu"))
    trainer = Trainer(config, data, val, tmp_path / "out")
    trainer.run()
    found = trainer.finish()
    assert "bits_per_dim" not in found
    prior = nfa.ConditionalFlow.from_pretrained(tmp_path / "out" / "flow").prior.double()
    prior.requires_grad_(False)
    mean, std = (
        torch.tensor(data.latent[k]).double().repeat_interleave(64) for k in ("mean", "std")
    )
    y = val.labels
    factor = (prior.modes * prior.mode_std.unsqueeze(2)).mT[y] * std.unsqueeze(1)  # (B, D, r)
    gaussians = LowRankMultivariateNormal(
        mean + std * prior.mu[y], factor, std.square() * prior.variance[y]
    )
    nats = -gaussians.log_prob(val.raw().double().flatten(1)) / 256
    assert found["nats_per_dim"] == pytest.approx(float(nats.mean()), abs=1e-5)


OBJECTIVES = {
    "glem": {"discriminative": 0.05, "gaussian_lr": [[0, 0.01]], "kld_weight": [[0, 0.1]]},
    "ml": {"gaussian_lr": [[0, 0.01]]},
    "joint": {"discriminative": 0.05, "temperature": 10.0, "gaussian_lr": [[0, 0.01]]},
    "random": {},
    "ce": {},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_lowers_nats_per_dim(objective, image_folder, tmp_path, tiny, capsys):
    out, settings = tmp_path / objective, {"objective": objective, **OBJECTIVES[objective]}
    log = train(out, image_folder, tiny, **settings)
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 12 and all("nats_per_dim" in line for line in steps)
    assert not any("bits_per_dim" in line for line in log)
    config = TrainConfig(**{**SMALL, "autoencoder": tiny, **settings})
    data, val = load_latents(config, image_folder, out, torch.device("cpu"))
    start = evaluate(Trainer(config, data, val, tmp_path / "start").flow, val)["nats_per_dim"]
    flow = nfa.ConditionalFlow.from_pretrained(out / "flow")
    end = evaluate(flow, val)["nats_per_dim"]
    assert end < start - 0.01
    # the card has what a fresh look at the stored flow finds
    assert (
        flow.config.info["metrics"]["nats_per_dim"]
        == end
        == pytest.approx(log[-1]["nats_per_dim"], rel=1e-4)
    )
    assert flow.config.latent["size"] == 64 and len(flow.config.latent["mean"]) == 4


@pytest.mark.parametrize("flow", ["conv_latent", "linear"])
def test_the_saved_flow_moves_images(flow, image_folder, tmp_path, tiny):
    out = tmp_path / "run"
    objective = {"objective": "moments", "network": {}} if flow == "linear" else {}
    train(out, image_folder, tiny, flow=flow, steps=2, **objective)
    card = (out / "flow" / "README.md").read_text()
    assert "| images | 3 x 64 x 64 |" in card and "| latents | 4 x 8 x 8 |" in card
    assert (
        "nats per dim" in card
        and "bits" not in card
        and "torch.randint(0, 256, (4, 3, 64, 64)" in card
    )
    with pytest.raises(nfa.NFAError, match="pass autoencoder="):
        nfa.NFAugment.from_pretrained(out / "flow")
    own = {"autoencoder": tiny, "p": 1.0, "labels": "given", "seed": 0}
    images = load_folder(image_folder / "val", 40)
    for strength in (0.0, 1.0):
        augment = nfa.NFAugment.from_pretrained(out / "flow", strength=strength, **own)
        moved, _ = augment(images.levels, images.labels)
        assert moved.shape == images.levels.shape
        assert torch.equal(moved, images.levels) == (strength == 0)


def test_a_stopped_training_is_resumed_with_the_cache(image_folder, tmp_path, tiny):
    def weights(out, *arguments):
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps({**SMALL, "autoencoder": tiny, "steps": 4}))
        given = [
            "--config",
            str(path),
            "--data-dir",
            str(image_folder),
            "--out",
            str(tmp_path / out),
        ]
        assert main([*given, *arguments]) == 0
        return tmp_path / out / "flow" / "model.safetensors"

    whole = weights("whole")
    shared = ["--set", f"latents={tmp_path / 'whole' / 'latents'}"]
    weights("parts", "--time-limit", "0", *shared)
    parts = weights("parts", "--resume", *shared)
    assert not (tmp_path / "parts" / "latents").exists()
    assert parts.read_bytes() == whole.read_bytes()


# -- settings and plan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, match",
    [
        (["image_size=32"], r"image_size must be in \[64, 448\] with space: latent, got 32"),
        (["shift=2", "discriminative=1"], "space: latent goes with shift: 0, got 2"),
        (["bits=5"], "space: latent goes with bits: 8, got 5"),
        (["in_chans=1"], "space: latent goes with in_chans: 3, got 1"),
        (["space=pixels", "autoencoder=a/b"], "autoencoder goes with space: latent"),
        (["space=pixels", "latents=x"], "latents goes with space: latent"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_latents_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        load_config("conv_latent.imagenette", settings)


@pytest.mark.parametrize(
    "settings, match",
    [
        (["autoencoder=''"], "needs an autoencoder; add --set autoencoder=NAME"),
        (["image_size=100"], "size must be a multiple of 8 pixels for this autoencoder, got 100"),
        (["image_size=72"], "multiples of 2, got 9 x 9: resize, or set patch=1 .network.patch=1"),
        (["image_size=112", "objective=ce"], "latents of 112 pixels have 14; set image_size to a multiple of 32, e.g. 128"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_explained(settings, match, image_folder, tmp_path, tiny, capsys):
    given = [v for s in [f"autoencoder={tiny}", *settings] for v in ("--set", s)]
    given += ["--config", "conv_latent.imagenette", "--data-dir", str(image_folder)]
    with pytest.raises(SystemExit):
        main([*given, "--out", str(tmp_path / "out")])
    assert re.search(match, capsys.readouterr().err)


def test_a_plan_trains_nothing(image_folder, tmp_path, tiny, capsys):
    given = ["--config", "conv_latent.imagenette", "--data-dir", str(image_folder), "--plan"]
    given += ["--out", str(tmp_path / "out")]
    small = [
        f"autoencoder={tiny}",
        "batch_size=8",
        "network={depth: 1, hidden: 16}",
        "image_size=64",
    ]
    assert main([*given, *(v for s in small for v in ("--set", s))]) == 0
    printed = capsys.readouterr().out
    size = latents.bytes_of(60, (4, 8, 8), 2) + latents.bytes_of(24, (4, 8, 8), 1)
    assert "60 to train on, 24 held out, 3 classes" in printed
    assert f"4 x 8 x 8, {size / 1e6:.2f} MB on the disk" in printed
    flow = nfa.create_flow("conv_latent", input_size=(4, 8, 8), depth=1, hidden=16)
    assert f"{sum(p.numel() for p in flow.network.parameters()):,} parameters" in printed
    steps = load_config("conv_latent.imagenette").steps
    assert "latents " in printed and f"({steps:,} at" in printed and "GB in the trial" in printed
    assert not (tmp_path / "out").exists()


def test_a_plan_of_pixels(image_folder, capsys):
    given = ["--config", "linear.cifar10", "--data-dir", str(image_folder), "--plan"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert (
        "60 to train on, 24 held out, 3 classes" in printed and "steps 0 h (0 at 0 ms)" in printed
    )
    assert f"{84 * 3072 / 1e6:.2f} MB for the images" in printed and "on the disk" not in printed


@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 28, 28), (32, 14, 14), (32, 56, 56)])
@pytest.mark.parametrize("flow", ["conv_latent", "jet_latent"])
def test_flows_of_latents_invert_at_every_size(flow, shape):
    torch.manual_seed(0)
    made = nfa.create_flow(flow, input_size=shape, num_classes=2, depth=1, hidden=8)
    x = torch.randn(4, *shape)  # whose positions are more than the channels
    made.initialize(x)
    with torch.no_grad():
        for p in made.network.parameters():
            p.add_(0.02 * torch.randn(p.shape))
        z, log_det = made(x)
        assert z.shape == (4, np.prod(shape)) and bool(log_det.isfinite().all())
        assert (made.inverse(z) - x).abs().max() < 1e-3  # float32
