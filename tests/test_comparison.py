"""The classification comparison: arms on equal terms, their losses, the record of runs."""

import dataclasses
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch.distributions import MultivariateNormal

from benchmarks.cifar import quoted, tables
from benchmarks.cifar import resnet18 as cifar_resnet18
from benchmarks.cifar.arms import (
    ARMS,
    ISDA,
    Arm,
    Settings,
    apply_policy,
    deep_modes,
    find,
    fitted,
    linear_flow,
    make_arm,
    mean_move,
    needs_flow,
    patch_flow,
)
from benchmarks.cifar.classifier import Recipe, crop_and_flip, make_classifier, train
from benchmarks.cifar.comparison import comparisons, label, table
from benchmarks.cifar.corruptions import CORRUPTIONS
from benchmarks.cifar.resnet18 import main, subset
from benchmarks.core import records
from benchmarks.core.statistics import half_width, seeds_for
from timm_nfaug import create_flow, pixels
from timm_nfaug.flows.bijections.conv1x1 import Conv1x1
from timm_nfaug.moves import draw_noise
from train_flow.data import Images

SMALL = ["--model", "resnet10_half", "--epochs", "1", "--batch-size", "8", "--threads", "1"]


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


@pytest.fixture
def tree(toy_images, tmp_path):
    """train/ and val/ of the toy images as PNG files."""
    for i, (levels, k) in enumerate(
        zip(toy_images[0].permute(0, 2, 3, 1).numpy(), toy_images[1].tolist(), strict=True)
    ):
        for split in ("train", "val"):
            folder = tmp_path / "tree" / split / "abc"[k]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels).save(folder / f"{i:03d}.png")
    return tmp_path / "tree"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_recipe_is_the_papers_unless_told_otherwise():
    """Enescu & Sahbi, supplementary 3.2 and table 4."""
    for data, epochs, batch_size in (("cifar10", 30, 128), ("cifar100", 50, 198)):
        args = cifar_resnet18.parse(["--data", data])
        assert (args.epochs, args.batch_size, args.model, args.fraction) == (
            [epochs],
            batch_size,
            "resnet18",
            1.0,
        )
        assert args.max_lr == 0.1 and args.init == ""
    recipe = Recipe()
    assert (recipe.model, recipe.max_lr, recipe.momentum, recipe.weight_decay, recipe.crop) == (
        "resnet18",
        0.1,
        0.9,
        5e-4,
        4,
    )
    model = make_classifier("resnet18", 10)
    assert model.conv1.weight.shape == (64, 3, 3, 3) and model.conv1.stride == (1, 1)
    assert model.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 512, 4, 4)


# -- arms --------------------------------------------------------------------------------------------------------------


COMBINED = ("sa+linear", "trivial+linear", "mixup+linear", "cutmix+linear", "sa+glem")


@pytest.mark.parametrize("name", sorted({*ARMS, *COMBINED} - {"ce", "tangent", "deep"}))
def test_every_arm_changes_its_batch_and_only_by_its_generator(name, data, small_flow):
    torch.manual_seed(0)
    model = make_classifier("resnet10_half", 3)
    arm = make_arm(name, data, small_flow if needs_flow(name) else None, Settings(modes=4, p=1.0))
    arm.start(model, 10)
    levels, y = data.levels[:16], data.labels[:16]
    before = levels.clone()

    def batch(seed):
        torch.manual_seed(seed)
        levels_out = arm.images(apply_policy(arm.policy, levels), y, generator(seed))
        x, target = arm.tensors(levels_out.float() / 255, y)
        return levels_out, x, target

    out, x, target = batch(1)
    assert torch.equal(levels, before), "the caller's images were changed"
    assert out.shape == levels.shape and out.dtype == torch.uint8
    other = name.partition("+")[0]
    if other not in (
        "sa",
        "trivial",
        "mixup",
        "cutmix",
    ):  # timm's parts draw from Python's generators
        again = batch(1)
        assert torch.equal(out, again[0]) and torch.equal(x, again[1])
    draws = [batch(seed) for seed in range(5)]  # cutmix leaves half of the batches as they are
    changed = any(
        not torch.equal(o, levels) or not torch.equal(v, levels.float() / 255) for o, v, _ in draws
    )
    assert changed == (name not in ("baseline", "isda"))
    assert (target.ndim == 2) == (other in ("mixup", "cutmix"))
    loss = arm.loss(model, x, target, 0)
    assert loss.isfinite() and loss.requires_grad


@pytest.mark.parametrize("other", ["sa", "trivial", "mixup", "cutmix"])
def test_arms_with_linear_added_have_both(other, data):
    """The move is that of `linear` and the rest that of the other arm, whichever side of the crop it is on."""
    for place in ("after", "before"):
        s = Settings(modes=4, p=1.0, place=place, reprob=0.5)
        both, alone, linear = (
            make_arm(name, data, None, s) for name in (f"{other}+linear", other, "linear")
        )
        assert type(both.policy) is type(alone.policy) and type(both.mix) is type(alone.mix)
        assert bool(both.erase) == bool(alone.erase) == (other == "sa") and (
            both.policy or both.mix
        )
        step, own = (a.before if place == "before" else a.levels for a in (both, linear))
        moved = step(data.levels, data.labels, generator())
        assert torch.equal(moved, own(data.levels, data.labels, generator())) and not torch.equal(
            moved, data.levels
        )


