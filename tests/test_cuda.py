"""What runs otherwise on a GPU gives what it gives on the CPU; skipped where there is none."""

import pytest
import torch

import timm_nfaug as nfa
from benchmarks.cifar.resnet import Recipe
from benchmarks.cifar.training import train
from benchmarks.evidence.arms import ENTRIES
from timm_nfaug import pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.moves import PCA
from train_flow.config import TrainConfig
from train_flow.data import Images
from train_flow.trainer import Trainer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def flow(small_flow):
    return small_flow.to(DEVICE)


def test_round_trip_and_codes(flow, small_flow, toy_images, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = pixels.levels_to_model(toy_images[0])
    cpu = nfa.ConditionalFlow(small_flow.config)
    cpu.load_state_dict({k: v.cpu() for k, v in small_flow.state_dict().items()})
    with torch.no_grad():
        z, log_det = flow(x.to(DEVICE))
        torch.testing.assert_close(flow.inverse(z).cpu(), x, atol=1e-4, rtol=0)
        wanted = cpu.eval()(x)
    torch.testing.assert_close(z.cpu(), wanted[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(log_det.cpu(), wanted[1], atol=1e-1, rtol=1e-4)


def test_moves_are_gathered(flow):
    y, noise = torch.arange(9, device=DEVICE) % 3, torch.randn(9, 4, device=DEVICE)
    move = PCA(4)
    by_class = move._by_class(flow, y, noise)
    torch.testing.assert_close(move.displacement(flow, y, noise), by_class)


def test_the_same_images_come_out(toy_images):
    levels, y = toy_images
    moved = []
    for device in ("cpu", DEVICE):
        augment = NFAugment.to_fit(
            nfa.create_flow("linear").to(device), 4, strength=0.5, p=0.5, labels="given"
        )
        augment.fit([(levels.to(device), y.to(device))], 3)
        moved.append(
            augment(levels.to(device), y.to(device), generator=torch.Generator().manual_seed(1))[
                0
            ].cpu()
        )
    assert (moved[0] != levels).any() and (moved[0].int() - moved[1].int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["randaugment+pooled", "cutmix"])
def test_a_classifier_trains(name, toy_images):
    data = Images(toy_images[0].to(DEVICE), toy_images[1].to(DEVICE), ["a", "b", "c"])
    arm = ENTRIES[name].make(data, ENTRIES[name].grid[0], None)
    model, cost = train(data, arm, Recipe("resnet10_quarter", 2, 16), 0, workers=1)
    assert cost["images_seen"] == 96 and all(p.isfinite().all() for p in model.parameters())


def test_a_flow_trains_and_goes_on(toy_images, tmp_path):
    data = Images(*toy_images, ["a", "b", "c"])
    config = TrainConfig(
        flow="conv_p4_tiny",
        image_size=32,
        steps=6,
        batch_size=16,
        gaussian_every=2,
        net_dtype="bfloat16",
    )
    first = Trainer(config, data, data, tmp_path, DEVICE)
    assert not first.run(time_limit=-1)
    first.close()
    again = Trainer(config, data, data, tmp_path, DEVICE, resume=True)
    assert again.run() and again.step == 6
    assert again.finish()["bits_per_dim"] < 9
