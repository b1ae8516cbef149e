"""``--aug nfa`` alone: its settings follow from the training set, are said, and are those of the record."""

import argparse

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from benchmarks.core import records
from benchmarks.evidence.cells import CELLS
from benchmarks.evidence.choices import chosen
from timm_nfaug.advice import RULES, advise
from timm_nfaug.hub import COSINE, LINEAR

RUNS = records.read(records.suite_file("evidence"))
ARMS = {LINEAR: "pooled", COSINE: "cosine"}


@pytest.mark.parametrize(("flow", "fine_tuned"), RULES)
def test_a_rule_is_what_the_search_of_its_cell_chose(flow, fine_tuned):
    rule = RULES[flow, fine_tuned]
    cell = CELLS[rule.cell]
    assert chosen(RUNS, cell, ARMS[flow]) == {"strength": rule.strength, "p": rule.p}
    assert bool(getattr(cell.recipe, "weights", "")) == fine_tuned
    assert cell.per_class <= rule.most <= 3 * max(cell.per_class, 50)
    assert advise(rule.most, fine_tuned, flow) is rule
    assert advise(rule.most + 1, fine_tuned, flow).aug == advise(None).aug == "nfa-s0.5-p0.5"


@pytest.mark.parametrize(
    ("flags", "said", "settings"),
    [
        ([], "20 images per class, from scratch: s 1, p 0.5, the best in", "s 1, k 32, p 0.5"),
        (["--pretrained"], "20 images per class, fine-tuned: s 0.5, p 0.5", "s 0.5, k 32, p 0.5"),
        (["--nfa-flow", "cosine"], "from scratch: s 1, p 1, the best in", "s 1, k 32, p 1"),
        (["--nfa-place", "dataset", "-j", 1], "from scratch: s 1, p 0.5", "s 1, k 32, p 0.5"),
    ],
)
def test_a_training_takes_them_and_says_so(run_script, capsys, flags, said, settings):
    run_script("--aug", "nfa", *flags)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("NFA auto: ") and said in first and "name others in --aug" in first
    assert any(line.startswith("NFA on: ") and settings in line for line in rest)


def test_they_train_as_the_same_settings_by_name_do(run_script, tmp_path):
    for name, aug in (("auto", "nfa"), ("named", "nfa-s1-p0.5"), ("others", "nfa-p0.5")):
        run_script("--aug", aug, name=name)
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
        (["--num-classes", "3"], "20 images per class, from scratch: s 1, p 0.5"),
        ([], "an unknown number of images per class, from scratch: s 0.5, p 0.5, the default"),
    ):
        wrapped = nfa.wrap_loader(loader, parser.parse_args(["--aug", "nfa", *given]))
        assert said in capsys.readouterr().err
        assert wrapped.augment.strength == (1.0 if given else 0.5)