@pytest.mark.parametrize("name", ["sa", "sa+linear", "trivial"])
def test_workers_change_nothing(name, data):
    recipe = Recipe("resnet10_quarter", 2, 16, bf16=False)
    found = []
    for workers in (0, 2):
        model, cost = train(data, make_arm(name, data, None, Settings(modes=4)), recipe, 3, workers)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert cost["images_seen"] == 2 * (len(data) // 16) * 16
    assert torch.equal(*found)
    other = train(data, make_arm(name, data, None, Settings(modes=4)), recipe, 4, 2)[0]
    assert not torch.equal(found[0], torch.cat([p.flatten() for p in other.parameters()]))


def test_controls_move_pixels_as_far_as_the_flow(data, small_flow):
    s = Settings(modes=4, strength=0.3, p=1.0)
    with torch.no_grad():
        for layer in (
            small_flow.network.layers
        ):  # a flow whose codes are another picture than pixels or patches
            if isinstance(layer, Conv1x1):
                layer.weight[:8] *= 20
    wanted = mean_move(fitted(small_flow, data, s), data)
    for name, make in (("pixel-pca", linear_flow), ("patch-pca", patch_flow)):
        step = make_arm(name, data, small_flow, s).levels
        moved = step(data.levels, data.labels, generator())
        found = (moved.float() - data.levels.float()).abs().mean().item()
        assert found == pytest.approx(wanted, rel=0.08), (
            name
        )  # other draws, and clamping at the ends of the range
        plain = mean_move(fitted(make(data), data, s), data)
        assert abs(plain / wanted - 1) > 0.15, (
            "the control needed no scaling, so this proves nothing"
        )


def test_deep_modes_leave_what_left_earlier_levels_as_it_is_and_move_pixels_as_far(
    data, small_flow
):
    torch.manual_seed(0)
    flow = create_flow("resnet_ms3", num_classes=3, levels=2, steps=2, blocks=1, hidden=8).eval()
    flow.initialize(pixels.levels_to_model(data.levels))
    x, deepest = pixels.levels_to_model(data.levels), 24 * 8 * 8
    s = Settings(modes=4, strength=0.3, p=1.0)
    moved = make_arm("deep", data, flow, s).levels(data.levels, data.labels, generator())
    wanted = mean_move(fitted(flow, data, s), data)
    assert (moved.float() - data.levels.float()).abs().mean().item() == pytest.approx(
        wanted, rel=0.1
    )
    modes, std = deep_modes(flow, data, 4, shrinkage=0.0)
    z = flow(x)[0][data.labels == 1][:, -deepest:]
    singular = torch.linalg.svdvals(z - z.mean(0))[:4] / math.sqrt(len(z) - 1)
    torch.testing.assert_close(std[1], singular, rtol=1e-3, atol=0)
    assert (
        not modes[:, :, :-deepest].any()
        and modes[:, :, -deepest:].norm(dim=2).sub(1).abs().max() < 1e-4
    )
    with pytest.raises(ValueError, match="deep needs a multi-scale flow"):
        make_arm("deep", data, small_flow, s)


def test_modes_come_from_the_runs_own_images(data, small_flow):
    """A class's modes fitted on part of the data are those of that part, whatever the flow stored."""
    part = data.subset(torch.arange(0, 60, 2))
    one, other = (
        fitted(small_flow, data, Settings(modes=4, p=1.0)).flow,
        fitted(small_flow, part, Settings(modes=4, p=1.0)).flow,
    )
    assert not torch.allclose(one.prior.mode_std, other.prior.mode_std)
    z = small_flow(part.levels[part.labels == 0].float() / 127.5 - 1)[0]
    torch.testing.assert_close(
        other.prior.mu[0], z.mean(0), rtol=0, atol=0.05
    )  # levels sit at their centres: 1/256 apart


def test_pooled_modes_know_no_class(data, small_flow):
    for name in ("pooled", "linear-pooled"):
        step = make_arm(name, data, small_flow, Settings(modes=4, p=1.0)).levels
        assert torch.equal(
            step(data.levels, data.labels, generator()),
            step(data.levels, data.labels.flip(0), generator()),
        )
    step = make_arm("linear", data, None, Settings(modes=4, p=1.0)).levels
    assert not torch.equal(
        step(data.levels, data.labels, generator()),
        step(data.levels, data.labels.flip(0), generator()),
    )


def test_rotation_turns_toward_an_image_of_the_class(data):
    """Image by image: mu + cos(t) r + sin(t) r' in the pixels, which are the linear flow's codes."""
    x = data.levels.flatten(1).double()
    arm = make_arm("linear-rotation", data, None, Settings(strength=0.6, modes=4, p=1.0))
    out = arm.levels(data.levels, data.labels, generator())
    places, turns = torch.special.ndtr(draw_noise(len(x), 2, generator())).T.tolist()
    for i, k in enumerate(data.labels.tolist()):
        own = x[data.labels == k]
        mu, other, t = own.mean(0), own[int(places[i] * len(own))], 0.6 * turns[i]
        expected = mu + math.cos(t) * (x[i] - mu) + math.sin(t) * (other - mu)
        assert (out[i].flatten() - expected.clamp(0, 255)).abs().max() < 0.51  # rounding to levels
    assert (out != data.levels).any(dim=(1, 2, 3)).sum() > 50


def test_rotation_toward_a_draw_keeps_mean_and_variance(data):
    """With all modes a class's rotated images have its moments, whatever the angle: the turn stays in its Gaussian."""
    levels, y = data.levels.repeat(160, 1, 1, 1), data.labels.repeat(160)
    s = Settings(strength=3.0, modes=19, p=1.0, shrinkage=0.0)
    out = make_arm("linear-mode-rotation", data, None, s).levels(levels, y, generator())
    for k in range(3):
        x, new = (v[y == k].flatten(1).float() for v in (levels, out))
        assert (x.mean(0) - new.mean(0)).abs().mean() < 1.5
        assert new.var(0).sum() / x.var(0).sum() == pytest.approx(1.0, abs=0.06)


def test_place_before_the_crop(data, small_flow):
    for name in ("linear", "glem", "sa+glem", "rotation", "samples"):
        arm = make_arm(name, data, small_flow, Settings(modes=4, place="before", p=1.0))
        assert arm.levels is None and not torch.equal(
            arm.before(data.levels, data.labels, generator()), data.levels
        )
        assert (arm.policy is not None) == (arm.erase is not None) == (name == "sa+glem")
    with pytest.raises(ValueError, match="adversarial needs the image that the classifier sees"):
        make_arm("adversarial", data, small_flow, Settings(modes=4, place="before", p=1.0))
    with pytest.raises(ValueError, match="place must be after or before"):
        Settings(place="afterwards")


def test_tangents_move_the_images_that_the_flow_moves_and_as_it_does(data, small_flow):
    s = Settings(modes=4, strength=0.3, p=0.5, place="before")
    arms = (make_arm(name, data, small_flow, s) for name in ("glem", "tangent"))
    exact, first = (arm.before(data.levels, data.labels, generator()) for arm in arms)
    change, error = (
        (exact.float() - data.levels.float()).flatten(1),
        (first.float() - exact.float()).flatten(1),
    )
    moved = change.any(1)
    assert 10 < moved.sum() < 50 and torch.equal((first != data.levels).flatten(1).any(1), moved)
    assert error.norm() < 0.2 * change.norm()
    few = data.subset(torch.arange(0, 60, 12))  # fewer images of a class than modes are asked for
    few = Images(few.levels.repeat(2, 1, 1, 1), few.labels.repeat(2), few.class_names)
    assert (
        make_arm("tangent", few, small_flow, s).before(few.levels, few.labels, generator()).shape
        == few.levels.shape
    )
    with pytest.raises(
        ValueError, match="tangent knows the training images as they are stored: --place before"
    ):
        make_arm("tangent", data, small_flow, Settings(modes=4))


def test_safe_steps_are_taken_back_where_the_classifier_loses_the_label_by_them(data, small_flow):
    class Darkness(torch.nn.Module):  # class 1 where the image is darker than grey, else 0
        def forward(self, x):
            dark = -x.flatten(1).mean(1)
            return torch.stack([-dark, dark, torch.full_like(dark, -9.0)], 1)

    y = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    levels = (data.levels // 8 + 112).clamp(0, 255)  # about grey, so that small moves cross it
    shift = torch.randint(-16, 17, (60, 1, 1, 1), generator=generator())
    levels = (levels.int() + shift).to(torch.uint8)
    images, s = Images(levels, y, data.class_names), Settings(modes=4, strength=1.0, p=1.0)
    safe, plain = make_arm("linear-safe", images, None, s), make_arm("linear", images, None, s)
    safe.start(Darkness(), 1)
    found, moved = safe.images(levels, y, generator()), plain.images(levels, y, generator())
    right = lambda x: (x.flatten(1).float().mean(1) < 127.5).long() == y
    lost = right(levels) & ~right(moved)
    assert 3 < lost.sum() < 40
    assert (
        torch.equal(found, torch.where(lost.view(-1, 1, 1, 1), levels, moved))
        and safe.levels.augment.change.model.training
    )


def test_adversarial_step_raises_the_loss_more_than_a_random_one(data, small_flow):
    torch.manual_seed(0)
    model = make_classifier("resnet10_half", 3)
    s = Settings(modes=4, strength=0.5, p=1.0)
    losses = {}
    for name in ("adversarial", "isotropic"):
        arm = make_arm(name, data, small_flow, s)
        arm.start(model, 1)
        images = arm.images(data.levels, data.labels, generator())
        model.eval()
        with torch.no_grad():
            losses[name] = F.cross_entropy(model(images.float() / 255 * 4 - 2), data.labels).item()
    assert losses["adversarial"] > losses["isotropic"]
    assert all(p.grad is None for p in model.parameters())


def test_isda_loss_bounds_the_sampled_one(data):
    """The closed form is at least the mean cross-entropy over features moved along their class's covariance."""
    torch.manual_seed(0)
    model = make_classifier("resnet10_half", 3).eval()
    head = model.get_classifier()
    torch.nn.init.normal_(head.weight, std=3.0)
    x, y = data.levels.float() / 127.5 - 1, data.labels
    arm = ISDA(strength=1.0)
    arm.start(model, 1)
    with torch.no_grad():
        loss = arm.loss(model, x, y, 0)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        for k in range(3):  # the running moments after one batch are the batch's
            rows = features[y == k]
            torch.testing.assert_close(
                arm.covariance[k], torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-5
            )
        eye = 1e-6 * torch.eye(features.shape[1])
        noise = [
            MultivariateNormal(torch.zeros(len(eye)), c + eye).sample((500,))
            for c in arm.covariance
        ]
        sampled = torch.stack(
            [
                F.cross_entropy(head(f + noise[k]), y[:1].new_full((500,), k))
                for f, k in zip(features, y)
            ]
        )
    plain = F.cross_entropy(head(features), y)
    assert loss > sampled.mean() + 0.01 and loss > plain + 0.01
    arm.strength = 0.0
    torch.testing.assert_close(arm.loss(model, x, y, 0), F.cross_entropy(model(x), y))


def test_own_modes_are_those_the_flow_came_with(data):
    """Of the classes, or of all images together where the flow knows no classes."""
    s = Settings(modes=4, p=1.0)
    for name, images in (("linear", data), ("linear-pooled", data.without_labels())):
        kept = fitted(linear_flow(data), images, s).flow
        other = Images(
            data.levels.flip(-1), data.labels, data.class_names
        )  # that would give other modes
        own, there, here = (
            make_arm("own-modes", other, kept, s),
            make_arm(name, data, None, s),
            make_arm(name, other, None, s),
        )
        moved = [a.images(data.levels, data.labels, generator(0)) for a in (own, there, here)]
        assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    with pytest.raises(
        ValueError, match="own-modes keeps the modes of the flow's own 3 classes, the data has 2"
    ):
        make_arm(
            "own-modes",
            Images(data.levels, data.labels, ["a", "b"]),
            fitted(linear_flow(data), data, s).flow,
            s,
        )


def test_wrong_arms_are_refused(data, small_flow):
    with pytest.raises(ValueError, match="unknown arm 'glen'"):
        make_arm("glen", data, None, Settings())
    with pytest.raises(ValueError, match="arm glem needs a flow: --flow glem=NAME"):
        make_arm("glem", data, None, Settings())
    with pytest.raises(ValueError, match="arm ce takes a flow with conditional encoding"):
        make_arm("ce", data, small_flow, Settings())
    one = data.subset(torch.cat([torch.where(data.labels == k)[0][:1] for k in range(3)]))
    with pytest.raises(
        ValueError, match="two images or more, one class has 1; take a larger fraction"
    ):
        make_arm("linear", one, None, Settings())
    some = data.subset(torch.cat([torch.where(data.labels == k)[0][: 1 + k] for k in range(3)]))
    with pytest.raises(
        ValueError, match="two images or more, one class has 1; take a larger fraction"
    ):
        make_arm("linear", some, None, Settings(shrinkage=0.0))
    assert fitted(linear_flow(data), some, Settings()).modes == 3, (
        "a class of one image leans on the others"
    )


def test_two_arms_are_combined_by_a_plus(data):
    both = find("cutmix+linear")
    assert (both.name, both.flow, both.on_linear) == ("cutmix+linear", None, True)
    assert both.settings == find("linear").settings
    assert find("sa+glem").flow == "glem" and needs_flow("sa+glem") and not needs_flow("sa+linear")
    assert find("sa+linear").settings == (*find("linear").settings, "randaugment", "reprob")
    for name in ("linear+sa", "linear+glem", "baseline+linear", "sa+trivial", "sa+linear+glem"):
        with pytest.raises(ValueError, match="cannot combine .*; expected a policy and a move"):
            find(name)
    with pytest.raises(ValueError, match="unknown arm 'glen'"):
        find("sa+glen")


def test_every_arm_says_what_it_is():
    for name, arm in ARMS.items():
        assert arm.name == name and arm.label
        assert set(arm.settings) <= {f.name for f in dataclasses.fields(Settings)}
        assert arm.flow is None or (arm.flow in ARMS and not arm.on_linear)
    assert len({arm.label for arm in ARMS.values()}) == len(ARMS)


def test_a_record_has_the_settings_that_its_arm_uses():
    """At any value strength, modes, p and temperature; the others where they are not the usual."""
    flow = ["--flow", "glem=x", "--flow-trained-on", "y"]

    def settings(arm, *more):
        args = cifar_resnet18.parse(["--data", "cifar10", "--arms", arm, *flow, *more])
        return cifar_resnet18.on_record(arm, args)

    moved = {"strength": 0.5, "modes": 32, "p": 0.5}
    assert settings("baseline", "--strength", "1") == {}
    assert settings("linear") == moved | {"shrinkage": 100.0}
    assert settings("linear", "--shrinkage", "0", "--place", "before") == moved | {
        "place": "before"
    }
    assert settings("linear-pooled") == moved
    assert settings("samples", "--p", "1") == {"p": 1.0, "shrinkage": 100.0, "temperature": 0.7}
    assert settings("sa+glem", "--reprob", "0") == moved | {"shrinkage": 100.0, "reprob": 0.0}


# -- training ----------------------------------------------------------------------------------------------------------


def test_arms_of_a_seed_see_the_same_crops(data):
    """A part that does nothing leaves training to the last bit as it was: arms differ in nothing else."""
    recipe = Recipe("resnet10_half", epochs=1, batch_size=16, bf16=False)
    weights = []
    for part in (
        {},
        {"levels": lambda levels, y, g: levels},
        {"before": lambda levels, y, g: levels},
    ):
        arm = Arm(**part)
        model, cost = train(data, arm, recipe, seed=3)
        weights.append(model.fc.weight)
        assert cost["images_seen"] == 48  # three full batches of the 60 images
    assert all(torch.equal(w, weights[0]) for w in weights)
    assert not torch.equal(
        train(data, make_arm("baseline", data, None, Settings()), recipe, seed=4)[0].fc.weight,
        weights[0],
    )


def test_crop_and_flip_is_that_of_torchvision(data):
    """Every result is some crop of the image padded by four black pixels, mirrored or not."""
    levels = data.levels[:8]
    out = crop_and_flip(levels, 4, generator())
    padded = F.pad(levels, (4, 4, 4, 4))
    flips = 0
    for image, source in zip(out, padded, strict=True):
        candidates = [(source[:, i : i + 32, j : j + 32], i, j) for i in range(9) for j in range(9)]
        straight = any(torch.equal(image, c) for c, _, _ in candidates)
        mirrored = any(torch.equal(image, c.flip(2)) for c, _, _ in candidates)
        assert straight or mirrored
        flips += mirrored
    assert 0 < flips < 8


def test_corruptions_corrupt(data):
    for name, corruption in CORRUPTIONS.items():
        torch.manual_seed(0)
        out = corruption(data.levels)
        assert out.shape == data.levels.shape and out.dtype == torch.uint8, name
        change = (out.float() - data.levels.float()).abs().mean()
        assert 1 < change < 100, f"{name} moves a pixel by {change:.1f} levels"


# -- the command and its record ----------------------------------------------------------------------------------------


def test_subsets_are_stratified_paired_and_apart_from_the_held_images(data):
    parts = [subset(data, len(data), 0.25, seed) for seed in (0, 0, 1)]
    assert [torch.bincount(p.labels).tolist() for p in parts] == [[5, 5, 5]] * 3
    assert torch.equal(parts[0].levels, parts[1].levels) and not torch.equal(
        parts[0].levels, parts[2].levels
    )
    assert subset(data, len(data), 1.0, 0) is data


def test_jobs_give_the_runs_of_one_after_another_and_outlast_a_failure(tree, tmp_path, capsys):
    def run(name, *more):
        record = tmp_path / f"{name}.jsonl"
        common = [
            "--data",
            str(tree),
            "--data-name",
            "toy images",
            "--record",
            str(record),
            "--seeds",
            "0",
            "--modes",
            "4",
        ]
        code = main([*common, *SMALL, "--fraction", "0.5", *more])
        return code, {r["arm"]: r for r in records.read(record)}

    flow = ["--flow", "glem=conv_p4_small.cifar10", "--flow-trained-on", "other images"]
    code, alone = run("alone", "--arms", "baseline", "sa")
    # tangent is not for after the crop
    also, beside = run(
        "beside", "--jobs", "2", "--workers", "1", *flow, "--arms", "baseline", "tangent", "sa"
    )
    assert code == 0 and also == 1
    assert "tangent, seed 0, failed: ValueError: arm tangent" in capsys.readouterr().err
    assert {a: r["metrics"] for a, r in alone.items()} == {
        a: r["metrics"] for a, r in beside.items()
    }
    assert all(r["device"].endswith("2 at once") for r in beside.values())


def test_a_flow_is_called_by_its_training(tmp_path):
    for folder, name in (
        ("flow", "mine"),
        ("flow-20", "mine_20"),
        ("flow-of-mine", "flow-of-mine"),
    ):
        path = tmp_path / "mine" / folder
        path.mkdir(parents=True)
        args = cifar_resnet18.parse(
            [
                "--data",
                "cifar10",
                "--arms",
                "glem",
                "--flow",
                f"glem={path}",
                "--flow-trained-on",
                "x",
            ]
        )
        assert cifar_resnet18.describe(args, "glem", 0, Recipe(), "d", "test")["flow"] == name


def test_no_run_is_begun_that_would_outlast_the_time_limit(tree, tmp_path, monkeypatch, capsys):
    """At the pace of the slowest epoch so far: of 1 and of 50 epochs in one command the short ones go on."""
    now, done = [1000.0], []

    def execute(runs, args, data, vals, recipe):
        now[0] += 10 * recipe.epochs
        done.append((runs[0]["arm"], recipe.epochs))
        for run in runs:
            run |= (
                a_run()
                | {k: run[k] for k in records.KEY}
                | {"metrics": {"top1": 1.0, "nll": 1.0, "ece": 1.0}}
            )

    monkeypatch.setattr(cifar_resnet18, "execute", execute)
    monkeypatch.setattr(cifar_resnet18.time, "time", lambda: now[0])
    common = [
        "--data",
        str(tree),
        "--data-name",
        "toy images",
        "--record",
        str(tmp_path / "runs.jsonl"),
        "--seeds",
        "0",
    ]
    assert (
        main(
            [
                *common,
                *SMALL,
                "--time-limit",
                "30",
                "--arms",
                "baseline",
                "sa",
                "trivial",
                "isda",
                "mixup",
            ]
        )
        == 0
    )
    assert done == [("baseline", 1), ("sa", 1), ("trivial", 1)]
    assert "time limit reached" in capsys.readouterr().out
    assert (
        main([*common, *SMALL, "--time-limit", "300", "--arms", "isda", "--epochs", "2", "50"]) == 0
    )
    assert done[3:] == [("isda", 2)]


def test_command_records_runs_and_goes_on(tree, tmp_path, small_flow, capsys):
    small_flow.save_pretrained(tmp_path / "mine" / "flow")
    record = tmp_path / "runs.jsonl"
    common = [
        "--data",
        str(tree),
        "--data-name",
        "toy images",
        "--record",
        str(record),
        "--seeds",
        "0",
        "--modes",
        "4",
        *SMALL,
    ]
    assert main([*common, "--arms", "baseline", "linear", "--fraction", "0.5"]) == 0
    assert len(records.read(record)) == 2
    more = [
        *common,
        "--arms",
        "baseline",
        "linear",
        "glem",
        "--fraction",
        "0.5",
        "--flow",
        f"glem={tmp_path / 'mine' / 'flow'}",
    ]
    more += ["--flow-trained-on", "other images"]
    assert main(more) == 0
    runs = records.read(record)
    assert [r["arm"] for r in runs] == ["baseline", "linear", "glem"], (
        "runs on record are not repeated"
    )
    assert runs[2]["flow"] == "mine" and runs[2]["settings"]["flow_trained_on"] == "other images"
    assert (
        runs[0]["training_images"] == 30
        and runs[0]["images_seen"] == 24
        and runs[1]["flow_seconds"] > 0
    )
    assert all(
        0 <= r["metrics"]["top1"] <= 100 and math.isfinite(r["metrics"]["nll"]) for r in runs
    )
    assert str(tmp_path) not in record.read_text()
    # the same seed gives the same figures
    again = tmp_path / "again.jsonl"
    assert (
        main(
            [
                *common[:4],
                "--record",
                str(again),
                *common[6:],
                "--arms",
                "baseline",
                "--fraction",
                "0.5",
            ]
        )
        == 0
    )
    assert records.read(again)[0]["metrics"] == runs[0]["metrics"]
    # to choose settings: other images, apart from those of the trainings
    assert main([*common, "--arms", "baseline", "--fraction", "0.5", "--split", "held"]) == 0
    held = records.read(record)[-1]
    assert held["split"] == "held"
    # on both by one training, each with its own metrics
    both = tmp_path / "both.jsonl"
    more = [
        *common[:4],
        "--record",
        str(both),
        *common[6:],
        "--arms",
        "baseline",
        "--fraction",
        "0.5",
    ]
    assert main([*more, "--split", "held"]) == 0 and main([*more, "--split", "test", "held"]) == 0
    assert {r["split"]: r["metrics"] for r in records.read(both)} == {
        "held": held["metrics"],
        "test": runs[0]["metrics"],
    }
    assert len(records.read(both)) == 2


def test_other_settings_of_randaugment_act_and_are_on_record(tree, data, tmp_path):
    record = tmp_path / "runs.jsonl"
    common = [
        "--data",
        str(tree),
        "--data-name",
        "toy images",
        "--record",
        str(record),
        "--seeds",
        "0",
        *SMALL,
    ]
    assert main([*common, "--arms", "sa", "baseline"]) == 0
    assert (
        main(
            [
                *common,
                "--arms",
                "sa",
                "baseline",
                "--randaugment",
                "rand-m9-tweights",
                "--reprob",
                "0",
            ]
        )
        == 0
    )
    assert [label(r) for r in records.read(record)] == [
        "sa",
        "baseline",
        "sa rand-m9-tweights erasing 0",
    ]
    plain = make_arm(
        "sa", data, None, Settings(randaugment="rand-m0-n0", reprob=0.0)
    )  # no operation, no erasing
    x, _ = plain.tensors(plain.images(data.levels, data.labels, generator()).float(), data.labels)
    assert torch.equal(x, data.levels.float())


def test_a_flow_is_trained_on_the_runs_own_images(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_resnet18, "ROOT", tmp_path)
    settings = {
        "image_size": 32,
        "flow": "conv_p4_tiny",
        "network": {"depth": 1, "hidden": 8},
        "steps": 3,
        "batch_size": 8,
    }
    (tmp_path / "toy.yaml").write_text(
        json.dumps({**settings, "objective": "ml", "prior": {"num_modes": 4}})
    )
    record = tmp_path / "runs.jsonl"
    common = [
        "--data",
        str(tree),
        "--data-name",
        "toy images",
        "--record",
        str(record),
        "--modes",
        "4",
        *SMALL,
    ]
    own = [
        *common,
        "--arms",
        "glem",
        "--flow",
        f"glem=train:{tmp_path / 'toy.yaml'}",
        "--fraction",
        "0.5",
    ]
    assert main([*own, "--seeds", "0", "1"]) == 0
    runs = records.read(record)
    assert [r["flow"] for r in runs] == ["train:toy"] * 2 and runs[0]["flow_seconds"] > 0
    assert {r["settings"]["flow_trained_on"] for r in runs} == {"the run's own images"}
    trained = sorted((tmp_path / "runs" / "own").iterdir())
    logs = [
        [json.loads(line)["step"] for line in (d / "log.jsonl").read_text().splitlines()]
        for d in trained
    ]
    assert len(trained) == 2 and all(max(log) == 3 for log in logs)
    assert main([*own, "--seeds", "0", "--strength", "0.7"]) == 0
    assert (
        len(records.read(record)) == 3 and sorted((tmp_path / "runs" / "own").iterdir()) == trained
    ), "trained once"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arms", "glem"], "arm glem needs --flow glem=NAME"),
        (["--arms", "sa", "--flow", "sa=x"], "--flow takes ARM=NAME with an arm of"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (
            ["--jobs", "2", "--arms", "glem", "--flow", "glem=train:linear.cifar10"],
            "so it needs --jobs 1",
        ),
        (["--fraction", "0"], "--fraction must be above 0"),
        (["--split", "test", "held"], "choose one split"),
        (["--arms", "glem", "--flow", "glem=x"], "--flow-trained-on is needed with flow x"),
    ],
)
def test_command_refuses(arguments, message, tree, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(tree), "--data-name", "toy", *arguments])
    assert message in capsys.readouterr().err


