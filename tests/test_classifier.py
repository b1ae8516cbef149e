"""The training loop of the classifiers: the paper's recipe, crops and flips, corruptions, a start from weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_model

from benchmarks.cifar.arms import Arm
from benchmarks.cifar.corruptions import CORRUPTIONS
from benchmarks.cifar.resnet import Recipe, make_classifier
from benchmarks.cifar.training import crop_and_flip, train
from train_flow.data import Images


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_recipe_is_the_papers():
    """Enescu & Sahbi, supplementary 3.2 and table 4."""
    r = Recipe()
    assert (r.model, r.epochs, r.batch_size, r.max_lr) == ("resnet18", 30, 128, 0.1)
    assert (r.momentum, r.weight_decay, r.crop, r.init) == (0.9, 5e-4, 4, "")
    model = make_classifier("resnet18", 10)
    assert model.conv1.weight.shape == (64, 3, 3, 3) and model.conv1.stride == (1, 1)
    assert model.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 512, 4, 4)


def test_arms_of_a_seed_see_the_same_crops(data):
    """A part that does nothing leaves training to the last bit as it was: arms differ in nothing else."""
    recipe = Recipe("resnet10_half", epochs=1, batch_size=16, bf16=False)
    weights = []
    for part in (
        {},
        {"levels": lambda levels, y, g: levels},
        {"before": lambda levels, y, g: levels},
    ):
        arm = Arm(**part)
        model, cost = train(data, arm, recipe, seed=3)
        weights.append(model.fc.weight)
        assert cost["images_seen"] == 48  # three full batches of the 60 images
    assert all(torch.equal(w, weights[0]) for w in weights)
    other = train(data, Arm(), recipe, seed=4)[0]
    assert not torch.equal(other.fc.weight, weights[0])


def test_crop_and_flip_is_that_of_torchvision(data):
    """Every result is some crop of the image padded by four black pixels, mirrored or not."""
    levels = data.levels[:8]
    out = crop_and_flip(levels, 4, generator())
    padded = F.pad(levels, (4, 4, 4, 4))
    flips = 0
    for image, source in zip(out, padded, strict=True):
        candidates = [(source[:, i : i + 32, j : j + 32], i, j) for i in range(9) for j in range(9)]
        straight = any(torch.equal(image, c) for c, _, _ in candidates)
        mirrored = any(torch.equal(image, c.flip(2)) for c, _, _ in candidates)
        assert straight or mirrored
        flips += mirrored
    assert 0 < flips < 8


def test_corruptions_corrupt(data):
    for name, corruption in CORRUPTIONS.items():
        torch.manual_seed(0)
        out = corruption(data.levels)
        assert out.shape == data.levels.shape and out.dtype == torch.uint8, name
        change = (out.float() - data.levels.float()).abs().mean()
        assert 1 < change < 100, f"{name} moves a pixel by {change:.1f} levels"


def test_a_classifier_starts_from_weights(data, tmp_path):
    """With no step to speak of, the body is that of the file and the head is new."""
    torch.manual_seed(0)
    saved = tmp_path / "some.safetensors"
    save_model(make_classifier("resnet10_half", 5), saved)
    few = {"epochs": 1, "batch_size": 8, "init": str(saved)}
    recipe = Recipe("resnet10_half", max_lr=1e-12, bf16=False, **few)
    model, _ = train(data.subset(torch.arange(8)), Arm(), recipe, seed=1)
    weights = load_file(saved)
    assert torch.equal(model.layer4[0].conv1.weight, weights["layer4.0.conv1.weight"])
    assert model.fc.weight.shape == (3, 256) and weights["fc.weight"].shape == (5, 256)
    with pytest.raises(ValueError, match="another model than this one: .*; take weights of this"):
        train(data, Arm(), Recipe("resnet10_quarter", **few), seed=1)
