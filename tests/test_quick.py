"""The quick classifier: its design, its training, and what it is tested on."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cifar import quick, testing
from benchmarks.cifar.arms import Arm
from benchmarks.cifar.quick import QuickBatches, QuickNet, QuickRecipe, QuickSteps, triangle
from benchmarks.cifar.testing import logits_of, views_of
from benchmarks.cifar.training import normalize, train
from train_flow.data import Images

SMALL = QuickRecipe(width=4, epochs=4, batch_size=20, max_lr=0.1)


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


def test_it_is_of_the_size_of_its_source():
    net = QuickNet(10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(1.97, abs=0.01)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert net.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 256, 3, 3)


def test_patches_are_white_after_the_first_convolution(data):
    g = torch.Generator().manual_seed(0)
    x = normalize(data.levels) + 0.1 * torch.randn(60, 3, 32, 32, generator=g)
    net = QuickNet(3)
    net.whiten_patches(x, eps=0.0)
    out = F.conv2d(x, net.whiten.weight)  # (60, 24, 31, 31)
    rows = out[:, :12].transpose(0, 1).flatten(1).double()
    moment = rows @ rows.T / rows.shape[1]
    assert (moment - torch.eye(12, dtype=torch.double)).abs().max() < 1e-3  # float32
    assert torch.equal(out[:, 12:], -out[:, :12])


def test_a_block_starts_as_the_identity_on_its_first_channels():
    net = QuickNet(3, width=4)
    x = torch.randn(2, 24, 8, 8)
    assert torch.equal(net.blocks[0].conv1(x), x[:, :4])


def test_it_learns_and_repeats_itself(data):
    found = [train(data, Arm(), SMALL, seed=0)[0] for _ in range(2)]
    for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert testing.test(found[0], data, bf16=True, views=6)["top1"] > 90  # one colour a class


def test_the_whitening_is_of_images_of_all_classes(data, monkeypatch):
    monkeypatch.setattr(quick, "WHITENING", len(data) // 4)
    order = data.labels.argsort()
    by_class = dataclasses.replace(data, levels=data.levels[order], labels=data.labels[order])
    other = dataclasses.replace(by_class, levels=by_class.levels.clone())
    other.levels[-len(data) // 3 :] = 7  # of the last class
    first, second = (SMALL.build(d).whiten.weight for d in (by_class, other))
    assert not torch.equal(first, second)


def test_the_whitening_stays_and_the_norms_have_no_scales(data):
    model, _ = train(data, Arm(), SMALL, seed=0)
    fresh = SMALL.build(data)
    assert torch.equal(model.whiten.weight, fresh.whiten.weight)
    assert not torch.equal(model.whiten.bias, fresh.whiten.bias)
    assert all((b.norm1.weight == 1).all() and (b.norm1.bias != 0).any() for b in model.blocks)


def test_flips_alternate(data):
    recipe = dataclasses.replace(SMALL, crop=1)
    batches = QuickBatches(data, recipe, seed=3)
    seen = {}
    for step in range(2 * batches.per_epoch):
        index = batches.indices(step)
        ramp = torch.arange(32, dtype=torch.uint8).expand(len(index), 3, 32, 32)
        out = batches.crop_and_flip(ramp.contiguous(), step)
        mirrored = out[:, 0, 5, 10] > out[:, 0, 5, 20]
        for i, m in zip(index.tolist(), mirrored.tolist(), strict=True):
            seen.setdefault(i, []).append(m)
    assert len(seen) == 60 and all(a != b for a, b in seen.values())
    assert 15 < sum(a for a, _ in seen.values()) < 45  # not all alike in the first epoch
    still = QuickBatches(data, dataclasses.replace(recipe, flip=False), seed=3)
    ramp = torch.arange(32, dtype=torch.uint8).expand(20, 3, 32, 32).contiguous()
    assert (still.crop_and_flip(ramp, 0)[:, 0, 5, 10] < 15).all()


def test_look_ahead_is_its_slow_twin(data):
    """Every fifth step the weights become the running average, whose decay grows with the cube of the time."""
    torch.manual_seed(0)
    model = SMALL.build(data)
    twin = QuickNet(3, width=4)
    twin.load_state_dict(model.state_dict())
    slowly = dataclasses.replace(SMALL, max_lr=1e-2, bias_lr=2)  # rounding does not grow to much
    steps, each = 10, QuickSteps(model, slowly, 10)
    plain = QuickSteps(twin, slowly, 10)
    fast = [p for p in twin.parameters() if p.requires_grad]
    slow = None
    x = normalize(data.levels)
    for step in range(steps):
        for net, optimizer in ((model, each), (twin, plain)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), data.labels).backward()
            if optimizer is each:
                optimizer.step()
        plain.sgd.step()
        plain.schedule.step()
        if step + 1 == int(SMALL.whiten_bias * steps):
            twin.whiten.bias.requires_grad_(False)
            twin.whiten.bias.grad = None
        if (step + 1) % 5 == 0:
            kept = 0.95**5 * (step / steps) ** 3
            slow = slow or [
                p.detach().clone() for p in fast
            ]  # it starts at the first of these steps
            with torch.no_grad():
                for s, p in zip(slow, fast, strict=True):
                    if p.grad is None:  # the whitening's bias, once it stays
                        continue
                    s.mul_(kept).add_(p, alpha=1 - kept)
                    p.copy_(s)
    trained = [p for n, p in model.named_parameters() if p.requires_grad]
    twins = [p for n, p in twin.named_parameters() if p.requires_grad]
    for a, b in zip(trained, twins, strict=True):
        assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()


def test_the_learning_rate_is_a_triangle():
    assert (triangle(0), triangle(0.23), triangle(1)) == pytest.approx((0.2, 1.0, 0.07))
    assert triangle(0.115) == pytest.approx(0.6) and triangle(0.615) == pytest.approx(0.535)


@pytest.mark.parametrize("views", [1, 2, 6])
def test_views_average_to_what_their_weights_say(data, views):
    model = QuickNet(3, width=4).eval()
    seen = views_of(normalize(data.levels[:4]), views)
    assert len(seen) == views and sum(w for w, _ in seen) == pytest.approx(1)
    wanted = sum(w * model(v) for w, v in seen)
    assert torch.allclose(logits_of(model, data.levels[:4], False, views=views), wanted, atol=1e-5)


def test_six_views_of_a_mirrored_image_are_the_same_six(data):
    model = QuickNet(3, width=4).eval()
    a, b = (logits_of(model, x, False, views=2) for x in (data.levels, data.levels.flip(3)))
    assert torch.allclose(a, b, atol=1e-5)