def test_a_classifier_is_fine_tuned_from_saved_weights(tree, tmp_path):
    record = tmp_path / "runs.jsonl"
    common = [
        "--data",
        str(tree),
        "--data-name",
        "toy (32 px)",
        "--record",
        str(record),
        "--seeds",
        "0",
        "--arms",
        "baseline",
    ]
    assert main([*common, *SMALL, "--save", str(tmp_path / "saved")]) == 0
    (saved,) = (tmp_path / "saved").iterdir()
    assert re.fullmatch(
        r"toy-32-px-resnet10_half-baseline-1-0-[0-9a-f]{8}\.safetensors", saved.name
    )
    assert main([*common, *SMALL, "--init", str(saved), "--max-lr", "0.001"]) == 0
    first, second = records.read(record)
    assert second["settings"]["init"] == saved.stem and second["settings"]["max_lr"] == 0.001
    assert len(comparisons([first, second])) == 2, "another recipe, another table"
    # with no step to speak of, the body is the saved one and the head is new
    data = Images(
        torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 3, ["a", "b", "c"]
    )
    recipe = Recipe(
        "resnet10_half", epochs=1, batch_size=8, max_lr=1e-12, bf16=False, init=str(saved)
    )
    model, _ = train(data, Arm(), recipe, seed=1)
    weights = load_file(saved)
    assert torch.equal(model.layer4[0].conv1.weight, weights["layer4.0.conv1.weight"])
    assert not torch.allclose(model.fc.weight, weights["fc.weight"])
    with pytest.raises(
        ValueError,
        match="holds another model than this one: .*; give the --model it was saved from",
    ):
        train(
            data, Arm(), Recipe("resnet10_quarter", epochs=1, batch_size=8, init=str(saved)), seed=1
        )


