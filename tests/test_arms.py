"""Moves as a step of an arm: modes of the run's own images, pooled or per class, and those a flow came with."""

import pytest
import torch

from benchmarks.cifar.arms import (
    Arm,
    NFAStep,
    Settings,
    fitted,
    kept_modes,
    linear_flow,
    randaugment,
)
from benchmarks.cifar.quick import QuickRecipe
from benchmarks.cifar.resnet import Recipe
from benchmarks.cifar.training import train
from benchmarks.finetuning.recipe import FinetuneRecipe
from train_flow.data import Images


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_workers_change_nothing(data):
    recipe = Recipe("resnet10_quarter", 2, 16, bf16=False)
    make = lambda: Arm(randaugment("rand-m9-mstd0.5-inc1", 32), reprob=0.25)
    found = []
    for workers in (0, 2):
        model, cost = train(data, make(), recipe, 3, workers)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert cost["images_seen"] == 2 * (len(data) // 16) * 16
    assert torch.equal(*found)
    other = train(data, make(), recipe, 4, 2)[0]
    assert not torch.equal(found[0], torch.cat([p.flatten() for p in other.parameters()]))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("resnet10_quarter", 2, 16),
        QuickRecipe(batch_size=16),
        FinetuneRecipe(side=32, batch_size=16, norm="trained", frozen_stages=0, flip=False),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_workers_crop_and_flip_as_the_recipe_does(data, recipe):
    batches = recipe.batches(data, 3)
    for step, levels in enumerate(batches.in_workers(lambda image: image, 4, 2)):
        wanted = batches.crop_and_flip(data.levels[batches.indices(step)], step)
        assert torch.equal(levels, wanted)


def test_modes_come_from_the_runs_own_images(data, small_flow):
    """A class's modes fitted on part of the data are those of that part, whatever the flow stored."""
    part, s = data.subset(torch.arange(0, 60, 2)), Settings(modes=4, p=1.0)
    one, other = (fitted(small_flow, images, s).flow for images in (data, part))
    assert not torch.allclose(one.prior.mode_std, other.prior.mode_std)
    z = small_flow(part.levels[part.labels == 0].float() / 127.5 - 1)[0]
    torch.testing.assert_close(
        other.prior.mu[0], z.mean(0), rtol=0, atol=0.05
    )  # levels sit at their centres: 1/256 apart


def test_pooled_modes_know_no_class(data, small_flow):
    def alike(flow, labels):
        """Whether images are moved alike, whatever their labels are said to be."""
        step = NFAStep(fitted(flow, data, Settings(modes=4, p=1.0), labels))
        moved = [step(data.levels, y, generator()) for y in (data.labels, data.labels.flip(0))]
        return torch.equal(*moved)

    assert alike(small_flow, "none") and alike(linear_flow(data), "none")
    assert not alike(linear_flow(data), "given")


def test_a_step_leaves_the_callers_images_and_draws_from_its_generator_alone(data):
    step = NFAStep(fitted(linear_flow(data), data, Settings(modes=4), "none"))
    before = data.levels.clone()
    first, again, other = (step(data.levels, data.labels, generator(s)) for s in (1, 1, 2))
    assert torch.equal(data.levels, before) and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 10 < (first != before).flatten(1).any(1).sum() < 50, "p is 0.5"


def test_kept_modes_are_those_the_flow_came_with(data):
    """Of the classes, or of all images together where the flow knows no classes."""
    s = Settings(modes=4, p=1.0)
    other = Images(data.levels.flip(-1), data.labels, data.class_names)  # of other modes
    for labels, images in (("given", data), ("none", data.without_labels())):
        flow = fitted(linear_flow(data), images, s).flow
        here, there = (fitted(linear_flow(data), d, s, labels) for d in (data, other))
        kept, own, new = (
            NFAStep(a)(data.levels, data.labels, generator())
            for a in (kept_modes(flow, other, s), here, there)
        )
        assert torch.equal(kept, own) and not torch.equal(kept, new)
    two = Images(data.levels, data.labels, ["a", "b"])
    with pytest.raises(ValueError, match="no classes or of the 2 of the data, got one of 3"):
        kept_modes(fitted(linear_flow(data), data, s).flow, two, s)


def test_classes_of_one_image_lean_on_the_others_or_are_refused(data):
    first = lambda *counts: data.subset(
        torch.cat([torch.where(data.labels == k)[0][:n] for k, n in enumerate(counts)])
    )
    too_few = "two images or more, one class has 1; take more images of it"
    with pytest.raises(ValueError, match=too_few):
        fitted(linear_flow(data), first(1, 1, 1), Settings())
    with pytest.raises(ValueError, match=too_few):
        fitted(linear_flow(data), first(1, 2, 3), Settings(shrinkage=0.0))
    assert fitted(linear_flow(data), first(1, 2, 3), Settings()).modes == 3
    with pytest.raises(ValueError, match="move"):
        Settings(move="pcb")
