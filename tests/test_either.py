"""``--nfa-place either``: each image gets NFA or the policy of --aa, never both, in a real training."""

import argparse

import pytest
import recipes
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, v2

import timm_nfaug as nfa
from timm_nfaug._utils.notices import NFAError
from timm_nfaug.integration import loader_factory

AA = ["--aa", "rand-m9-mstd0.5-inc1"]
EITHER = ["--nfa-place", "either"]


def images(seen):
    """The training images (N, 3, H, W) of a run."""
    return torch.cat([x for x, _ in seen["train"]])


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_the_policy_where_nfa_leaves_an_image_and_nfa_where_not(run, workers):
    """At p 1 all images are NFA's and none are RandAugment's, at p near 0 the other way round."""
    j = ["-j", workers]
    moved = images(run("--aug", "nfa-s1-p1", *EITHER, *AA, *j))
    alone = images(run("--aug", "nfa-s1-p1", "--nfa-place", "dataset", *j))
    assert torch.equal(moved, alone)
    left = images(run("--aug", "nfa-s1-p0.0000001", *EITHER, *AA, *j))
    stock = images(run(*AA, *j))
    assert torch.equal(left, stock) and not torch.equal(left, moved)


class RandAugment:
    """A policy of that name which can be told from any move: it makes an image black."""

    def __call__(self, image):
        return Image.new(image.mode, image.size)


def loader_of(folder, either, p=0.5, workers=0):
    def create_loader(dataset, is_training=True, **rest):
        steps = [RandAugment(), PILToTensor()] if either else [PILToTensor()]
        dataset.transform = Compose(steps)
        return torch.utils.data.DataLoader(dataset, 10, num_workers=workers)

    augment = nfa.NFAugment.from_cosine(strength=1.0, p=p)
    make = loader_factory(create_loader, augment, 3, place="either" if either else "dataset")
    return make(folder, is_training=True, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_each_image_gets_exactly_one_and_the_share_is_p(image_folder):
    levels = torch.cat([x for x, _ in loader_of(ImageFolder(image_folder / "train"), True)])
    wholly = torch.cat([x for x, _ in loader_of(ImageFolder(image_folder / "train"), False, p=1.0)])
    black = (levels == 0).flatten(1).all(1)
    assert 15 <= black.sum() <= 45, "60 images at p 0.5"
    assert torch.equal(levels[~black], wholly[~black]), "the others are moved as without a policy"
    for workers in (1, 2):
        again = loader_of(ImageFolder(image_folder / "train"), True, workers=workers)
        assert torch.equal(torch.cat([x for x, _ in again]), levels)


def test_what_cannot_be_is_refused_with_the_remedy(run, image_folder, flow_dir, tmp_path):
    with pytest.raises(SystemExit, match="either chooses between NFA and --aa: give --aa rand-m5"):
        run("--aug", "nfa", *EITHER)
    cache = ["--nfa-flow", flow_dir, "--nfa-cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match="--nfa-cache moves images before --aa"):
        run("--aug", "nfa", *EITHER, *AA, *cache)
    with pytest.raises(SystemExit, match="either does not work with --aug-splits"):
        run("--aug", "nfa", *EITHER, *AA, "--aug-splits", 3, "--jsd-loss")
    nfa.add_args(parser := argparse.ArgumentParser())
    args = parser.parse_args(["--aug", "nfa", *EITHER])
    with pytest.raises(
        NFAError, match=r"is for the launcher; .*v2.RandomChoice\(\[augment, policy"
    ):
        nfa.wrap_loader([], args)


def test_the_line_of_the_log_names_it(run, capsys):
    run("--aug", "nfa-s1", "--nfa-flow", "cosine", *EITHER, *AA)
    assert "p 0.5, m pca, place either" in capsys.readouterr().err


def test_the_recipe_for_a_transform_of_ones_own_gives_both(image_folder):
    aug = nfa.NFAugment.from_cosine(strength=1.0)
    either = recipes.run_recipe("timm.md", "either", {"aug": aug})["either"]
    image = ImageFolder(image_folder / "train")[0][0]
    own, other = either.transforms
    assert own.p == 1 and isinstance(other, v2.RandAugment)
    calls = []
    for transform in (own, other):
        transform.register_forward_pre_hook(lambda module, _: calls.append(type(module)))
    torch.manual_seed(0)
    assert all(either(image).size == image.size for _ in range(40))
    assert len(calls) == 40 and 8 <= calls.count(nfa.NFAugment) <= 32