def a_run(**changes) -> dict:
    run = {
        "suite": "s", "data": "d", "split": "test", "fraction": 1.0, "arm": "sa", "seed": 0, "flow": None, "settings": {},
        "metrics": {"top1": 50.0, "nll": 1.0, "ece": 2.0}, "images_seen": 10, "seconds": 1.0, "flow_seconds": 0.0,
        "device": "cpu", "versions": {}, "commit": "unknown", "command": "python -m x",
    }  # fmt: skip
    return run | changes


def test_record_refuses_what_is_incomplete(tmp_path):
    path = tmp_path / "r.jsonl"
    records.append(a_run(), path)
    for wrong, match in (
        ({k: v for k, v in a_run().items() if k != "flow_seconds"}, "lacks 'flow_seconds'"),
        (a_run(metrics={"top1": 50.0, "nll": 1.0}), "lacks 'ece'"),
        (a_run(seconds=math.nan), "seconds is nan"),
        (a_run(command="python /home/me/x.py"), "absolute path"),
    ):
        with pytest.raises(ValueError, match=match):
            records.append(wrong, path)
    assert len(records.read(path)) == 1
    path.write_text(path.read_text() + json.dumps(a_run())[:40])
    with pytest.raises(ValueError, match="line 2.*repair or remove the line"):
        records.read(path)


