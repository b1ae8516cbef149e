"""The everyday uses of docs/data.md as they stand there, and what augments in the workers: dataset, collate, examples."""

import argparse
import copy
import hashlib
import io
import pickle
import tarfile
import warnings

import datasets
import numpy as np
import pytest
import recipes
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
    random_split,
)
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import timm_nfaug as nfa

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def fitted(toy_images):
    levels, labels = toy_images
    return nfa.NFAugment.from_data([(levels, labels)], 3, (3, 8, 8), modes=4, labels="given")


@pytest.fixture
def aug(fitted):
    """Moves every image along the modes of its class."""
    return fitted.replace(p=1.0, strength=1.0)


@pytest.fixture
def folder(image_folder):
    return ImageFolder(str(image_folder / "val"), TF.pil_to_tensor)  # 24 images


def to_tensor(image):
    return TF.to_dtype(TF.to_image(image), torch.float32, scale=True)


def normalised(image):
    return TF.normalize(to_tensor(image), MEAN, STD)


def passes(data, count=2, batch_size=5, **how):
    """The images of some passes over a dataset through one loader."""
    loader = DataLoader(data, batch_size, **how)
    return [torch.cat([x for x, _ in loader]) for _ in range(count)]


def moved(found, base):
    """The share of the images that are not those of the base."""
    return float((found != torch.stack([x for x, _ in base])).flatten(1).any(1).float().mean())


# -- NFADataset --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{"num_workers": 1}, {"num_workers": 3}, {"num_workers": 3, "persistent_workers": True},
            {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}],
    ids=["1", "3", "3 persistent", "1 persistent spawned"],
)  # fmt: skip
def test_a_dataset_gives_the_same_images_for_any_workers(folder, aug, how):
    aug = aug.replace(p=0.5)
    wanted = passes(nfa.NFADataset(folder, aug, seed=3))
    found = passes(nfa.NFADataset(folder, aug, seed=3), **how)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not torch.equal(*wanted) and all(0.2 < moved(x, folder) < 0.8 for x in wanted)


def test_a_dataset_resumes_at_any_epoch(folder, aug):
    run = passes(nfa.NFADataset(folder, aug), 3)
    resumed = nfa.NFADataset(folder, aug)
    list(DataLoader(resumed, 10, num_workers=2))
    resumed[3], resumed[3]
    for epoch in (1, 0, 2):
        resumed.set_epoch(epoch)
        assert torch.equal(passes(resumed, 1)[0], run[epoch])
    resumed.set_epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(passes(resumed), run[1:], strict=True))
    other = passes(nfa.NFADataset(folder, aug, seed=1), 3)
    together = torch.cat([*run, *other]).flatten(1)
    assert len(together.unique(dim=0)) == 6 * 24, "no two passes or seeds share an image"


def test_order_plays_no_part(folder, aug):
    data, turned = nfa.NFADataset(folder, aug), nfa.NFADataset(folder, aug)
    there, back = [data[i][0] for i in range(24)], [turned[-1 - i][0] for i in range(24)]
    assert torch.equal(torch.stack(there), torch.stack(back).flip(0))


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"p": 0.0}])
def test_a_dataset_that_does_nothing_gives_the_base(image_folder, aug, off):
    base = ImageFolder(str(image_folder / "val"))
    before = torch.get_rng_state()
    data = nfa.NFADataset(base, aug.replace(**off))
    for i in (0, 13, -1):
        (image, label), (plain, same) = data[i], base[i]
        assert image.tobytes() == plain.tobytes() and label == same and image.mode == plain.mode
    assert torch.equal(torch.get_rng_state(), before)
    assert len(data) == 24 and data.classes == base.classes


def test_the_label_decides_where_it_is_given(folder, aug, toy_images):
    levels, labels = toy_images
    pairs = [folder[i] for i in range(24)]
    turned = [(image, (label + 1) % 3) for image, label in pairs]
    for augment, same in (
        (aug, False),
        (nfa.NFAugment.from_data([(levels, labels)], 3, (3, 8, 8), labels="none", p=1.0), True),
    ):
        one, other = (nfa.NFADataset(data, augment) for data in (pairs, turned))
        assert torch.equal(torch.stack([one[i][0] for i in range(24)]),
                           torch.stack([other[i][0] for i in range(24)])) == same  # fmt: skip
        assert [one[i][1] for i in range(24)] == [label for _, label in pairs]


