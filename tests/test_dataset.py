"""NFAugmentedDataset: deterministic copies for any number and kind of workers, and under timm's loader."""

import numpy as np
import pytest
import torch
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as TF

import timm_nfaug as nfa
from timm_nfaug.change import Change
from timm_nfaug.data.transforms import as_stored


def to_tensor(image):
    return TF.pil_to_tensor(image)


@pytest.fixture
def augment(small_flow):
    return nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")


def everything(dataset, **kwargs):
    return torch.cat([x for x, _ in DataLoader(dataset, batch_size=16, **kwargs)])


def test_originals_first_then_copies(image_folder, augment):
    base = ImageFolder(image_folder / "train", transform=to_tensor)
    dataset = nfa.NFAugmentedDataset(base, augment, copies=2)
    assert len(dataset) == 180 and dataset.classes == ["a", "b", "c"]
    for i in (0, 59):
        for copy in range(3):
            image, label = dataset[i + 60 * copy]
            assert label == base[i][1]
            assert torch.equal(image, base[i][0]) == (copy == 0)
    assert base.transform is to_tensor  # the caller's dataset is as it was
    assert torch.equal(dataset[-1][0], dataset[179][0])
    with pytest.raises(IndexError):
        dataset[180]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_same_for_any_worker_count(image_folder, augment, context):
    dataset = nfa.NFAugmentedDataset(
        ImageFolder(image_folder / "val", transform=to_tensor), augment, copies=1, seed=4
    )
    alone = everything(dataset)
    assert torch.equal(alone, everything(dataset, num_workers=2, multiprocessing_context=context))


def test_epochs_reach_living_workers(image_folder, augment):
    dataset = nfa.NFAugmentedDataset(
        ImageFolder(image_folder / "val", transform=to_tensor), augment, copies=1
    )
    loader = DataLoader(dataset, batch_size=16, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([x for x, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    changed = (epochs[0] != epochs[1]).flatten(1).any(1)
    assert not changed[:24].any() and changed[24:].all()  # originals stay, copies are drawn anew


def test_a_transform_that_is_handed_on_moves_out_of_a_copy_alone(image_folder, augment):
    class Relabelled(Dataset):
        def __init__(self, inner):
            self.inner = inner

        transform = property(
            lambda self: self.inner.transform, lambda self, t: setattr(self.inner, "transform", t)
        )

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, i):
            return self.inner[i][0], 2

    inner, crop = ImageDataset(str(image_folder / "val")), lambda image: image.resize((8, 8))
    inner.transform = crop
    base = Relabelled(Relabelled(inner))
    dataset = nfa.NFAugmentedDataset(base, augment)
    assert (
        base.transform is inner.transform is dataset.transform is crop
        and dataset.base.transform is as_stored
    )
    assert (
        dataset.base[0][0].size == (32, 32)
        and dataset[-1][0].size == base[0][0].size == (8, 8)
        and dataset[-1][1] == 2
    )


def test_under_timms_loader(image_folder, augment):
    base = ImageDataset(str(image_folder / "train"))
    dataset = nfa.NFAugmentedDataset(base, augment, copies=1)
    loader = create_loader(
        dataset, (3, 32, 32), 30, is_training=True, hflip=0.0, scale=(1, 1), ratio=(1, 1), color_jitter=0.0,
        num_workers=1, device=torch.device("cpu"), mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    seen = torch.cat([y for _, y in loader])
    assert len(seen) == 120 and torch.bincount(seen).tolist() == [40, 40, 40]
    assert base.transform is None and dataset.transform is not None
    assert (
        dataset.filename(60, basename=True)
        == dataset.filename(0, basename=True)
        == base.filename(0, basename=True)
    )
    assert len(dataset.filenames()) == 120


def test_cache_is_written_once_and_read_from_then_on(image_folder, augment, tmp_path):
    base = ImageFolder(image_folder / "val")
    free = nfa.NFAugmentedDataset(base, augment, copies=1, seed=1)
    kept = nfa.NFAugmentedDataset(base, augment, copies=1, seed=1, cache=tmp_path)
    first = [np.asarray(kept[i][0]) for i in range(24, 48)]
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == 24 and not list(tmp_path.rglob(".*"))
    assert all(np.array_equal(np.asarray(free[i][0]), first[i - 24]) for i in range(24, 48))
    stamps = [f.stat().st_mtime_ns for f in files]
    again = nfa.NFAugmentedDataset(base, augment, copies=1, seed=1, cache=tmp_path)
    assert all(np.array_equal(np.asarray(again[i][0]), first[i - 24]) for i in range(24, 48))
    assert stamps == [f.stat().st_mtime_ns for f in files]
    other = augment.replace(strength=0.25)
    nfa.NFAugmentedDataset(base, other, copies=1, seed=1, cache=tmp_path)[24]
    assert len(list(tmp_path.iterdir())) == 2  # other settings, another folder


def test_a_cache_never_gives_another_data_sets_images(image_folder, augment, tmp_path):
    """Neither those of other images, nor of other labels, nor of the same images in another order or number."""
    whole = [ImageFolder(image_folder / "val")[i] for i in (0, 10, 20)]
    other_labels = [(image, (k + 1) % 3) for image, k in whole]
    for base, copies in (
        (whole, 2),
        (whole[::-1], 2),
        (other_labels, 1),
        (whole[:2], 2),
        (whole[1:], 2),
    ):
        free = nfa.NFAugmentedDataset(base, augment, copies=copies, seed=1)
        kept = nfa.NFAugmentedDataset(base, augment, copies=copies, seed=1, cache=tmp_path)
        assert all(
            np.array_equal(np.asarray(free[i][0]), np.asarray(kept[i][0])) for i in range(len(kept))
        )


class Nothing(Change):
    size, num_classes, noise_size = (3, 1, 1), 1, 1

    def change(self, images, y, noise):
        return torch.zeros(len(noise), *self.size)


def test_errors(image_folder, augment, tmp_path):
    with pytest.raises(ValueError, match="copies"):
        nfa.NFAugmentedDataset(ImageFolder(image_folder / "val"), augment, copies=-1)
    with pytest.raises(TypeError, match="map-style"):
        nfa.NFAugmentedDataset(iter([]), augment)
    own = nfa.NFAugment.from_change(Nothing(), labels="none")
    with pytest.raises(TypeError, match="kept for changes by a flow; leave cache out"):
        nfa.NFAugmentedDataset(ImageFolder(image_folder / "val"), own, cache=tmp_path)