@pytest.mark.parametrize(
    "fraction, glem", [(0.5, "43.0 (+3.0 ± 0.0, `s1`)"), (1.0, "70.0 (+30.0 ± 0.0, `s1`)")]
)
def test_the_summary_shows_the_setting_that_the_held_out_images_chose(fraction, glem, monkeypatch):
    """Whatever the test images say; of deep flows the best that has seen no labels but the run's own."""

    def run(arm, seed, top1, split="test", flow=None, bits=None, trained_on=None, **settings):
        settings = (
            {"epochs": 9, "model": "m", "batch_size": 2}
            | settings
            | ({"flow_trained_on": trained_on} if flow else {})
        )
        made = {
            "dirty": False,
            "date": "2026-01-01",
            "versions": {"torch": "2"},
            "training_images": 5,
        }
        more = {
            "flow": flow,
            "flow_metrics": {"bits_per_dim": bits} if bits else {},
            "metrics": {"top1": top1},
        }
        more["fraction"] = fraction
        return a_run(arm=arm, seed=seed, split=split, settings=settings) | made | more

    runs = []
    for seed in (0, 1, 2):
        runs += [
            run("baseline", seed, 40.0),
            run("sa", seed, 42.0),
            run("sa+linear", seed, 45.0 + seed, strength=0.5),
        ]
        runs += [run("cutmix", seed, 41.0), run("cutmix+linear", seed, 47.0, strength=0.5)]
        for strength, on_test, on_held in ((1.0, 60.0, 50.0), (0.5, 50.0, 55.0)):
            runs += [
                run("linear", seed, on_test, strength=strength),
                run("linear", seed, on_held, "held", strength=strength),
            ]
        for top1, bits, seen in (
            (44.0, 3.1, "images"),
            (43.0, 3.0, "images"),
            (70.0, 2.9, "images, with labels"),
        ):
            runs.append(
                run("glem", seed, top1, flow=f"f{bits}", bits=bits, trained_on=seen, strength=1.0)
            )
        runs += [
            run("baseline", seed, 50.0 + seed, epochs=8),
            run("sa", seed, 52.0 + seed, epochs=8),
        ][: 1 + (seed < 2)]
        runs += [
            run("cutmix+linear", seed, 99.0, epochs=8, strength=0.5)
        ]  # without CutMix it says nothing
        runs += [
            run(arm, seed, 40.0, epochs=7) for arm in ("baseline", "linear")
        ]  # without SA it is no line of the summary
    runs.append(run("sa", 9, 99.0, epochs=8))
    monkeypatch.setattr(tables, "_runs", lambda split: [r for r in runs if r["split"] == split])
    few, line = tables.cifar_summary().splitlines()[2:]
    assert "d: 5 images, 8 epochs; 3 seeds | 51.0 | 52.5 (+2.0, 2 seeds) |" in few, (
        "means over the baseline's seeds alone"
    )
    assert "99.0" not in few
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "d: 5 images, 9 epochs; 3 seeds", "40.0", "42.0 (+2.0 ± 0.0)", "", "50.0 (+10.0 ± 0.0)", "46.0 (+4.0 ± 2.5)",
        "47.0 (+6.0 ± 0.0)", glem,
    ]  # fmt: skip
    runs += [
        run(arm, s, 60.0, bf16=False) for s in range(3) for arm in ("baseline", "sa", "linear")
    ]
    assert set(tables.cifar_summary().splitlines()[2:]) == {few, line}, (
        "the line whose settings were searched for stays"
    )


