"""Modes of all images, the default, where other parts meet them: streams, caches, lines and copies."""

import argparse

import pytest
import torch

import timm_nfaug as nfa
from timm_nfaug.data import NFACache


def wrapped(loader, string: str, flow: str = "linear", **flags):
    values = argparse.Namespace(aug=string, nfa_flow=flow, **flags)
    return nfa.wrap_loader(loader, values)


class Stream:
    """Batches of 1,000 small images, and how many have been read."""

    read = 0

    def __iter__(self):
        for _ in range(40):
            self.read += 1000
            yield torch.rand(1000, 3, 4, 4), torch.zeros(1000, dtype=torch.int64)


def test_a_stream_is_read_as_far_whatever_the_number_of_classes():
    wrapped(stream := Stream(), "nfa-k2-lnone", num_classes=1000)
    assert stream.read <= 12_000  # 10,000 for the modes, and the first batch for their size


def test_a_flow_of_other_data_is_named(capsys):
    images = torch.rand(4, 1, 8, 8)
    wrapped([(images, torch.arange(4))], "nfa-lnone", "conv_p4_tiny.digits")
    assert "modes of all images of scikit-learn digits" in capsys.readouterr().err
    wrapped([(images, torch.arange(4))], "nfa-k2-lnone")
    assert "modes of all images at 1 x 8 x 8" in capsys.readouterr().err


def test_a_cache_refuses_a_range_that_it_would_not_look_at(tmp_path):
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", value_range=(0, 100))
    base = [(torch.zeros(1, 8, 8, dtype=torch.uint8), 3)]
    with pytest.raises(ValueError, match="knows no value_range; put nfa.NFADataset"):
        NFACache.build(augment, base, tmp_path / "cache")


def test_another_flow_comes_with_its_classes():
    flow = nfa.ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    pooled = nfa.NFAugment(flow, modes=4, labels="none")
    given = pooled.replace(flow=flow, labels="given")
    assert (given.labels, given.change.num_classes) == ("given", 10)
    with pytest.raises(ValueError, match="all images together"):
        pooled.replace(labels="given")
