"""The user's dataset and loader are read for a fit in workers alone, and come back as they were."""

import argparse
import multiprocessing
import shutil

import pytest
import torch
from PIL import Image
from records import Filled, Records, Stream, Zipped, fill, image, images, write
from timm.data import create_loader
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset
from torchvision.datasets import ImageFolder, VisionDataset
from torchvision.transforms.v2 import PILToTensor
from torchvision.transforms.v2.functional import to_pil_image

import timm_nfaug as nfa
from timm_nfaug.data.transforms import without_transform
from timm_nfaug.integration import NFAError, NFALoader, loader_factory
from timm_nfaug.reading import WorkerLoader

COUNT = 2000


def flags(*words):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    return parser.parse_args(["--aug", "nfa-k2-p1-lgiven", *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write(path := tmp_path_factory.mktemp("records"), COUNT)
    return path


def moved_as_they_should_be(wrapped, count=COUNT, size=100):
    """Whether each image of an epoch is what NFA makes of the right record."""
    x, y = images(count), torch.arange(count) % 4
    wanted = NFALoader(list(zip(x.split(size), y.split(size))), wrapped.augment, None, None)
    found = [(a, b, c, d) for (a, b), (c, d) in zip(wrapped, wanted, strict=True)]
    assert all(torch.equal(b, d) for _, b, _, d in found)
    return all(torch.equal(a, c) for a, _, c, _ in found)


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_file_that_is_opened_at_the_first_image_is_no_two_workers(folder, start):
    data = Records(folder / "records.bin", COUNT)
    multiprocessing.get_context(start).set_forkserver_preload(["torch"])  # which takes seconds
    loader = DataLoader(data, 100, num_workers=2, multiprocessing_context=start)
    wrapped = nfa.wrap_loader(loader, flags(), num_classes=4)
    assert data.file is None, "it was read in the main process"
    assert moved_as_they_should_be(wrapped) and data.file is None
    by_hand = nfa.NFAugment.from_data(
        [(images(COUNT), torch.arange(COUNT) % 4)],
        4,
        (3, 8, 8),
        modes=2,
        strength=0.5,
        labels="given",
    )
    torch.testing.assert_close(
        wrapped.augment.flow.prior.mode_std, by_hand.flow.prior.mode_std, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_zip_file(folder, workers):
    data = Zipped(folder / "records.zip", 200)
    wrapped = nfa.wrap_loader(DataLoader(data, 100, num_workers=workers), flags(), num_classes=4)
    assert data.file is None
    assert moved_as_they_should_be(wrapped, 200)


class Pictures(VisionDataset):
    """Of torchvision's kind, so that its transform is replaced on a copy; opens its file late."""

    def __init__(self, records, transform=None):
        super().__init__("", transform=transform)
        self.records, self.calls = records, 0

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        self.calls += 1
        x, k = self.records[i]
        return self.transform(to_pil_image(x)), k  # always called


def as_levels(picture):
    return (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        .view(8, 8, 3)
        .movedim(2, 0)
    )


def test_torchvisions_and_timms_loaders(folder):
    for make in (DataLoader, None):
        data = Pictures(Records(folder / "records.bin", 200), as_levels)
        if make:
            nfa.wrap_loader(DataLoader(data, 100), flags(), num_classes=4)
        else:
            unfitted = nfa.NFAugment.to_fit(
                nfa.create_flow("linear", input_size=(3, 8, 8)), p=1.0, labels="given"
            )
            create = loader_factory(create_loader, unfitted, fit=True, num_classes=4)
            create(
                data, (3, 8, 8), 100, is_training=True, num_workers=0, persistent_workers=False,
                device=torch.device("cpu"),
            )  # fmt: skip
        assert data.calls == 0 and data.records.file is None


def test_workers_are_those_of_the_loader():
    """A dataset that `worker_init_fn` fills; without it there is nothing to read."""
    data = Filled(200)
    loader = DataLoader(data, 100, num_workers=2, worker_init_fn=fill)
    wrapped = nfa.wrap_loader(loader, flags(), num_classes=4)
    assert data.own is None and moved_as_they_should_be(wrapped, 200)
    with pytest.raises(
        NFAError, match="Filled cannot be read to find modes: TypeError.*fit_dataset="
    ):
        nfa.wrap_loader(DataLoader(data, 100, num_workers=2), flags(), num_classes=4)
    like = DataLoader(data, 100, num_workers=1, multiprocessing_context="spawn", timeout=7)
    own = WorkerLoader(data, like)
    assert own.multiprocessing_context.get_start_method() == "spawn" and own.timeout == 7
    assert own.num_workers == 1 and not own.pin_memory and own.generator is not like.generator


def test_a_stream_is_not_advanced(folder):
    """One that gives its images once, and the loader's own generator."""
    data, g = Stream(folder / "records.bin", 400), torch.Generator().manual_seed(3)
    state = g.get_state()
    loader = DataLoader(data, 100, generator=g)
    wrapped = nfa.wrap_loader(loader, flags(), num_classes=4)
    assert data.records.file is None and torch.equal(g.get_state(), state)
    assert moved_as_they_should_be(wrapped, 400)


def test_a_loader_given_for_the_fit_keeps_its_part_and_its_generator(folder):
    data, g = Records(folder / "records.bin", 400), torch.Generator().manual_seed(3)
    part = DataLoader(data, 50, sampler=SubsetRandomSampler(range(100), generator=g))
    state, own = g.get_state(), TensorDataset(images(8), torch.arange(8) % 4)
    wrapped = nfa.wrap_loader(DataLoader(own, 4), flags(), num_classes=4, fit_dataset=part)
    assert torch.equal(g.get_state(), state) and data.file is None
    by_hand = nfa.NFAugment.from_data(
        [(images(100), torch.arange(100) % 4)], 4, (3, 8, 8), modes=2, strength=0.5, labels="given"
    )
    torch.testing.assert_close(
        wrapped.augment.flow.prior.mode_std, by_hand.flow.prior.mode_std, rtol=1e-4, atol=1e-4
    )


class Pairs(IterableDataset):
    """(PIL image, label) pairs, or batches of tensors."""

    def __init__(self, pictures):
        self.pictures, self.opened = pictures, False

    def __iter__(self):
        self.opened = True
        if self.pictures:
            yield from (
                (Image.fromarray(image(i).permute(1, 2, 0).numpy()), i % 4) for i in range(40)
            )
        else:
            yield from zip(images(40).split(10), (torch.arange(40) % 4).split(10))


@pytest.mark.parametrize("pictures", [True, False])
def test_a_stream_given_for_the_fit_is_read_as_what_it_gives(pictures):
    data, own = Pairs(pictures), TensorDataset(images(8), torch.arange(8) % 4)
    wrapped = nfa.wrap_loader(DataLoader(own, 4), flags(), num_classes=4, fit_dataset=data)
    assert not data.opened
    by_hand = nfa.NFAugment.from_data(
        [(images(40), torch.arange(40) % 4)], 4, (3, 8, 8), modes=2, strength=0.5, labels="given"
    )
    torch.testing.assert_close(
        wrapped.augment.flow.prior.mode_std, by_hand.flow.prior.mode_std, rtol=1e-4, atol=1e-4
    )


def test_what_no_spawned_worker_can_be_given_is_named(folder):
    data = Records(folder / "records.bin", 100)
    data.held = lambda: None
    loader = DataLoader(data, 50, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(
        NFAError, match="Records cannot be sent to the worker.*a fit as fit_dataset="
    ):
        nfa.wrap_loader(loader, flags(), num_classes=4)


def test_a_transform_that_is_always_called(folder):
    data = Pictures(Records(folder / "records.bin", 8), as_levels)
    plain = without_transform(data)
    assert plain[3][0].tobytes() == to_pil_image(image(3)).tobytes()
    assert data.transform is as_levels is data.transforms.transform


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_by_a_fit(image_folder, tmp_path, workers):
    """Whatever the order; an error of another kind comes as it is, without a search."""
    shutil.copytree(image_folder / "train", tmp_path / "data")
    (bad := tmp_path / "data" / "b" / "030.png").write_bytes(bad.read_bytes()[:-400])
    folder = ImageFolder(str(tmp_path / "data"), PILToTensor())
    name = rf"image 30 \({bad}\) cannot be read: OSError: image file is truncated"
    loader = DataLoader(folder, 7, shuffle=True, num_workers=workers)
    with pytest.raises(OSError, match=name + ".*leave it out"):
        nfa.NFAugment.from_data(loader, labels="given")
    with pytest.raises(NFAError, match=name):
        nfa.wrap_loader(loader, flags())
    folder.transform = lambda image: torch.zeros(3, 8, len(seen.append(0) or seen))
    seen = []
    in_order = DataLoader(folder, 7, num_workers=workers)  # so that the other error comes first
    with pytest.raises(RuntimeError, match="stack"):
        nfa.NFAugment.from_data(in_order, labels="given")
    assert len(seen) == 7 * (not workers)