def test_seconds_of_trainings_that_shared_a_gpu_are_in_no_table():
    def run(arm, seed, device):
        settings, metrics = (
            {"epochs": 10, "model": "m"},
            {"top1": 50.0 + seed, "nll": 1.0, "ece": 2.0},
        )
        return a_run(
            arm=arm,
            seed=seed,
            metrics=metrics,
            settings=settings,
            device=device,
            seconds=7.0,
            training_images=5,
        )

    for device, wanted in (("H100", "1.00"), ("H100, 4 at once", "")):
        (arms,) = comparisons(
            [run(arm, s, device) for arm in ("baseline", "linear") for s in (0, 1)]
        ).values()
        head, _, *rows = (line.split("|") for line in table(arms, 10).splitlines())
        assert {row[[h.strip() for h in head].index("time")].strip() for row in rows} == {wanted}


def test_power_pools_the_deviations_of_all_arms(monkeypatch):
    def run(arm, seed, top1):
        settings = {"epochs": 9, "model": "m"}
        return a_run(
            arm=arm, seed=seed, metrics={"top1": top1}, settings=settings, training_images=5
        )

    spread = {"baseline": 0, "mixup": 1, "cutmix": 7, "sa+linear": 3, "sa": 2}
    runs = [
        run(arm, s, 50.0 + by * s)
        for s in range(3)
        for arm, by in spread.items()
        if arm != "cutmix" or s < 2
    ]
    monkeypatch.setattr(tables, "_runs", lambda split: runs)
    cells = [cell.strip() for cell in tables.cifar_power().splitlines()[2].strip("|").split("|")]
    deviation = ((1 + 9 + 4) / 3) ** 0.5  # of the arms with three seeds
    assert cells[:3] == [
        "d: 5 images, 9 epochs",
        f"{deviation:.2f} (3 arms)",
        f"{half_width(deviation, 3):.2f}",
    ]
    assert cells[5] == str(seeds_for(0.33, deviation)) and cells[6] == "1.00 (1 arm)"


