"""A training hears that NFA is on, what it left alone, and what it cannot take; never nothing."""

import argparse
import warnings

import numpy as np
import pytest
import torch
from records import Stream, write
from timm.data import AugMixDataset, create_loader
from torch.utils.data import DataLoader, TensorDataset, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import to_pil_image

import timm_nfaug as nfa
from timm_nfaug.integration import NFAError, loader_factory
from timm_nfaug.integration import fit as timm_fit


def flags(*words, **more):
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    return argparse.Namespace(
        **vars(parser.parse_args(["--aug", "nfa-k2-p1-lgiven", *words])), **more
    )


def said(run):
    """The warnings of NFA that `run` ends in, in order."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in found if issubclass(w.category, nfa.NFAWarning)]


ON = {
    "linear": ([], "flow linear, modes of 3 classes at 3 x 32 x 32, space linear, s 0.5, k 4, p 1, m pca, "
               "place batch, labels given"),
    "usual": (["--aug", "nfa-s0.2-k3-p0.5"], "flow cosine, modes of no images at 3 x 32 x 32, space "
              "cosine, s 0.2, k 3, p 0.5, m pca, place batch, labels none"),
    "pooled": (["--aug", "nfa-s0.2-k3-p0.5-lnone", "--nfa-flow", "linear"],
               "flow linear, modes of all images at 3 x 32 x 32, space "
               "linear, s 0.2, k 3, p 0.5, m pca, place batch, labels none"),
    "deep": (["--nfa-flow", "{flow}"], "flow conv_p4_tiny, modes of 3 classes at 3 x 32 x 32, space deep, "
             "s 0.5, k 4, p 1, m pca, place batch, labels given"),
    "workers": (["--nfa-flow", "{flow}", "--nfa-place", "dataset"], "place dataset, labels given"),
    "cache": (["--nfa-flow", "{flow}", "--nfa-cache", "{cache}"], "place cache {cache}, labels given"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ON)
def test_one_line_says_that_nfa_is_on(run_script, flow_dir, tmp_path, caplog, kind):
    words, line = ON[kind]
    names = {"flow": flow_dir, "cache": tmp_path / "cache"}
    with caplog.at_level("INFO"):
        run_script("--aug", "nfa-s0.5-k4-p1-lgiven", *(w.format(**names) for w in words))
    lines = [m for m in caplog.messages if m.startswith("NFA on:")]
    assert len(lines) == 1 and lines[0].endswith(line.format(**names))


def test_the_line_is_heard_where_only_warnings_are_logged(toy_images, caplog, capsys):
    loader = DataLoader(TensorDataset(*toy_images), 20)
    with caplog.at_level("WARNING"):
        nfa.wrap_loader(loader, flags(), num_classes=3)
    assert not caplog.messages and capsys.readouterr().err.startswith("NFA on: flow linear")


def test_no_aug_says_that_nfa_is_off(run_script, caplog):
    with caplog.at_level("INFO"):
        run_script("--aug", "nfa-lgiven", "--no-aug")
    assert [m for m in caplog.messages if "NFA" in m] == ["NFA off: --no-aug switches it off, too"]


def test_a_stream_sorted_by_class(tmp_path, monkeypatch):
    """Of which the fit sees the first class alone: said at the fit, counted at the epoch's end."""
    write(tmp_path, 400)
    monkeypatch.setattr(timm_fit, "FIT_IMAGES", 16)
    loader = DataLoader(Stream(tmp_path / "records.bin", 400, by_class=True), 100)
    with pytest.raises(NFAError, match="3 of 4 classes.*strict"):
        nfa.wrap_loader(loader, flags("--nfa-strict"), num_classes=4)
    with pytest.warns(nfa.NFAWarning, match=r"3 of 4 classes \(1, 2, 3\) have no modes: give more"):
        wrapped = nfa.wrap_loader(loader, flags(), num_classes=4)
    (end,) = said(lambda: list(wrapped))
    assert end.startswith(
        "epoch 0: NFA left 300 of 400 images as they were (75.0%): 300 for no modes; "
    )
    assert "-lnone" in end and "--nfa-strict" in end