def test_the_transform_runs_after_nfa_also_within_subsets(image_folder, aug):
    """Images are normalised floats behind it, which NFA would refuse."""
    plain, own = (ImageFolder(str(image_folder / "val"), t) for t in (None, normalised))
    grey = ImageFolder(str(image_folder / "val"), TF.rgb_to_grayscale)
    parts = random_split(range(24), [0.5, 0.5], torch.Generator().manual_seed(0))
    picked = [3, 20, 7]
    for data, pairs in (
        (own, [(i, normalised) for i in range(24)]),
        (Subset(own, picked), [(i, normalised) for i in picked]),
        (Subset(Subset(own, picked), [2, 0]), [(7, normalised), (3, normalised)]),
        (Subset(own, list(parts[1])), [(i, normalised) for i in parts[1]]),
        (
            ConcatDataset([Subset(own, picked), grey, plain]),
            [(i, normalised) for i in picked]
            + [(i, TF.rgb_to_grayscale) for i in range(24)]
            + [(i, lambda image: image) for i in range(24)],
        ),
    ):
        found = nfa.NFADataset(data, aug, seed=2)
        wanted = nfa.NFADataset([plain[i] for i, _ in pairs], aug, seed=2)
        assert len(found) == len(pairs)
        for k, (_, transform) in enumerate(pairs):
            one, other = found[k], wanted[k]
            assert np.array_equal(one[0], transform(other[0])) and one[1] == other[1]
    assert own.transform is normalised is own.transforms.transform and plain.transform is None


def test_copies_and_caches_take_subsets_with_transforms(image_folder, augment, tmp_path):
    plain, own = (ImageFolder(str(image_folder / "val"), t) for t in (None, normalised))
    one, other = Subset(plain, [0, 9, 23]), Subset(own, [0, 9, 23])
    caches = [nfa.NFACache.build(augment, d, tmp_path / str(i)) for i, d in enumerate((one, other))]
    for made in (
        lambda data: nfa.NFAugmentedDataset(data, augment),
        lambda data: nfa.CachedNFADataset(data, caches[data is other], p=1.0),
    ):
        a, b = made(one), made(other)
        assert all(torch.equal(normalised(a[i][0]), b[i][0]) for i in range(3))


class Own(Dataset):
    """A dataset that normalises without a transform that could be replaced."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, i):
        return normalised(self.base[i][0]), self.base[i][1]


def test_a_normalisation_out_of_reach_is_said_and_undone(image_folder, aug):
    plain = ImageFolder(str(image_folder / "val"))
    with pytest.raises(ValueError, match="for normalised images pass mean= and std="):
        nfa.NFADataset(Own(plain), aug)[0]
    found = nfa.NFADataset(Own(plain), aug.replace(mean=MEAN, std=STD))
    wanted = nfa.NFADataset(ImageFolder(plain.root, to_tensor), aug)
    for i in (0, 9):
        back = found[i][0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        half = 0.51 / 255  # of a level, to which the PIL image is rounded
        torch.testing.assert_close(back, wanted[i][0], atol=half, rtol=0)
        assert (back - to_tensor(plain[i][0])).abs().max() > 0.02


def rows_of(levels, labels):
    """A dataset of Hugging Face's, in memory."""
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in levels]
    named = datasets.ClassLabel(names=["a", "b", "c"])
    features = datasets.Features({"label": named, "image": datasets.Image()})
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels.tolist()}, features=features
    )


def test_samples_may_be_dicts(toy_images, aug):
    levels, labels = toy_images
    rows = rows_of(levels[:4], labels[:4])
    pairs = [(rows[i]["image"], rows[i]["label"]) for i in range(4)]
    found, wanted = nfa.NFADataset(rows, aug), nfa.NFADataset(pairs, aug)
    found.transform = TF.pil_to_tensor
    for i in range(4):
        sample = found[i]
        assert list(sample) == list(rows[i]) and sample["label"] == labels[i]
        assert torch.equal(sample["image"], TF.pil_to_tensor(wanted[i][0]))
        assert not torch.equal(sample["image"], levels[i])
    depth = [{"depth": torch.ones(1, 8, 8), "image": levels[0], "label": 2}]
    sample = nfa.NFADataset(depth, aug)[0]
    assert (sample["depth"] == 1).all() and not torch.equal(sample["image"], levels[0])


