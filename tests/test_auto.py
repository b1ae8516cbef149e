"""``--aug nfa`` alone: its settings follow from the training set, are said, and are those of the record."""

import argparse
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import timm_nfaug as nfa
from benchmarks.core import records
from benchmarks.core.statistics import compare
from benchmarks.evidence.cells import CELLS
from benchmarks.evidence.choices import reported, searched
from benchmarks.evidence.tables import line
from timm_nfaug.advice import DEEP, FEW, FINE_TUNED, FROM_SCRATCH, Advice, advise
from timm_nfaug.hub import COSINE, LINEAR
from timm_nfaug.integration.auto import are_grey, images_per_class

RUNS = records.read(records.suite_file("evidence"))
ARMS = {DEEP: "flow-joint", LINEAR: "pooled", COSINE: "cosine"}


@pytest.mark.parametrize(("rule", "fine_tuned"), [(FROM_SCRATCH, False), (FINE_TUNED, True)])
def test_a_rule_is_what_was_best_in_the_searches_of_its_cells(rule, fine_tuned):
    """On average over the cells and over the flows that `nfa` alone may take."""
    found: dict[tuple[float, float], list[float]] = {}
    for cell in map(CELLS.__getitem__, rule.cells):
        assert bool(getattr(cell.recipe, "weights", "")) == fine_tuned
        assert cell.per_class <= FEW <= 3 * max(cell.per_class, 50)
        for run in (r for arm in ARMS.values() for r in searched(RUNS, cell, arm)):
            setting = run["settings"]["strength"], run["settings"]["p"]
            found.setdefault(setting, []).append(run["metrics"]["top1"])
    assert {len(values) for values in found.values()} == {len(rule.cells) * len(ARMS)}
    assert max(found, key=lambda setting: sum(found[setting])) == (rule.strength, rule.p)


@pytest.mark.parametrize("flow", ARMS)
def test_beyond_its_cells_no_rule_holds(flow):
    assert advise(FEW, False, flow) == FROM_SCRATCH._replace(flow=flow)
    assert advise(FEW, True, flow) == FINE_TUNED._replace(flow=flow, gains=flow == DEEP)
    assert advise(FEW + 1, False, flow) == advise(None, False, flow) == Advice(flow)


@pytest.mark.parametrize("name", ["tiny-50", "finetune-gtsrb-25"])
def test_the_flow_that_is_chosen_is_ahead_on_images_that_it_has_not_seen(name):
    """Of modes of the images themselves, which cost less, and of shading, which takes no images."""
    cell = CELLS[name]
    assert "CIFAR" not in cell.data and cell.flows["flow-joint"].name == DEEP
    values = line(reported(RUNS, cell))
    for other in ("crop-flip", "pooled", "cosine"):
        found = compare(values, "flow-joint", other)
        assert found.mean > found.half, f"level with {other}: {found}"


@pytest.mark.parametrize(
    ("flags", "said", "settings"),
    [
        (
            [],
            f"20 images per class, from scratch: flow {DEEP}, s 1, p 0.5, best on average over three flows in cifar10-50",
            "flow conv_p4_small, modes of all images at 3 x 32 x 32, space deep, s 1, k 32, p 0.5",
        ),
        (
            ["--img-size", 97],
            "from scratch: flow cosine, s 1, p 0.5",
            "flow cosine, modes of no images",
        ),
        (["--in-chans", 1], "from scratch: flow linear, s 1, p 0.5", "space linear, s 1"),
        (["--nfa-flow", "linear"], "from scratch: flow linear, s 1, p 0.5", "space linear, s 1"),
        (
            ["--pretrained"],
            f"fine-tuned: flow {DEEP}, s 0.5, p 0.5, best on average over three flows in "
            "finetune-cifar10-25 and finetune-gtsrb-25; name",
            "space deep, s 0.5",
        ),
        (
            ["--pretrained", "--nfa-flow", "linear"],
            "and finetune-gtsrb-25, where no gain was shown; name",
            "space linear, s 0.5",
        ),
        (["--nfa-flow", "cosine"], "from scratch: flow cosine, s 1, p 0.5", "s 1, k 32, p 0.5"),
        (["--nfa-place", "dataset", "-j", 1], f"flow {DEEP}, s 1, p 0.5", "deep, s 1, k 32"),
    ],
)
def test_a_training_takes_them_and_says_so(run_script, capsys, flags, said, settings):
    run_script("--aug", "nfa", *flags)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("NFA auto: ") and said in first and "name others by --aug" in first
    assert any(line.startswith("NFA on: ") and settings in line for line in rest)