def test_verdicts_name_their_cell_and_differences_without_runs_raise():
    def run(arm, seed, top1, epochs):
        s = {"epochs": epochs, "model": "resnet18", "bf16": True}
        m = {"top1": top1, "nll": 1.0, "ece": 2.0}
        more = {"training_images": 500, "data": quoted.CIFAR, "fraction": 0.01}
        return a_run(arm=arm, seed=seed, metrics=m, settings=s, **more)

    runs = [run("sa", s, 52.0 + s, 9) for s in range(3)]
    runs += [run("baseline", s, 50.0, e) for s in range(4) for e in (9, 20)]
    cell = quoted.Cell(quoted.CIFAR, 0.01, 9, model="resnet18")
    row = quoted.verdicts(runs, [quoted.Difference(cell, "sa", "baseline")]).splitlines()[-1]
    assert [c.strip() for c in row.strip("|").split("|")] == [
        quoted.CIFAR, "50", "ResNet18", "9", "RandAugment + RandomErasing", "crop and flip", "top-1, points",
        "50.0", "+3.00 ± 2.48", "3",
    ]  # fmt: skip
    with pytest.raises(KeyError, match="no seed on record has both cutmix and baseline"):
        quoted.verdicts(runs, [quoted.Difference(cell, "cutmix", "baseline")])