def test_under_timms_loader(image_folder, aug):
    data = nfa.NFADataset(ImageFolder(str(image_folder / "val")), aug)
    loader = create_loader(
        data, (3, 32, 32), 24, is_training=True, no_aug=True, num_workers=1, mean=(0.0,) * 3,
        std=(1.0,) * 3, device=torch.device("cpu"), persistent_workers=True,
    )  # fmt: skip
    (first, y), (second, z) = (next(iter(loader)) for _ in range(2))
    assert data.transform is not None and torch.bincount(y).tolist() == [8, 8, 8]
    again = nfa.NFADataset(ImageFolder(str(image_folder / "val"), to_tensor), aug)
    assert torch.equal(y.sort().values, z.sort().values)
    for images in (first, second):
        wanted = passes(again, 1)[0].flatten(1).sum(1).sort().values
        torch.testing.assert_close(images.flatten(1).sum(1).sort().values, wanted)


def test_ranks_draw_differently_and_resume(folder, aug, monkeypatch):
    found = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        data = nfa.NFADataset(folder, aug)
        sampler = DistributedSampler(data, 2, int(rank))
        for epoch in (0, 1, 0):
            sampler.set_epoch(epoch)
            data.set_epoch(epoch)
            images = passes(data, 1, sampler=sampler)[0]
            assert len(images) == 12
            assert torch.equal(found.setdefault((rank, epoch), images), images)
    assert len(torch.cat(list(found.values())).flatten(1).unique(dim=0)) == 48
    both = [passes(nfa.NFADataset(folder, aug), 1)[0]]
    monkeypatch.setenv("RANK", "0")
    assert not torch.equal(passes(nfa.NFADataset(folder, aug), 1)[0], both[0])


