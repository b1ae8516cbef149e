"""The recipes of docs/loops.md, as they stand there, each with its library."""

import argparse
import sys

import datasets
import pytest
import recipes
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

import timm_nfaug as nfa


def run_recipe(name: str, **given) -> dict:
    """Runs the code under a recipe's mark with these names defined; returns what it defined."""
    names = {
        "argparse": argparse,
        "torch": torch,
        "F": F,
        "DataLoader": DataLoader,
        "v2": v2,
        "epochs": 2,
        **given,
    }
    return recipes.run_recipe("loops.md", name, names)


class Seen(nn.Module):
    """A classifier that remembers the batches it was trained on."""

    def __init__(self):
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=3)
        self.batches = []

    def forward(self, x):
        self.batches.append(x.detach().clone())
        return self.net(x)


@pytest.fixture
def dataset(toy_images):
    levels, labels = toy_images
    return TensorDataset(levels.float() / 255, labels)


def changed(seen: Seen, dataset) -> float:
    """The share of the images a model saw that are none of the dataset's."""
    x = torch.cat(seen.batches).flatten(1)
    assert len(x) == 120, "two epochs of 60 images"
    own, x = ((v * 255).round().byte().flatten(1).tolist() for v in (dataset.tensors[0], x))
    return sum(row not in own for row in x) / len(x)


def test_loop(dataset, monkeypatch):
    dataset.classes = ["a", "b", "c"]
    for flags, share in (
        (["--aug", "nfa-p1-lgiven"], 1.0),
        (["--aug", "nfa-p0.5-lgiven"], 0.5),
        ([], 0.0),
    ):
        monkeypatch.setattr(sys, "argv", ["mine.py", *flags])
        model = Seen()
        before = [p.clone() for p in model.parameters()]
        run_recipe(
            "loop",
            model=model,
            dataset=dataset,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
        assert abs(changed(model, dataset) - share) < 0.2 and any(
            not torch.equal(a, b) for a, b in zip(before, model.parameters())
        )


class Noisy(Dataset):
    """A dataset with a random transform of its own, which no other can take the place of."""

    def __init__(self, plain):
        self.plain = plain

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, i):
        image, label = self.plain[i]
        return (image + 0.1 * torch.rand(())).clamp(0, 1), label


def test_fit_dataset(dataset):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    dataset.classes, noisy = ["a", "b", "c"], Noisy(dataset)
    names = run_recipe(
        "fit_dataset",
        nfa=nfa,
        loader=DataLoader(noisy, batch_size=20),
        plain_dataset=dataset,
        args=parser.parse_args(["--aug", "nfa-p1-lgiven"]),
    )
    plain = nfa.NFAugment.from_data(DataLoader(dataset, batch_size=20), labels="given")
    found, wanted = (a.flow.prior.mode_std for a in (names["loader"].augment, plain))
    # batches of other sizes add up in another order; the noise would change them by percents
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert sum(len(images) for images, _ in names["loader"]) == 60


def test_accelerate(dataset):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    dataset.classes, model = ["a", "b", "c"], Seen()
    optimizer, before = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        [p.clone() for p in model.parameters()],
    )
    run_recipe(
        "accelerate",
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        args=parser.parse_args(["--aug", "nfa-p1-lgiven"]),
    )
    assert changed(model, dataset) == 1 and any(
        not torch.equal(a, b) for a, b in zip(before, model.parameters())
    )


def test_lightning(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it keeps its logs
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    dataset.classes, model = ["a", "b", "c"], Seen()
    run_recipe(
        "lightning",
        model=model,
        dataset=dataset,
        args=parser.parse_args(["--aug", "nfa-p1-lgiven"]),
    )
    assert changed(model, dataset) == 1
    half = len(model.batches) // 2
    assert not torch.equal(
        *(torch.cat(model.batches[i : i + half]).sum((1, 2, 3)).sort().values for i in (0, half))
    )


def test_trainer(dataset, tmp_path):
    rows = [
        Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())
        for x in dataset.tensors[0]
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    train_set = datasets.Dataset.from_dict(
        {"image": rows, "label": dataset.tensors[1].tolist()}, features=features
    )
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_labels=3,
    )  # fmt: skip
    model, batches = transformers.ViTForImageClassification(config), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(kwargs["pixel_values"]), with_kwargs=True
    )
    run_recipe("trainer", model=model, train_set=train_set, out=str(tmp_path))
    seen = Seen()
    seen.batches = batches
    assert 0.3 < changed(seen, dataset) < 0.7, "p is 0.5 by default"