@pytest.fixture
def lacking(small_flow, tmp_path):
    """A flow's directory, of whose classes a, b and c the last has no modes."""
    small_flow.prior.mode_std[2] = 0.0
    return small_flow.save_pretrained(tmp_path / "lacking")


def test_each_epoch_counts_its_own_images(lacking, toy_images):
    """And says nothing where 1% or less stay as they are."""
    levels, y = toy_images
    args = flags("--nfa-flow", str(lacking))
    whole = nfa.wrap_loader(DataLoader(TensorDataset(levels, y), 20), args)
    first, second = said(lambda: list(whole)), said(lambda: list(whole))
    assert len(first) == 2 and first[0].startswith("20 of 20 images came back unchanged: 1 of 3")
    counted = "NFA left 20 of 60 images as they were (33.3%): 20 for no modes"
    assert first[1].startswith(f"epoch 0: {counted}")
    assert len(second) == 1 and second[0].startswith(f"epoch 1: {counted}")
    few = torch.cat([torch.zeros(99, dtype=torch.int64), torch.tensor([2])])
    data = TensorDataset(levels[:1].expand(100, -1, -1, -1), few)
    assert len(said(lambda: list(nfa.wrap_loader(DataLoader(data, 50), args)))) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_workers_leave_alone_are_counted(lacking, image_folder, workers):
    augment = nfa.nf_augment_transform("nfa-k4-p1-lgiven", str(lacking))
    loader = loader_factory(create_loader, augment, place="dataset")(
        ImageFolder(str(image_folder / "train")), (3, 32, 32), 20, is_training=True, num_workers=workers,
        persistent_workers=workers > 0, device=torch.device("cpu"),
    )  # fmt: skip
    for epoch in (0, 1):
        end = said(lambda: list(loader))[-1]
        assert end.startswith(
            f"epoch {epoch}: NFA left 20 of 60 images as they were (33.3%): 20 for"
        )


class Counted:
    """Images (PIL), whose readers note how many they are."""

    def __init__(self, folder):
        self.folder, self.transform = folder, None

    def __len__(self):
        return 40

    def __getitem__(self, i):
        worker = get_worker_info()
        (self.folder / f"{worker.id} of {worker.num_workers}").touch()
        image = to_pil_image(torch.full((3, 32, 32), i, dtype=torch.uint8))
        return (image if self.transform is None else self.transform(image)), i % 3


def test_a_cache_is_made_by_the_loaders_workers_and_its_errors_are_one_line(flow_dir, tmp_path):
    (seen := tmp_path / "seen").mkdir()
    augment = nfa.nf_augment_transform("nfa-k2-p1-lgiven", str(flow_dir))
    loader = loader_factory(create_loader, augment, cache=str(tmp_path / "cache"))(
        data := Counted(seen), (3, 32, 32), 10, is_training=True, num_workers=2, device=torch.device("cpu"),
        persistent_workers=False,
    )  # fmt: skip
    assert {p.name for p in seen.iterdir()} <= {"0 of 2", "1 of 2"} and data.transform is None
    loader.dataset.base = [(to_pil_image(torch.full((3, 32, 32), 7, dtype=torch.uint8)), 1)] * 40
    with pytest.raises(NFAError, match="is not what the cache in .* was made from") as e:
        list(loader)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("place", ["batch", "dataset"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_strict_ends_a_launched_training_with_one_line(run_script, lacking, place, workers):
    words = [
        "--aug",
        "nfa-k4-p1-lgiven",
        "--nfa-flow",
        lacking,
        "--nfa-place",
        place,
        "-j",
        workers,
    ]
    with pytest.raises(SystemExit) as e:
        run_script(*words, "--nfa-strict")
    assert e.value.code.startswith("error: ") and "came back unchanged" in e.value.code
    assert "\n" not in e.value.code and "Traceback" not in e.value.code


def test_what_ends_a_launched_training_before_it_starts(run_script, flow_dir, tmp_path):
    """One line and no 0: a damaged flow, one of other classes, and a dataset that cannot be read."""
    (tmp_path / "cut").mkdir()
    for file in flow_dir.iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:-100])
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"no image")
    broken = ["--data-dir", tmp_path / "data", "--output", tmp_path]
    for words, message in (
        (["--nfa-flow", tmp_path / "cut"], "cut"),
        (["--nfa-flow", "conv_p4_tiny.digits"], "the flow knows the classes"),
        ([*broken, "--num-classes", "1"], "cannot be read to find modes"),
    ):
        with pytest.raises(SystemExit) as e:
            run_script("--aug", "nfa-k4-lgiven", *words)
        assert str(e.value.code).startswith("error: ") and message in e.value.code
        assert "\n" not in e.value.code


