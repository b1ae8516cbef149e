"""The seam: NFAugment agrees with its slow twin, and new moves and changes fit in by registration."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from reference import augmented

import timm_nfaug as nfa
from benchmarks.cifar.arms import NFAStep, Settings, fitted, linear_flow
from timm_nfaug.change import Change, FlowChange, LinearChange
from timm_nfaug.moves import base, list_moves
from train_flow.data import Images

KINDS = ("pca", "axes", "isotropic", "rotation")


@pytest.fixture
def flows(small_flow, toy_images):
    linear = nfa.NFAugment.from_data([toy_images], num_classes=3, modes=4, labels="given").flow
    with torch.no_grad():  # as created, all variances are equal: any axis would be the widest
        small_flow.prior.s.copy_(torch.linspace(-1, 1, small_flow.dim).expand(3, -1))
    return {"deep": small_flow, "linear": linear}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["deep", "linear"])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_it_agrees_with_the_slow_twin(flows, toy_images, name, kind, p):
    levels, y = (v[::6] for v in toy_images)
    augment = nfa.NFAugment(flows[name], strength=0.7, modes=4, p=p, kind=kind, labels="given")
    expected = augmented(augment, levels, y, torch.Generator().manual_seed(1))
    out, _ = augment(levels, y, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(out, levels)
    # a level where the rounding is a tie
    assert (out.int() - expected.int()).abs().max() <= 1
    assert (out == expected).double().mean() > 0.995


@pytest.mark.parametrize("name", ["deep", "linear"])
def test_larger_images_and_single_ones_agree_with_the_slow_twin(flows, toy_images, name):
    levels, y = toy_images
    large = torch.nn.functional.interpolate(levels[:4].float(), (48, 40)).to(torch.uint8)
    augment = nfa.NFAugment(flows[name], strength=0.7, modes=4, p=0.6, labels="given")
    for i in range(4):
        expected = augmented(augment, large[i : i + 1], y, torch.Generator().manual_seed(i))
        image = Image.fromarray(large[i].permute(1, 2, 0).numpy())
        moved, _ = augment(image, int(y[i]), generator=torch.Generator().manual_seed(i))
        moved = torch.from_numpy(np.array(moved)).permute(2, 0, 1)
        assert (moved.int() - expected[0].int()).abs().max() <= 1
        assert (moved == expected[0]).double().mean() > 0.995


def test_the_linear_change_is_the_flow_change_of_the_flow_of_depth_0(flows):
    flow, y = flows["linear"], torch.tensor([0, 2, 1])
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 32, 32, generator=g) * 2 - 1
    for kind in KINDS:
        move = base.create_move(kind, 4, 0.5)
        noise = torch.randn(3, move.noise_size(flow), generator=g)
        fast, slow = LinearChange(flow, move), FlowChange(flow, move)
        # adding to an image and taking it away again costs the last bits
        torch.testing.assert_close(
            fast.change(lambda: x, y, noise), slow.change(lambda: x, y, noise), atol=2e-6, rtol=0
        )


def test_a_linear_change_never_looks_at_the_images(flows):
    def images():
        raise AssertionError("the images were asked for")

    change = LinearChange(flows["linear"], base.create_move("pca", 4))
    assert change.change(images, torch.tensor([1]), torch.ones(1, 4)).shape == (1, 3, 32, 32)


def test_a_change_of_ones_own(toy_images):
    class Brightness(Change):
        size, num_classes, noise_size = (3, 1, 1), 3, 1

        def change(self, images, y, noise):
            assert images().shape[1:] == (3, 32, 32) and len(y) == len(noise)
            return (0.1 * noise).view(-1, 1, 1, 1).repeat(1, 3, 1, 1)

    levels, y = toy_images
    augment = nfa.NFAugment.from_change(Brightness(), p=0.5, seed=0, labels="given")
    out, _ = augment(levels, y)
    moved = (out.int() - levels.int()).flatten(1)
    assert 15 <= int((moved != 0).any(1).sum()) <= 45
    inside = (levels.flatten(1) > 60) & (levels.flatten(1) < 195)  # where nothing is clamped
    for row, ok in zip(moved, inside):
        assert row[ok].max() - row[ok].min() <= 1
    assert augment.replace(p=1.0).p == 1.0 and augment.p == 0.5
    assert "Brightness" in repr(augment)


MOVE = '''
"""sign: moves codes by one standard deviation along each mode, one way or the other."""

from __future__ import annotations

from torch import Tensor

from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.moves.base import Move, register


@register
class Sign(Move):
    """Moves along the first modes by one standard deviation, one way or the other."""

    name = "sign"

    def displacement(
        self, flow: ConditionalFlow, y: Tensor, noise: Tensor, z: Tensor | None = None
    ) -> Tensor:
        prior, n = flow.prior, self.modes
        scaled = self.strength * noise.sign() * prior.mode_std[y, :n]
        return (scaled.unsqueeze(1) @ prior.modes[y, :n]).squeeze(1)
'''


@pytest.fixture
def sign(tmp_path, monkeypatch):
    """A move written as CONTRIBUTING.md says: one file and its registration."""
    path = tmp_path / "sign_move.py"
    path.write_text(MOVE)
    monkeypatch.setattr(base, "_MOVES", dict(base._MOVES))
    spec = importlib.util.spec_from_file_location("sign_move", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sign_move", module)
    spec.loader.exec_module(module)
    return "sign"


def test_a_new_move_works_everywhere(sign, flows, toy_images, tmp_path, image_folder, flow_dir):
    from timm_nfaug import preview
    from timm_nfaug.spec import parse_config

    levels, y = toy_images
    flow = flows["deep"]
    augment = nfa.NFAugment(flow, strength=0.5, modes=4, p=1.0, kind=sign, labels="given")
    out, _ = augment(levels, y)
    assert not torch.equal(out, levels) and "kind=sign" in repr(augment)
    # the string
    assert sign in list_moves() and parse_config("nfa-msign")["kind"] == sign
    assert nfa.nf_augment_transform("nfa-k4-msign-lgiven", flow).kind == sign
    # the cache, whose pictures are a fit to what the move does
    pairs = [(image, int(k)) for image, k in zip(levels[:6], y[:6])]
    cache = nfa.NFACache.build(augment, pairs, tmp_path / "cache")
    dataset = nfa.CachedNFADataset(pairs, cache, p=1.0)
    assert not torch.equal(dataset[0][0], levels[0])
    # the preview
    picture = tmp_path / "preview.png"
    preview.main([
        "--flow", str(flow_dir), "--images", str(image_folder / "val"), "--out", str(picture),
        "--count", "2", "--modes", "4", "--kind", sign,
    ])  # fmt: skip
    assert Image.open(picture).size[0] > 100
    # the benchmark arms
    data = Images(levels, y, ["a", "b", "c"])
    for labels in ("given", "none"):
        made = fitted(linear_flow(data), data, Settings(modes=4, p=1.0, move=sign), labels)
        moved = NFAStep(made)(levels, y, torch.Generator().manual_seed(0))
        assert made.kind == sign and not torch.equal(moved, levels)


def test_what_a_change_gives_and_is_given_is_checked(flows, toy_images):
    class Short(Change):
        size, num_classes, noise_size = (3, 2, 2), 3, 1

        def change(self, images, y, noise):
            return torch.zeros(1, 3, 2, 2)

    levels, y = toy_images
    with pytest.raises(ValueError, match=r"Short.change must return \(60, 3, 2, 2\), got \(1, 3"):
        nfa.NFAugment.from_change(Short(), p=1.0, labels="given")(levels, y)
    with pytest.raises(TypeError, match="Change, got int"):
        nfa.NFAugment.from_change(3, labels="given")
    with pytest.raises(ValueError, match="labels="):
        nfa.NFAugment.from_change(Short(), labels="none")
    own = nfa.NFAugment.from_change(Short(), labels="given")
    for call in (lambda: own.replace(strength=0.3), lambda: own.fit([(levels, y)], 3)):
        with pytest.raises(TypeError, match="Change of your own has no"):
            call()
    with pytest.raises(ValueError, match="changes by a flow, got Short"):
        nfa.NFACache.build(own, [(levels[0], 0)], "unused")
    by_flow = nfa.NFAugment.from_change(
        FlowChange(flows["deep"], base.create_move("pca", 4)), labels="given"
    )
    assert by_flow.flow is flows["deep"] and by_flow.replace(strength=0.25).strength == 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_checked_where_the_noise_is_given(flows, kind):
    augment = nfa.NFAugment(flows["linear"], modes=4, p=1.0, kind=kind, labels="given")
    x = torch.zeros(3, 3, 32, 32)
    noise = torch.ones(3, augment.change.noise_size)
    for y in ([-1, 0, 1], [0, 1, 3], [1.0, 1.0, 1.0], [1], [[0], [1], [2]]):
        with pytest.raises((ValueError, TypeError), match="labels must be"):
            augment.augment(x, torch.tensor(y), noise)
        with pytest.raises((ValueError, TypeError), match="labels must be"):
            augment.change.change(lambda: x, torch.tensor(y), noise)
    few = torch.tensor([0, 2, 1], dtype=torch.uint8)
    assert torch.equal(augment.augment(x, few, noise), augment.augment(x, few.long(), noise))


def test_inference_mode_and_autocast_leave_nothing_behind(flows):
    image = Image.new("RGB", (20, 20), (90, 120, 30))
    for kind in KINDS:
        augment = nfa.NFAugment(flows["linear"], modes=4, p=1.0, kind=kind, labels="given")
        moved = lambda a=augment: a(image, 2, generator=torch.Generator().manual_seed(0))[0]
        with torch.inference_mode():
            first = moved()
        with torch.autocast("cpu"):
            assert moved().tobytes() == first.tobytes()
        assert moved().tobytes() == first.tobytes()