def test_table_pairs_seeds_and_finds_the_baseline_of_equal_time():
    def run(arm, seed, top1, epochs, seconds, **more):
        settings = {"epochs": epochs, "model": "m", **more}
        metrics = {"top1": top1, "nll": 1.0, "ece": 2.0}
        times = {"device": "x, 1 threads", "cpu_seconds": seconds, "training_images": 5}
        return a_run(arm=arm, seed=seed, metrics=metrics, settings=settings, **times)

    runs = [run("baseline", s, 50.0 + s, 10, 100.0) for s in range(3)]
    runs += [run("baseline", s, 51.0 + s, 20, 200.0) for s in range(3)]
    runs += [
        run("linear", s, 52.0 + s + 0.1 * (s == 1), 10, 150.0, strength=0.5, modes=8, p=1.0)
        for s in range(3)
    ]
    found = comparisons(runs)
    assert list(found) == [("d", "test", 1.0, next(iter(found))[3])]
    rows = [
        line.strip("| ").split(" | ") for line in table(next(iter(found.values())), 10).splitlines()
    ]
    assert [r[0] for r in rows[2:]] == ["baseline", "linear s0.5-k8-p1"]
    linear = dict(zip(rows[0], rows[3], strict=True))
    assert linear["against baseline"].startswith("+2.03 ± ") and linear["time"] == "1.50"
    equal = linear["against baseline of equal time"]
    assert linear["against linear"] == "" and dict(zip(rows[0], rows[2]))[
        "against linear"
    ].startswith("-2.03 ± ")
    assert equal.startswith("+1.03 ± ") and equal.endswith(", 20 epochs"), (
        "against 20 epochs, which take 200 s"
    )
    assert comparisons([*runs, runs[-3]]) == found, "one run, recorded by two processes at once"
    with pytest.raises(ValueError, match="two runs on record are linear s0.5-k8-p1, seed 0"):
        comparisons(
            [
                *runs,
                run(
                    "linear", 0, 50.0, 10, 1.0, strength=0.5, modes=8, p=1.0, flow_trained_on="else"
                ),
            ]
        )
    dear = [r | {"arm": "dear", "flow_seconds": 450.0} for r in runs[6:]]
    last = table(next(iter(comparisons([*runs, *dear]).values())), 10).splitlines()[-1]
    assert "| +1.03 ± " in last and last.rstrip(" |").endswith(", 20 epochs (its time: 60)"), (
        "600 s, against 100 for 10 epochs"
    )
    assert "| 53.03 ± 2.49 (SE 0.58) |" in last
    shrunk = [
        run("linear", s, 54.0 + s, 10, 150.0, strength=0.5, modes=8, p=1.0, shrinkage=30.0)
        for s in range(3)
    ]
    rows = [
        line.strip("|").split("|")
        for line in table(next(iter(comparisons([*runs, *shrunk]).values())), 10).splitlines()
    ]
    plain, shrunk = (
        {k.strip(): v.strip() for k, v in zip(rows[0], row, strict=True)} for row in rows[3:]
    )
    assert shrunk["arm"] == "linear s0.5-k8-p1 shrinkage 30"
    assert shrunk["against linear"].startswith("+1.97 ± ") and plain["against linear"].startswith(
        "-1.97 ± "
    )
    controls = [run("linear", s, 70.0, 10, 150.0, strength=1.0, modes=8, p=1.0) for s in range(3)]
    controls += [
        run("glem", s, 69.0 + 0.1 * s, 10, 150.0, strength=1.0, modes=8, p=1.0) for s in range(3)
    ]
    found = table(next(iter(comparisons([*runs, *controls]).values())), 10).splitlines()
    column = found[0].split("|").index(" against linear ")
    gains = {line.split("|")[1].strip(): line.split("|")[column].strip() for line in found[2:]}
    assert gains["baseline"].startswith("-2.03 ± "), "against the default, not the best"
    assert gains["glem s1-k8-p1"].startswith("-0.90 ± "), "against linear of the same strength"
    assert gains["linear s1-k8-p1"] == "+16.97 ± 2.49 (p 0.0012)"
    pixels = [r | {"arm": "pixel-pca", "flow_seconds": 450.0} for r in runs[6:]]
    last = table(next(iter(comparisons([*runs, *pixels]).values())), 10).splitlines()[-1]
    assert "(its time" not in last and "450" not in last, (
        "the training of a flow that it does not use"
    )
    quick = [run("quick", s, 52.0 + s, 10, 50.0) for s in range(2)]
    rows = [
        line.strip("|").split("|")
        for line in table(next(iter(comparisons([*runs, *quick]).values())), 10).splitlines()
    ]
    quick = {k.strip(): v.strip() for k, v in zip(rows[0], rows[-1], strict=True)}
    assert quick["arm"] == "quick" and quick["against baseline of equal time"] == "", (
        "no baseline is as quick"
    )