def test_they_train_as_the_same_settings_by_name_do(run_script, tmp_path):
    deep = ("--nfa-flow", DEEP, "--nfa-fit")
    for name, *flags in (
        ("auto", "nfa"),
        ("named", "nfa-s1-p0.5", *deep),
        ("others", "nfa-p0.5", *deep),
    ):
        run_script("--aug", *flags, name=name)
    auto, named, others = (
        torch.cat([x for x, _ in torch.load(tmp_path / name / "seen.pt")["train"]])
        for name in ("auto", "named", "others")
    )
    assert torch.equal(auto, named) and not torch.equal(auto, others)


@pytest.mark.parametrize("aug", ["nfa-s0.5", "nfa-k8", "nfa-p0.25"])
def test_a_setting_that_is_named_leaves_the_others_at_their_defaults(run_script, capsys, aug):
    run_script("--aug", aug)
    said = capsys.readouterr().err
    assert "NFA auto" not in said and "s 0.5" in said


def test_in_a_loop_of_ones_own(toy_images, capsys):
    nfa.add_args(parser := argparse.ArgumentParser())
    parser.add_argument("--num-classes", type=int)
    loader = DataLoader(TensorDataset(*toy_images), 10)
    for given, said in (
        (["--num-classes", "3"], f"20 images per class, from scratch: flow {DEEP}, s 1, p 0.5"),
        (
            [],
            "unknown number of images per class, from scratch: flow cosine, s 0.5, p 0.5, the default",
        ),
    ):
        wrapped = nfa.wrap_loader(loader, parser.parse_args(["--aug", "nfa", *given]))
        assert said in capsys.readouterr().err
        assert wrapped.augment.strength == (1.0 if given else 0.5)


def test_grey_images_in_three_channels_are_moved_by_their_own_modes(
    image_folder, tmp_path, run_script, capsys
):
    shutil.copytree(image_folder, tmp_path / "grey")
    for path in (tmp_path / "grey").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    paths = ("--data-dir", tmp_path / "grey", "--output", tmp_path / "o")
    run_script("--aug", "nfa", *paths, data=False)
    assert (
        "flow linear, s 1, p 0.5, best on average over three flows in cifar10-50 and tiny-50"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("mode", "colour", "grey"), [
    ("P", (255, 0, 0), False), ("P", (90, 90, 90), True), ("LA", (90, 90, 90), True),
    ("RGBA", (90, 90, 90), True), ("RGBA", (255, 0, 0), False), ("L", (9, 9, 9), True),
])  # fmt: skip
def test_grey_is_what_looks_grey_however_it_is_stored(mode, colour, grey):
    image = Image.new("RGB", (4, 4), colour).convert(mode, palette=Image.Palette.ADAPTIVE)
    assert are_grey([image]) is grey


def test_a_process_of_several_counts_the_images_of_all():
    class Stream(IterableDataset):  # as timm's, whose length is a process's share
        reader = SimpleNamespace(num_samples=4000, class_to_idx={"a": 0, "b": 1})

        def __len__(self):
            return 1000

        def __iter__(self):
            return iter(())

    assert images_per_class(Stream()) == 2000


def test_flags_that_are_no_namespace_keep_their_others(toy_images, capsys):
    class Config:
        aug, seed, num_classes = "nfa", 7, 3

    wrapped = nfa.wrap_loader(DataLoader(TensorDataset(*toy_images), 10), Config())
    assert wrapped.seed == 7 and Config.aug == "nfa"
    assert "20 images per class" in capsys.readouterr().err


def test_a_stream_is_opened_no_more_often_than_with_settings_by_name(toy_images):
    opened = []

    class Stream(IterableDataset):
        def __len__(self):
            return len(toy_images[0])

        def __iter__(self):
            opened.append(1)
            return iter(zip(*toy_images, strict=True))

    counts = []
    for aug in ("nfa", "nfa-s1"):
        opened.clear()
        nfa.wrap_loader(DataLoader(Stream(), 10), argparse.Namespace(aug=aug, num_classes=3))
        counts.append(len(opened))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("place", ["dataset", "either"])
def test_what_the_deep_flow_costs_in_the_workers_is_said(run_script, capsys, place):
    run_script("--aug", "nfa", "--aa", "rand-m5", "--nfa-place", place, "-j", 1)
    assert "the workers run a deep flow image by image" in capsys.readouterr().err


def test_a_training_without_nfa_may_name_the_flow_that_its_file_names():
    """args.yaml of trainings without NFA had `nfa_flow: linear` and `aug: null`."""
    assert nfa.wrap_loader([], argparse.Namespace(aug=None, nfa_flow="linear")) == []