def labelled(labels):
    return [(torch.rand(6, 3, 32, 32), labels)] * 2


def test_labels_of_every_kind_that_is_one(flow_dir):
    """Integers as tensor, column, list, tuple, array: moved alike, by a linear and a deep flow."""
    batches, numbers = labelled(torch.arange(6) % 3), [0, 1, 2, 0, 1, 2]
    for words in ([], ["--nfa-flow", str(flow_dir)]):
        wanted = list(nfa.wrap_loader(batches, flags(*words), num_classes=3))
        for own in (
            numbers, tuple(numbers), np.array(numbers), torch.tensor(numbers)[:, None],
            torch.tensor(numbers, dtype=torch.uint8),
        ):  # fmt: skip
            same = [(x, own) for x, _ in batches]
            found = list(nfa.wrap_loader(same, flags(*words), num_classes=3))
            assert all(torch.equal(a[0], b[0]) for a, b in zip(found, wanted, strict=True))
            assert found[0][1] is own


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(6), "expected integer labels.*posterior"),
        (torch.eye(3)[[0, 1, 2, 0, 1, 2]], "probabilities.*before mixup"),
        (["cat"] * 6, "expected integer labels.*number of the class"),
        ([True] * 6, "expected integer labels"),
        ([0, 1, 2, 3, 4, 5], r"must be in 0\.\.2"),
    ],
)
def test_what_is_no_label_is_refused(flow_dir, labels, message):
    """A linear flow's fit refuses it at once, a deep flow at the first batch."""
    with pytest.raises(NFAError, match=message):
        nfa.wrap_loader(labelled(labels), flags(), num_classes=3)
    deep = nfa.wrap_loader(labelled(labels), flags("--nfa-flow", str(flow_dir)))
    with pytest.raises(NFAError, match=message):
        next(iter(deep))


def test_flags_that_no_parser_of_nfa_has_made(toy_images):
    levels, y = toy_images
    loader = DataLoader(TensorDataset(levels, y), 20)
    with pytest.raises(NFAError, match=r"no `aug`.*call nfa.add_args\(parser\)"):
        nfa.wrap_loader(loader, argparse.Namespace(lr=1))
    with pytest.raises(NFAError, match="aug must be a string such as nfa-s0.5.*got True"):
        nfa.wrap_loader(loader, argparse.Namespace(aug=True))
    assert nfa.wrap_loader(loader, argparse.Namespace(aug=None)) is loader
    own = argparse.Namespace(aug="nfa-k2-p1-lgiven")
    found = next(iter(nfa.wrap_loader(loader, own, num_classes=3)))[0]
    wanted = next(iter(nfa.wrap_loader(loader, flags(), num_classes=3)))[0]
    assert torch.equal(found, wanted) and vars(own) == {"aug": "nfa-k2-p1-lgiven"}


def test_augmentation_splits_without_the_prefetcher(image_folder):
    data = AugMixDataset(ImageFolder(str(image_folder / "train")), num_splits=3)
    loader = create_loader(
        data, (3, 32, 32), 20, is_training=True, use_prefetcher=False, num_workers=0,
        persistent_workers=False, num_aug_splits=3,
    )  # fmt: skip
    with pytest.raises(NFAError, match="AugMixDataset gives several images a label.*prefetcher"):
        nfa.wrap_loader(loader, flags())
