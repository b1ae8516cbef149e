"""Mistakes that a newcomer makes: each gets a message that says what is wrong and what to do."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import timm_nfaug as nfa
from timm_nfaug import NFAError, NFAugment, NFAugmentedDataset, NFAWarning, pictures, preview
from timm_nfaug._utils.files import make_directory
from train_flow import __main__ as train_flow

X = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
SIZE = (3, 8, 8)


class Named(TensorDataset):
    """Images that know their three classes."""

    classes = ("a", "b", "c")


class Stream(IterableDataset):
    """A stream that says its length, as some do."""

    def __iter__(self):
        return zip(X, Y, strict=True)

    def __len__(self):
        return len(X)


LOADER = DataLoader(Named(X, Y), 8)


def fit(loader=LOADER, num_classes=3, **settings):
    return NFAugment.from_data(loader, num_classes, SIZE, **{"labels": "given"} | settings)


def flags(*given):
    nfa.add_args(parser := argparse.ArgumentParser())
    return parser.parse_args(given)


def wrap(*given, loader=LOADER, **settings):
    return nfa.wrap_loader(loader, flags(*given), **settings)


def ended():
    list(batches := iter(LOADER))
    return batches


def cifar_bits(x):
    flow = nfa.create_flow("linear.cifar10", pretrained=True)
    return flow.bits_per_dim(x, torch.tensor([0]))


MISTAKES = {
    # what is no loader
    "images and labels": (lambda: fit(X, Y), TypeError, r"Tensor, .*\[\(images, labels\)\]"),
    "one batch": (lambda: fit((X, Y)), TypeError, r"list makes one batch"),
    "arrays": (lambda: fit(X.numpy()), TypeError, r"loader of batches, got ndarray"),
    "a path": (lambda: fit("data/train"), TypeError, r"a path, 'data/train': .*ImageFolder"),
    "an ended iterator": (lambda: fit(ended()), NFAError, r"gave no images: .*has ended"),
    "no images": (lambda: fit([], labels="none"), NFAError, r"gave no images: it is empty"),
    "fit(images, labels)": (lambda: fit().fit(X, Y), TypeError, r"expected a loader of batches"),
    # ranges and labels
    "mean of levels": (
        lambda: fit(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)),
        ValueError,
        r"of images in \[0, 1\], got mean .*divide .* by 255",
    ),
    "levels with mean and std": (
        lambda: fit([(X * 255, Y)], mean=0.5, std=0.25),
        ValueError,
        r"in \[0, 1\] once normalisation by mean and std is undone, got .*mean= and std=",
    ),
    "labels from 1": (lambda: fit([(X, Y + 1)]), ValueError, r"1\.\.3; labels count from 0: sub"),
    "flat images": (
        lambda: fit()(X.flatten(1), Y),
        TypeError,
        r"found no image .* among: Tensor \(24, 192\), Tensor \(24,\)",
    ),
    "levels in a density": (
        lambda: cifar_bits(torch.full((1, 3, 32, 32), 255.0)),
        ValueError,
        r"in \[-1, 1\], got 255 to 255: pixels\.levels_to_model",
    ),
    # settings
    "a name for a flow": (
        lambda: NFAugment("linear", labels="given"),
        TypeError,
        r"from_data\(loader\) and",
    ),
    "strength set": (lambda: setattr(fit(), "strength", 1), AttributeError, r"replace\(strength="),
    "modes set": (lambda: setattr(fit(), "modes", 4), AttributeError, r"replace\(modes="),
    # wrap_loader
    "wrapped twice": (
        lambda: wrap("--aug", "nfa-lgiven", loader=wrap("--aug", "nfa-lgiven")),
        NFAError,
        r"has NFA already, .*wrap it once",
    ),
    "a dataset wrapped": (
        lambda: wrap("--aug", "nfa-lgiven", loader=LOADER.dataset),
        TypeError,
        r"got a dataset, Named: DataLoader\(dataset",
    ),
    "arguments exchanged": (
        lambda: nfa.wrap_loader(flags("--aug", "nfa-lgiven"), LOADER),
        NFAError,
        r"expected wrap_loader\(loader, args\).*got a DataLoader",
    ),
    "flags in a dict": (
        lambda: nfa.wrap_loader(LOADER, {"aug": "nfa-lgiven"}),
        NFAError,
        r"got a dict; .*argparse\.Namespace\(\*\*flags\)",
    ),
    "the string for flags": (lambda: nfa.wrap_loader(LOADER, "nfa-lgiven"), NFAError, r"got a str"),
    "a flow without --aug": (
        lambda: wrap("--nfa-flow", "conv_p4_small.cifar10"),
        NFAError,
        r"--nfa-flow does nothing without --aug: add --aug nfa",
    ),
    "a fit without --aug": (lambda: wrap("--nfa-fit"), NFAError, r"--nfa-fit does nothing without"),
    "a path to fit to": (
        lambda: wrap("--aug", "nfa-lgiven", fit_dataset="data/train"),
        NFAError,
        r"got the path data/train: ImageFolder",
    ),
    "a rate of erasing": (
        lambda: wrap("--aug", "nfa-lgiven", erasing=0.5),
        NFAError,
        r"erasing takes timm's RandomErasing\(\.\.\.\), got 0\.5",
    ),
    # datasets
    "a string for NFAugment": (
        lambda: NFAugmentedDataset(LOADER.dataset, "nfa-s0.5-lgiven"),
        TypeError,
        r"expected an NFAugment, got str; NFAugment\.from_data",
    ),
    "a loader for a dataset": (
        lambda: NFAugmentedDataset(LOADER, fit()),
        TypeError,
        r"got DataLoader; give the dataset of a loader",
    ),
    "a stream for a dataset": (
        lambda: NFAugmentedDataset(Stream(), fit()),
        TypeError,
        r"got Stream; .*for a stream put NFAugment into its transform",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_the_remedy(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("text", ["nfa-s9-lgiven", "nfa-s50-lnone"])
def test_a_strength_that_ruins_images_is_said(text):
    with pytest.warns(NFAWarning, match=r"strength \d+ moves images by .*0\.5 is the default"):
        wrap("--aug", text)


def test_a_checkpoint_is_no_flow(tmp_path):
    (checkpoint := tmp_path / "checkpoint.pt").write_bytes(b"weights")
    for name in (str(checkpoint), checkpoint):
        with pytest.raises(ValueError, match=r"is a file; .*config\.json"):
            NFAugment.from_pretrained(name, labels="given")


def test_the_directory_of_a_training_leads_to_its_flow(tmp_path):
    flow = nfa.create_flow("linear", input_size=SIZE)
    flow.save_pretrained(tmp_path / "flow")
    with pytest.raises(FileNotFoundError, match=rf"the flow is {tmp_path / 'flow'}"):
        NFAugment.from_pretrained(tmp_path, labels="given")


def test_a_file_is_no_directory(tmp_path):
    (file := tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="out is a file; name a directory"):
        make_directory(file)


def test_a_preview_of_other_classes_does_not_ask_for_labels(small_flow, recwarn):
    image = Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))
    pictures.preview_augmentation(small_flow, [(image, None)], [0.5])
    assert not [w for w in recwarn if issubclass(w.category, NFAWarning)]


def test_a_preview_names_the_image_that_it_cannot_read(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no image")
    given = ["--flow", "linear", "--images", str(tmp_path), "--out", str(tmp_path / "p.png")]
    with pytest.raises(SystemExit):
        preview.main(given)
    said = capsys.readouterr().err
    assert "x.png" in said
    assert "fit_dataset" not in said  # which no preview takes


def test_resuming_in_another_directory_is_said(tmp_path, caplog):
    given = ["--config", "conv_p4_tiny.digits", "--out", str(tmp_path), "--device", "cpu"]
    assert train_flow.main([*given, "--resume", "--time-limit", "0"]) == 0
    assert f"nothing to resume in {tmp_path}: starts at step 0" in caplog.text
