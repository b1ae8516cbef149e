"""The bundled flows on real images: exact, bounded, small, and as good as their recorded reports say."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

import timm_nfaug as nfa
from timm_nfaug import pixels
from timm_nfaug.hub import BUNDLED, WEIGHTS_NAME
from train_flow.data import load_data
from train_flow.evaluate import evaluate

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
NAMES = nfa.list_flows(pretrained=True)


@pytest.fixture(scope="module")
def photos():
    """(80, 3, 32, 32) uint8 patches of scikit-learn's two photographs, at half their resolution."""
    patches = []
    for image in load_sample_images().images:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0).float()
        x = F.interpolate(x, scale_factor=0.5, mode="area").round().to(torch.uint8)[0]
        tiles = x.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
        patches.append(tiles[:40])
    return torch.cat(patches)


class EightTimes(torch.nn.Module):
    """Latents of 32 channels, eight times smaller each way, in the place of those of taef2."""

    def __init__(self):
        super().__init__()
        self.down = torch.nn.Conv2d(3, 32, 8, stride=8)
        self.up = torch.nn.ConvTranspose2d(32, 3, 8, stride=8)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


def needed_by(flow):
    return {"autoencoder": EightTimes()} if flow.config.latent else {}


def images_for(flow, photos):
    if flow.config.latent:
        return photos.repeat_interleave(4, 2).repeat_interleave(4, 3)[:16]
    if flow.config.input_size == (3, 32, 32):
        return photos
    return load_data("digits")[1].levels[:80]


def test_the_promised_flows_are_there():
    promised = {"conv_p4_small.cifar10", "linear.cifar10", "conv_p4_tiny.digits", "linear.taef2"}
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_exact_and_bounded(name, photos):
    flow = nfa.create_flow(name, pretrained=True)
    x = pixels.levels_to_model(images_for(flow, photos))
    y = torch.arange(len(x)) % flow.num_classes
    if flow.config.latent:
        x = torch.randn(len(x), *flow.config.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z, _ = flow(x)
        assert (
            flow.inverse(z) - x
        ).abs().max() <= 1e-4  # float32 through a dozen couplings; 1/78 of a level
        for strength in (0.25, 0.5, 1.0):
            g = torch.Generator().manual_seed(0)
            modes = min(32, flow.prior.num_modes)
            moved = flow.inverse(
                nfa.perturb(flow, z, y, strength=strength, modes=modes, generator=g)
            )
            # the range is 2 wide; without the bounded log-scale moves of thousands occur
            assert torch.isfinite(moved).all() and (moved - x).abs().max() <= 40 * strength
    settings = {"p": 1.0, "labels": "given"} | needed_by(flow)
    augment = nfa.NFAugment.from_pretrained(name, **settings)
    out = augment(images_for(flow, photos), y)[0]
    assert augment.fallbacks == 0 and (out != images_for(flow, photos)).flatten(1).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_files(name):
    folder = BUNDLED / name
    assert (folder / WEIGHTS_NAME).stat().st_size <= 6_000_000
    card = (folder / "README.md").read_text()
    assert f"# {name}" in card and "apache-2.0" in card
    assert ("bits per dim" in card) != (name == "linear.taef2")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log and log[-1]["final"]


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("cifar10")])
def test_recorded_report_is_of_this_file(name):
    report = json.loads((RESULTS / f"flow_{name}.json").read_text())
    found = report["results"]
    assert "CIFAR-10" in report["data"] and found["images"] == 10_000
    assert found["file_bytes"] == (BUNDLED / name / WEIGHTS_NAME).stat().st_size
    metrics = nfa.create_flow(name, pretrained=True).config.info["metrics"]
    assert found["class_accuracy"] == pytest.approx(
        metrics["class_accuracy"], abs=1e-3
    )  # other thread counts round otherwise
    assert found["bits_per_dim"] == pytest.approx(metrics["bits_per_dim"], abs=1e-3)
    assert found["round_trip_max"] <= 1e-4


def test_the_digits_flow_is_what_its_card_says():
    flow = nfa.create_flow("conv_p4_tiny.digits", pretrained=True)
    report = evaluate(flow, load_data("digits")[1])
    metrics = flow.config.info["metrics"]
    assert report["class_accuracy"] == pytest.approx(
        metrics["class_accuracy"], abs=0.006
    )  # two of 359 images
    assert report["bits_per_dim"] == pytest.approx(metrics["bits_per_dim"], abs=5e-3)