def test_accelerate_and_lightning_give_each_epoch_its_own(folder, aug, tmp_path):
    import lightning
    from accelerate import Accelerator

    run = passes(nfa.NFADataset(folder, aug))
    loader = Accelerator(cpu=True).prepare(DataLoader(nfa.NFADataset(folder, aug), 24))
    assert all(torch.equal(next(zip(*loader))[0], images) for images in run)

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch, _):
            self.seen.append(batch[0].clone())
            return self.net(batch[0].float().mean().view(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model := Model(), DataLoader(nfa.NFADataset(folder, aug), 24))
    assert all(torch.equal(a, b) for a, b in zip(model.seen, run, strict=True))


def test_a_deep_copy_knows_its_epochs_in_workers(folder, aug):
    data = nfa.NFADataset(folder, aug)
    run = passes(copy.deepcopy(data), num_workers=1)
    assert not torch.equal(*run) and torch.equal(passes(data, 1)[0], run[0])


def test_what_is_no_augmentation_is_refused(folder):
    for made in (
        lambda: nfa.NFADataset(folder, "nfa-s0.5"),
        lambda: nfa.NFACollate("nfa-s0.5"),
        lambda: nfa.NFAExamples("nfa-s0.5"),
    ):
        with pytest.raises(TypeError, match="expected an NFAugment, got str; NFAugment.from_data"):
            made()


def test_a_transform_without_labels_names_the_dataset(image_folder, aug):
    """The everyday mistake is said once; what it names moves the images of their own class."""
    data = ImageFolder(str(image_folder / "val"), v2.Compose([aug, v2.ToImage()]))
    with pytest.warns(nfa.NFAWarning, match=r"no label came.*nfa\.NFADataset\(dataset, aug\)") as w:
        passes(data, 1)
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(nfa.NFADataset(ImageFolder(data.root, v2.ToImage()), aug), 1)


# -- NFACollate --------------------------------------------------------------------------------------


def collated(pairs, collate, seed=0, count=2, **how):
    torch.manual_seed(seed)
    return passes(pairs, count, collate_fn=collate, **how)


@pytest.fixture
def pairs(toy_images):
    return TensorDataset(*(v[::2] for v in toy_images))  # 30


def test_batches_are_the_same_for_any_number_of_workers(pairs, aug):
    run = collated(pairs, nfa.NFACollate(aug), num_workers=1)
    for workers in (2, 3):
        again = collated(pairs, nfa.NFACollate(aug), num_workers=workers)
        assert all(torch.equal(a, b) for a, b in zip(run, again, strict=True))
    persistent = collated(pairs, nfa.NFACollate(aug), num_workers=2, persistent_workers=True)
    assert torch.equal(persistent[0], run[0])
    others = [collated(pairs, nfa.NFACollate(a), s, num_workers=2)
              for a, s in ((aug, 1), (aug.replace(seed=5), 0))]  # fmt: skip
    own = [*run, persistent[1], *others[0], *others[1], *collated(pairs, nfa.NFACollate(aug))]
    assert len(torch.cat(own).flatten(1).unique(dim=0)) == 9 * 30, "all passes differ"


def test_the_collate_function_keeps_batches_as_they_are(pairs, aug):
    def named(samples):
        return {"pixels": torch.stack([x for x, _ in samples]), "label": [int(k) for _, k in samples]}  # fmt: skip

    samples = [pairs[i] for i in range(30)]
    batch = nfa.NFACollate(aug.replace(seed=1), named)(samples)
    x, y = pickle.loads(pickle.dumps(nfa.NFACollate(aug.replace(seed=1))))(samples)
    assert torch.equal(batch["pixels"], x) and batch["label"] == y.tolist()
    assert x.dtype == torch.uint8 and moved(x, samples) == 1
    off = nfa.NFACollate(aug.replace(p=0.0))(samples)
    assert moved(off[0], samples) == 0


# -- NFAExamples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_of_hugging_face(toy_images, aug, workers):
    levels, labels = toy_images
    rows = rows_of(levels[:1].repeat(12, 1, 1, 1), labels[:12])  # one image, twelve times
    examples = pickle.loads(pickle.dumps(nfa.NFAExamples(aug, normalised, output="pixel_values")))
    train_set = rows.with_transform(examples)
    loader = DataLoader(train_set, 4, num_workers=workers)
    runs = [list(loader), list(loader)]
    assert [sorted(batch) for batch in runs[0]] == [["label", "pixel_values"]] * 3
    assert torch.cat([b["label"] for b in runs[0]]).tolist() == labels[:12].tolist()
    found = torch.cat([b["pixel_values"] for run in runs for b in run])
    assert found.shape == (24, 3, 32, 32) and len(found.flatten(1).unique(dim=0)) == 24
    assert train_set[0]["pixel_values"].shape == (3, 32, 32)
    plain = rows.with_transform(nfa.NFAExamples(aug.replace(p=0.0), TF.pil_to_tensor))[2:4]
    assert torch.equal(torch.stack(plain["image"]), levels[:1].repeat(2, 1, 1, 1))


def test_examples_move_each_image_by_its_own_label(toy_images, aug):
    levels, labels = toy_images
    images = [TF.to_pil_image(x) for x in levels[::10]]
    kinds = labels[::10].tolist()
    found = nfa.NFAExamples(aug.replace(seed=2))({"image": images, "label": kinds})
    one = aug.replace(seed=2)
    wanted = [one(image, label)[0] for image, label in zip(images, kinds)]
    assert [x.tobytes() for x in found["image"]] == [x.tobytes() for x in wanted]
    named = nfa.NFAExamples(aug.replace(seed=2), image="img", label="fine")
    same = named({"img": images, "fine": kinds, "label": [9] * 6})
    assert [x.tobytes() for x in same["img"]] == [x.tobytes() for x in wanted]
    assert same["label"] == [9] * 6
    with pytest.raises(TypeError, match=r"under 'image', got \['fine', 'img'\]; name their column"):
        nfa.NFAExamples(aug)({"img": images, "fine": kinds})


# -- docs/data.md ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names(image_folder):
    """What the first recipe of the page defines, and what the others take for granted."""
    given = {
        "folder": str(image_folder / "train"), "transform": to_tensor, "mean": MEAN, "std": STD,
        "device": torch.device("cpu"), "F": F, "model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)),
    }  # fmt: skip
    names = recipes.run_recipe("data.md", "modes", given)
    assert {k: (names[k].labels, names[k].change.num_classes) for k in ("aug", "by_class")} == {
        "aug": ("none", 1),
        "by_class": ("given", 3),
    }
    own = {k: names[k].replace(p=1.0, strength=1.0) for k in ("aug", "by_class")}
    return names | own


def run(name, names, **given):
    return recipes.run_recipe("data.md", name, names | given)


def test_save(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    aug = run("save", names)["aug"]
    assert torch.equal(aug.flow.prior.modes, names["aug"].flow.prior.modes)
    assert aug.strength == names["aug"].strength == 1.0


def plain_images(image_folder):
    return [x for x, _ in ImageFolder(str(image_folder / "train"), to_tensor)]


def all_moved(images, image_folder):
    """Whether none of these floats is an image of the folder."""
    own = torch.stack(plain_images(image_folder))
    return not any((own == image).flatten(1).all(1).any() for image in images)


def fewer_workers(loader):
    return DataLoader(loader.dataset, 20, collate_fn=loader.collate_fn, num_workers=1)


def test_recipe_transform(names, image_folder):
    train_set = run("transform", names)["train_set"]
    torch.manual_seed(0)
    images = [train_set[i][0] for i in range(4)]
    assert images[0].shape == (3, 224, 224) and images[0].min() < 0
    assert [type(t).__name__ for t in train_set.transform.transforms].index("NFAugment") == 2


def test_recipes_dataset_and_split(names, image_folder):
    found = run("dataset", names)
    assert found["loader"].num_workers == 4 and isinstance(found["train_set"], nfa.NFADataset)
    images, labels = next(iter(fewer_workers(found["loader"])))
    assert all_moved(images, image_folder) and labels.shape == (20,)
    found = run("split", names)
    assert (len(found["train_set"]), len(found["val_set"])) == (48, 12)
    assert all_moved((found["train_set"][i][0] for i in range(48)), image_folder)
    assert not all_moved([found["val_set"][0][0]], image_folder)


def test_recipes_loop_and_compose(names, toy_images):
    levels, labels = toy_images
    seen = []
    model = lambda x: (seen.append(x), names["model"](x))[1]
    floats = levels / 255
    found = run("loop", names, loader=[(floats[:30], labels[:30])], model=model)
    assert found["loss"].ndim == 0 and (seen[0] != floats[:30]).flatten(1).any(1).all()
    found = run("compose", names, images=levels, labels=labels)
    assert found["images"].shape == levels.shape and found["images"].min() < 0
    assert found["labels"].shape == (60, 3) and found["labels"].sum(1).allclose(torch.ones(60))


def test_recipe_collate(names, image_folder):
    dataset = ImageFolder(names["folder"], to_tensor)
    loader = run("collate", names, dataset=dataset)["loader"]
    assert loader.num_workers == 4 and loader.collate_fn.augment is names["aug"]
    assert all_moved(next(iter(fewer_workers(loader)))[0], image_folder)
    cutmix, augmented = v2.CutMix(num_classes=3), nfa.NFACollate(names["by_class"])
    collate = lambda samples: cutmix(*augmented(samples))  # as the page says
    images, labels = next(iter(DataLoader(dataset, 20, collate_fn=collate)))
    assert images.shape == (20, 3, 32, 32) and labels.shape == (20, 3)


def test_recipe_copies(names, image_folder):
    train_set = run("copies", names)["train_set"]
    assert len(train_set) == 240 and torch.equal(train_set[7][0], plain_images(image_folder)[7])
    assert all_moved((train_set[67][0], train_set[187][0]), image_folder)


def write_cifar(root, levels, labels):
    """The files of CIFAR-10 with a few images; returns their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    found = {"batches.meta": {"label_names": [f"class {k}" for k in range(10)]}}
    for i, part in enumerate(torch.arange(len(levels)).chunk(6)):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        data = levels[part].flatten(1).numpy()
        found[name] = {"data": data, "labels": labels[part].tolist()}
    for name, content in found.items():
        (folder / name).write_bytes(pickle.dumps(content))
    return {n: hashlib.md5((folder / n).read_bytes()).hexdigest() for n in found}


def test_recipe_torchvision(names, tmp_path, toy_images, monkeypatch):
    levels = toy_images[0].repeat(2, 1, 1, 1)
    md5 = write_cifar(tmp_path, levels, torch.arange(120) % 10)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n in md5 if n[:4] == "data"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nfa.NFAWarning)  # ten images a class have fewer modes
        found = run("torchvision", names, root=str(tmp_path))
    assert found["aug"].labels == "none"
    data = nfa.NFADataset(found["train_set"], found["aug"].replace(p=1.0))
    assert len(found["train_set"]) == 100 and found["train_set"][11][1] == 1
    assert not torch.equal(data[11][0], levels[11] / 255)


def test_recipe_datasets(names, toy_images, image_folder):
    found = run("datasets", names, rows=rows_of(*toy_images))
    batch = next(iter(found["loader"]))
    assert batch["pixel_values"].shape == (60, 3, 32, 32) and batch["label"].shape == (60,)
    kept = sum(not all_moved([image], image_folder) for image in batch["pixel_values"])
    assert 10 < kept < 50, "p is 0.5 by default"


def test_recipe_webdataset(names, tmp_path, toy_images, image_folder):
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for i, (image, label) in enumerate(zip(*toy_images)):
            TF.to_pil_image(image).save(png := io.BytesIO(), "png")
            for ending, content in (("png", png.getvalue()), ("cls", b"%d" % label)):
                entry = tarfile.TarInfo(f"{i:03d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    found = run("webdataset", names, url=str(tmp_path / "train.tar"))
    for stream in (found["labelled"], found["unlabelled"]):
        (images, labels), *_ = DataLoader(stream, 60)
        assert images.shape == (60, 3, 32, 32) and torch.bincount(labels).tolist() == [20] * 3
        assert all_moved(images, image_folder)
    assert found["loader"].num_workers == 4 and next(iter(DataLoader(found["labelled"], 8)))


def test_recipe_albumentations(names, toy_images):
    pytest.importorskip("albumentations")
    array = toy_images[0][0].permute(1, 2, 0).numpy()
    try:
        names["aug"](array)
    except TypeError:
        pytest.skip("NFAugment does not take arrays yet")
    moved = run("albumentations", names, array=array)["moved"]
    assert moved.shape == (28, 28, 3) and moved.dtype == np.float32 and moved.min() < 0
    assert not np.array_equal(names["aug"](array), array)


def test_recipe_create_loader(names, image_folder):
    found = run("create_loader", names)
    images, labels = next(iter(found["loader"]))
    assert images.shape == (32, 3, 224, 224) and labels.shape == (32,)
    assert isinstance(found["train_set"], nfa.NFADataset)


def test_every_recipe_of_the_page_has_its_test():
    tested = {
        "modes", "transform", "dataset", "split", "loop", "compose", "collate", "copies",
        "torchvision", "datasets", "webdataset", "albumentations", "create_loader", "save",
    }  # fmt: skip
    assert set(recipes.recipes("data.md")) == tested


def test_what_has_nfa_already_is_not_wrapped_again(toy_images):
    augment = nfa.NFAugment.from_data([toy_images])
    loader = DataLoader(nfa.NFADataset(TensorDataset(*toy_images), augment), 8)
    nfa.add_args(parser := argparse.ArgumentParser())
    args = parser.parse_args(["--aug", "nfa", "--nfa-flow", "linear.cifar10"])
    with pytest.raises(nfa.NFAError, match="has NFA already"):
        nfa.wrap_loader(loader, args)


def test_a_column_of_arrays_of_13_bands():
    bands = np.random.default_rng(0).integers(0, 4096, (8, 16, 16, 13)).astype(np.uint16)
    kind = datasets.Features({"image": datasets.Array3D((16, 16, 13), "uint16")})
    rows = datasets.Dataset.from_dict({"image": list(bands)}, features=kind)
    levels = torch.from_numpy(bands.astype(np.int32)).permute(0, 3, 1, 2)
    aug = nfa.NFAugment.from_data([(levels, None)], value_range=(0, 4095), modes=4, p=1.0)
    moved = rows.with_transform(nfa.NFAExamples(aug))[:3]["image"]
    assert all(m.shape == (16, 16, 13) and (m != b).any() for m, b in zip(moved, bands))
