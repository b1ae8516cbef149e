"""What several tests share: one thread (so that subprocesses agree bit for bit), toy images, a small flow."""

import copy
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the subprocesses that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

import timm_nfaug as nfa
from timm_nfaug import pixels, train
from timm_nfaug._utils import progress
from timm_nfaug.data import store
from timm_nfaug.integration import pillow

torch.set_num_threads(1)

CLASSES = ("a", "b", "c")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """What a test reads of stderr does not depend on how long the machine took."""
    monkeypatch.setattr(progress, "DELAY", 3600.0)


def autocast_depth() -> int:
    """How many `torch.autocast` contexts are open."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


@pytest.fixture(autouse=True)
def no_open_autocast():
    """A test that leaves one open fails itself, not the trainings of later ones, whose weights it would freeze."""
    yield
    assert autocast_depth() == 0


def make_images(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """levels (3 * per_class, 3, 32, 32) uint8 and labels: one colour a class, a gradient of random slope, and noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(per_class)
    colour = torch.tensor([[190.0, 70, 60], [70, 180, 90], [60, 90, 200]])[labels].view(-1, 3, 1, 1)
    slope = 40 * torch.randn(len(labels), 1, 1, 1, generator=g) * torch.linspace(-1, 1, 32)
    noise = 12 * torch.randn(len(labels), 3, 32, 32, generator=g)
    return (colour + slope + noise).round().clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="session")
def toy_images():
    """60 images of 3 classes: levels (60, 3, 32, 32) uint8 and labels (60,)."""
    return make_images(20, seed=1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, toy_images):
    """An ImageFolder tree of PNGs: train/ with 20 and val/ with 8 images of each of a, b, c. Not to be changed."""
    root = tmp_path_factory.mktemp("folder")
    for split, (levels, labels) in {"train": toy_images, "val": make_images(8, seed=2)}.items():
        for i, (image, k) in enumerate(zip(levels.permute(0, 2, 3, 1).numpy(), labels.tolist())):
            path = root / split / CLASSES[k] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(path)
    return root


@pytest.fixture(scope="session")
def _small_flow(toy_images):
    levels, labels = toy_images
    torch.manual_seed(0)
    flow = nfa.create_flow(
        "conv_p4_tiny",
        num_classes=3,
        depth=2,
        hidden=16,
        prior={"num_modes": 6},
        class_names=CLASSES,
    )
    flow.initialize(pixels.dequantize(levels, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for name, p in flow.network.named_parameters():
            if (
                ".net.4." in name
            ):  # the last convolution of each coupling starts at zero: make it do something
                p.copy_(
                    0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    flow.prior.set_moments(flow.moments([(pixels.levels_to_model(levels), labels)], num_modes=6))
    return flow.eval().requires_grad_(False)


@pytest.fixture
def small_flow(_small_flow):
    """An initialised conv_p4 flow of 3 classes on 32 x 32 images with Gaussians and modes fitted; the test's own copy."""
    return copy.deepcopy(_small_flow)


@pytest.fixture(scope="session")
def flow_dir(_small_flow, tmp_path_factory):
    return _small_flow.save_pretrained(tmp_path_factory.mktemp("flow"))


@pytest.fixture
def augment(small_flow):
    """Moves every image along 4 modes."""
    return nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")


@pytest.fixture
def base(image_folder):
    """The 60 images of `image_folder`, a dataset for a cache."""
    return ImageFolder(str(image_folder / "train"))


@pytest.fixture
def small_shards(monkeypatch):
    """Lets a cache note what is done after every 16 images."""
    monkeypatch.setattr(store, "SHARD", 16)


@pytest.fixture
def run_script(image_folder, tmp_path, monkeypatch):
    """Runs tests/toy_train.py in this process, through the launcher's own functions or as it stands; it saves into `name`."""
    script = Path(__file__).parent / "toy_train.py"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(ImageOps, "posterize", pillow._guarded)  # for the stock trainings, too

    def run(*flags, launcher=True, name="run", data=True):
        paths = ["--data-dir", image_folder, "--output", tmp_path / name] if data else []
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*paths, *flags])])
        module = train.load_script(script)
        if launcher:
            train.install(module)
        module.main()

    return run


@pytest.fixture
def run(run_script, tmp_path):
    """Runs the script with these flags, as it stands if none is of NFA, and returns what it has saved."""
    count = iter(range(1000))

    def run(*flags):
        name = str(next(count))
        run_script(*flags, launcher=any("nfa" in str(f) for f in flags), name=name)
        return torch.load(tmp_path / name / "seen.pt")

    return run


@pytest.fixture
def script_beside_timm(tmp_path):
    """A train.py beside a timm of its own, with a class that spawned workers have to find."""
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text(
        f"beside, __path__ = True, [{str(Path(timm.__file__).parent)!r}]\nexec(open({timm.__file__!r}).read())\n"
    )
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse, timm\nfrom torch.utils.data import DataLoader, Dataset\nparser = argparse.ArgumentParser()\n"
        "create_loader = None\nclass Own(Dataset):\n    def __len__(self):\n        return 3\n"
        "    def __getitem__(self, i):\n        return i\n"
        "def main():\n    loader = DataLoader(Own(), 3, num_workers=1, multiprocessing_context='spawn')\n"
        "    print(timm.beside, *[b.tolist() for b in loader])\nif __name__ == '__main__':\n    main()\n"
    )
    return script


TINY_AUTOENCODER = """
import os, time, torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.down, self.up = nn.Conv2d(3, 4, 8, 8), nn.ConvTranspose2d(4, 3, 8, 8)
    def encode(self, x):
        time.sleep(float(os.environ.get("SLEEP", 0)))
        return self.down(x)
    def decode(self, z):
        return self.up(z)

def load():
    return Tiny()

def other():
    return Tiny(1)
"""


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory):
    """The name of an autoencoder that makes latents (4, h / 8, w / 8); ":other" has other weights."""
    path = tmp_path_factory.mktemp("tiny") / "tiny_autoencoder_of_tests.py"
    path.write_text(TINY_AUTOENCODER)
    return f"{path}:load"
