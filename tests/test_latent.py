"""The latent space: the change against a slow twin, odd images, and fits of linear flows over latents."""

import copy
import json
import multiprocessing

import numpy as np
import pytest
import torch
from small_autoencoder import Small
from torch import nn

import timm_nfaug as nfa
from benchmarks.reliability import images as odd
from timm_nfaug import autoencoder as module
from timm_nfaug import hub, lift, pixels
from timm_nfaug._utils.notices import NFAError
from timm_nfaug.autoencoder import Autoencoder
from timm_nfaug.change import FlowChange, LatentChange, change_of, to_model
from timm_nfaug.config import FlowConfig
from timm_nfaug.fit import fit_flow, latent_flow
from timm_nfaug.flows.basis import SharedBasis
from timm_nfaug.flows.moments import ClassMoments
from timm_nfaug.moves import create_move, draw_noise, list_moves

SIDE = 32  # of images; latents are (4, 8, 8)
SHAPE = (4, SIDE // 4, SIDE // 4)
Y = torch.arange(24) % 3


def smooth(count, side=SIDE, seed=0):
    """Images (count, 3, side, side) in [0, 1] that differ by a few smooth shades, and a class."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=g) + 0.2 * (torch.arange(count) % 3).view(
        -1, 1, 1, 1
    )
    return lift.enlarged(small, (side, side)).div(1.4)


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(Small(), "small")


@pytest.fixture(scope="module")
def pooled(autoencoder):
    how = {"size": SIDE, "modes": 4, "p": 1.0, "seed": 0, "labels": "none"}
    return nfa.NFAugment.from_data([smooth(24)], autoencoder=autoencoder, **how)


@pytest.fixture(scope="module")
def classwise(autoencoder):
    how = {"size": SIDE, "modes": 4, "p": 1.0, "seed": 0, "labels": "given", "shrinkage": 0.0}
    return nfa.NFAugment.from_data([(smooth(24), Y)], 3, autoencoder=autoencoder, **how)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the change ------------------------------------------------------------------------------------


def twin(change, x, y, noise):
    """The change of each image alone, by what the method says."""
    flow, autoencoder, config = change.flow, change.autoencoder.module, change.flow.config
    own = lambda key, usual: torch.tensor(config.latent.get(key) or [usual] * 4).view(1, 4, 1, 1)
    mean, std, found = own("mean", 0.0), own("std", 1.0), []
    for image, label, e in zip(x, y, noise, strict=True):
        side = change.size[1:]
        small = nn.functional.interpolate(image[None], side, mode="bilinear", antialias=True)
        z = autoencoder.encode(small)
        code, _ = flow((z - mean) / std)
        moved = flow.inverse(code + change.move.displacement(flow, label[None], e[None], code))
        delta = (moved - flow.inverse(code)) * std
        found.append(autoencoder.decode(z + delta) - autoencoder.decode(z))
    return torch.cat(found)


def deep_flow():
    latent = {"size": SIDE, "mean": [0.1, -0.2, 0.3, 0.0], "std": [0.5, 2.0, 1.0, 1.5]}
    torch.manual_seed(0)
    own = {"latent": latent, "prior": {"num_modes": 4}, "depth": 2, "hidden": 8}
    flow = nfa.create_flow("conv_latent", input_size=SHAPE, num_classes=3, **own)
    with torch.no_grad():
        for name, p in flow.network.named_parameters():
            if ".net.4." in name:  # the last of each coupling starts at zero
                p.normal_(0, 0.02)
        flow.prior.mode_std.fill_(0.5)
        flow.prior.modes.copy_(torch.linalg.qr(torch.randn(3, flow.dim, 4)).Q.mT)
    return flow.eval().requires_grad_(False)


@pytest.mark.parametrize("of", ["pooled", "classwise", "scaled", "deep"])
def test_the_change_is_that_of_each_image_alone(request, autoencoder, of):
    if of == "deep":
        change = LatentChange(FlowChange(deep_flow(), create_move("pca", 4)), autoencoder)
    else:
        change = request.getfixturevalue(of if of != "scaled" else "pooled").change
    if of == "scaled":  # a linear flow of standardised latents
        flow = copy.deepcopy(change.flow)
        flow.config.latent |= {"mean": [1.0, 2, 3, 4], "std": [0.5, 2.0, 1.0, 1.5]}
        change = LatentChange(change_of(flow, change.move), autoencoder)
    x, y = 2 * smooth(5, side=40, seed=1) - 1, torch.arange(5) % change.num_classes
    noise = draw_noise(5, change.noise_size, g())
    found = change.change(lambda: x, y, noise)
    assert found.shape == (5, 3, SIDE, SIDE) and found.abs().amax((1, 2, 3)).min() > 0.01
    # a batch of convolutions adds in another order, and so does a product of all moves at once
    torch.testing.assert_close(found, twin(change, x, y, noise), atol=2e-5, rtol=1e-4)
    small = lift.down(x, (SIDE, SIDE))
    again = change.change_of_latents(autoencoder.encode(small), y, noise)
    assert torch.equal(again, found)


def test_parts_of_a_batch_change_as_the_whole(pooled, monkeypatch):
    x = smooth(6, seed=2)
    whole = pooled(x, generator=g())
    monkeypatch.setitem(module.PIXELS, "cpu", 2 * SIDE * SIDE)
    pooled.autoencoder.module.calls.clear()
    parts = pooled(x, generator=g())
    assert max(pooled.autoencoder.module.calls) == 2
    # a convolution may add in another order for another number of images
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_strength_0_and_p_0_are_the_identity_and_draw_nothing(pooled):
    x, before = torch.rand(4, 3, 50, 40), torch.get_rng_state()
    levels = (255 * x).to(torch.uint8)
    for still in (pooled.replace(strength=0.0), pooled.replace(p=0.0)):
        assert torch.equal(still(x), x) and torch.equal(still(levels), levels)
    moved = pooled(levels)
    assert not torch.equal(moved, levels), "the others move them"
    assert torch.equal(torch.get_rng_state(), before)
    zero = torch.zeros(4, pooled.change.noise_size)
    assert torch.equal(pooled.augment(2 * x - 1, None, zero), 2 * x - 1), "no noise is no move"


def test_images_that_are_not_chosen_stay_bit_for_bit(pooled):
    half = pooled.replace(p=0.5)
    x = (255 * smooth(16, seed=3)).to(torch.uint8)
    out = half(x, generator=g(1))
    changed = (out != x).flatten(1).any(1)
    assert 3 < changed.sum() < 13


@pytest.mark.parametrize("kind", ["PIL image in NFAugment", "tensor in NFAugment"])
def test_odd_images(pooled, kind, monkeypatch, tmp_path):
    """As the reliability suite makes them: never broken, whatever comes."""
    strong = {s: pooled.replace(strength=s) for s in (0.0, 0.5, 3.0)}
    monkeypatch.setattr(odd, "_augment", lambda channels, strength: strong[strength])
    ends = []
    for index in range(120):
        rng = np.random.default_rng([0, index])
        try:
            ends.append(odd.KINDS[kind](rng, tmp_path))
        except (ValueError, TypeError) as e:
            ends.append(("refused", "" if str(e).strip() else "no message"))
    assert {problem for _, problem in ends} == {""}
    loaded = sum(end == "loaded" for end, _ in ends)
    assert loaded > 30, "the rest are modes and channels that it refuses"


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (32, 32), (33, 47)])
def test_every_kind_of_image_comes_back_as_it_came(pooled, size):
    x = torch.rand(3, *size, generator=g())
    image = pixels.PIL.Image.fromarray((255 * x).to(torch.uint8).permute(1, 2, 0).numpy())
    out = pooled(image)
    assert (out.size, out.mode) == (image.size, image.mode)
    for own in ((255 * x).to(torch.uint8), x, x.half(), x.double(), x.expand(2, -1, -1, -1)):
        out = pooled(own)
        assert (out.shape, out.dtype) == (own.shape, own.dtype) and out.isfinite().all()
        assert out.is_floating_point() is False or (out.min() >= 0 and out.max() <= 1)
    array = (255 * x).permute(1, 2, 0).numpy().astype(np.uint8)
    assert pooled(array).shape == array.shape and pooled(array).dtype == array.dtype
    normalised = pooled.replace(mean=[0.5] * 3, std=[0.25] * 3)
    wanted = (pooled(x, generator=g()) - 0.5) / 0.25
    torch.testing.assert_close(normalised((x - 0.5) / 0.25, generator=g()), wanted, atol=1e-5, rtol=0)  # fmt: skip
    ranged = pooled.replace(value_range=(0.0, 10.0))
    wanted = 10 * pooled(x, generator=g())
    torch.testing.assert_close(ranged(10 * x, generator=g()), wanted, atol=1e-4, rtol=0)


class Broken(Small):
    """Decodes the second image of a batch of four as NaN."""

    def decode(self, z):
        out = super().decode(z)
        if len(out) > 4:
            out[1] = torch.nan
        return out


def test_images_whose_change_is_not_finite_come_back_with_a_warning(pooled):
    broken = Autoencoder(Broken(), "broken")
    augment = pooled.replace(autoencoder=broken)
    x = smooth(4, seed=4)
    with pytest.warns(nfa.NFAWarning, match="the change of 1 of 4 images is not finite"):
        out = augment(x, generator=g())
    assert augment.fallbacks == 1 and torch.equal(out[1], x[1])
    torch.testing.assert_close(out[[0, 2, 3]], pooled(x, generator=g())[[0, 2, 3]])


def test_an_autoencoder_that_does_not_fit_the_flow_is_refused(pooled, autoencoder):
    class Three(nn.Module):
        def encode(self, x):
            return nn.functional.avg_pool2d(x, 4)

        def decode(self, z):
            return nn.functional.interpolate(z, scale_factor=4)

    flow = pooled.flow
    with pytest.raises(ValueError, match=r"latents of 4 channels, .*Three.* makes 3"):
        LatentChange(pooled.change.inner, Autoencoder(Three()))
    with pytest.raises(ValueError, match="size must be a multiple of 4"):
        nfa.NFAugment(flow, modes=4, autoencoder=autoencoder, size=30)
    deep = deep_flow()
    nfa.NFAugment(deep, modes=4, labels="given", autoencoder=autoencoder, size=SIDE)
    with pytest.raises(ValueError, match="size=64 is for linear flows"):
        nfa.NFAugment(deep, modes=4, labels="given", autoencoder=autoencoder, size=64)
    pixel = nfa.create_flow("linear", prior={"num_modes": 4})
    with pytest.raises(ValueError, match="this flow moves pixels"):
        nfa.NFAugment(pixel, modes=4, autoencoder=autoencoder)
    with pytest.raises(ValueError, match="this flow moves pixels and takes no size=64"):
        nfa.NFAugment(pixel, modes=4, size=64)
    with pytest.raises(ValueError, match="leave the autoencoder out"):
        LatentChange(change_of(pixel, create_move("pca", 4)), autoencoder)


# -- fits ------------------------------------------------------------------------------------------


def codes(count=700, dim=96, seed=0):
    """Codes (count, dim) of a few strong directions, about a mean; and labels of three classes."""
    scale = 3.0 / torch.arange(1, dim + 1)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=g(5))).Q
    y = torch.arange(count) % 3
    z = torch.randn(count, dim, generator=g(seed)) * scale + 2 * (y == 1).float()[:, None]
    return z @ turn, y


def test_a_shared_basis_is_that_of_a_full_svd():
    z, y = codes()
    shared = SharedBasis(rows=16)
    for at in torch.arange(len(z)).split(50):
        shared.update(z[at], y[at])
    basis, coordinates, labels = shared.finish()
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)
    assert torch.equal(labels, y)
    best = torch.linalg.svd(z, full_matrices=False).Vh[:16]
    energy = lambda b: (z @ b.T).square().sum().item()
    assert energy(basis) > 0.999 * energy(best), "what the folds drop is small"
    # of the leading directions the coordinates are exact, though they were found in earlier bases
    exact = z @ basis.T
    gap = (coordinates - exact).square().mean(0).sqrt() / exact.square().mean(0).sqrt()
    assert gap[:4].max() < 0.01 and gap.max() < 0.5


def test_a_basis_that_holds_all_gives_the_moments_of_the_codes():
    z, y = codes(dim=48)
    shared, whole = SharedBasis(rows=48), ClassMoments(3, 48, 4, shrinkage=10.0)
    for at in torch.arange(len(z)).split(50):
        shared.update(z[at], y[at])
        whole.update(z[at], y[at])
    basis, found = shared.moments(3, 4, False, 10.0)
    mean, _, modes, std = whole.finish()
    own_mean, _, own_modes, own_std = found.finish()
    torch.testing.assert_close(own_mean @ basis, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own_std, std, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((own_modes @ basis * modes).sum(2).abs(), torch.ones(3, 4), atol=1e-3, rtol=0)  # fmt: skip


def test_class_modes_in_a_basis_move_latents_as_those_of_whole_codes(autoencoder, classwise):
    """24 images span all of their latents."""
    z = autoencoder.encode(to_model(smooth(24)))
    whole = ClassMoments(3, z[0].numel(), 4)
    whole.update(z.flatten(1), Y)
    _, _, modes, std = whole.finish()
    flow, noise = classwise.flow, draw_noise(24, 4, g())
    move = flow.inverse(classwise.move.displacement(flow, Y, noise)).flatten(1)
    spread = classwise.strength * std[Y]
    # modes have a sign of their own, which another basis turns
    own = (flow.prior.modes[Y] @ flow.network.basis * modes[Y]).sum(2).round()
    assert own.abs().min() == 1
    wanted = torch.einsum("bk,bkd->bd", noise * spread * own, modes[Y])
    torch.testing.assert_close(move, wanted, atol=1e-3 * wanted.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("kind", list_moves())
def test_every_move_works_or_says_why_not(pooled, classwise, kind):
    x = smooth(6, seed=6)
    own = pooled.replace(kind=kind)
    assert (own(x) != x).flatten(1).any(1).all()
    noise = draw_noise(6, own.change.noise_size, g())
    assert own.change.change(lambda: 2 * x - 1, None, noise).isfinite().all()
    if kind == "isotropic":  # it is the control that knows no directions
        with pytest.raises(ValueError, match='classes that share a basis .* labels="none"'):
            classwise.replace(kind=kind)
    else:
        own = classwise.replace(kind=kind)
        assert (own(x, Y[:6])[0] != x).flatten(1).any(1).all()


def test_labels_of_the_flow_itself(autoencoder):
    x = smooth(60)
    y = torch.arange(60) % 3
    own = {"size": SIDE, "modes": 4, "p": 1.0, "labels": "posterior"}
    augment = nfa.NFAugment.from_data([(x, y)], 3, autoencoder=autoencoder, **own)
    z = augment.change.standardized(autoencoder.encode(2 * x - 1))
    assert (augment.flow.encode(z)[1] == y).float().mean() > 0.9
    noise = draw_noise(60, 4, g())
    guessed = augment.change.change(lambda: 2 * x - 1, None, noise)
    given = augment.change.change(lambda: 2 * x - 1, augment.flow.encode(z)[1], noise)
    torch.testing.assert_close(guessed, given, atol=1e-6, rtol=0)
    at_another = augment.replace(size=64).change.change(lambda: 2 * x[:2] - 1, None, noise[:2])
    assert at_another.shape == (2, 3, 64, 64)


def test_pooled_modes_of_a_class_flow_are_those_of_all_images(classwise, autoencoder):
    x = smooth(24)
    together = classwise.flow.pooled()
    assert together.num_classes == 1 and together.config.network["basis"] == len(together.network.basis)  # fmt: skip
    z = autoencoder.encode(to_model(x)).flatten(1)
    mean, along = z.mean(0), together.prior.modes[0, :2] @ together.network.basis
    found = ((z - mean) @ along.T).std(0)
    best = torch.linalg.svd(z - mean, full_matrices=False).S[:2] / 23**0.5
    torch.testing.assert_close(found, best, rtol=0.1, atol=0)
    augment = nfa.NFAugment(classwise.flow, modes=4, p=1.0, autoencoder=autoencoder)
    assert augment.labels == "none" and not torch.equal(augment(x), x)


def test_fewer_images_than_modes_and_classes_without_images(autoencoder, tmp_path):
    x = smooth(6, seed=7)
    how = {"size": SIDE, "modes": 16, "p": 1.0, "labels": "given", "autoencoder": autoencoder}
    with pytest.warns(nfa.NFAWarning, match="fewer than the 16 modes asked for"):
        augment = nfa.NFAugment.from_data([(x, Y[:6])], 3, **how)
    assert augment.flow.dim == 16, "room for the modes that were asked for"
    out = augment(x, Y[:6], generator=g())[0]
    saved = augment.save_pretrained(tmp_path / "few")
    again = nfa.NFAugment.from_pretrained(saved, autoencoder=autoencoder)
    assert torch.equal(again(x, Y[:6], generator=g())[0], out)
    some = [(x, torch.tensor([0, 0, 0, 2, 2, 2]))]
    with pytest.raises(NFAError, match="saw no image of class 1"):
        nfa.NFAugment.from_data(some, 3, **how)
    with pytest.warns(nfa.NFAWarning, match="1 of 3 classes .* no modes"):
        augment = nfa.NFAugment.from_data(some, 3, allow_empty=True, **how | {"modes": 2})
    out = augment(x[:2], torch.tensor([0, 1]))[0]
    assert augment.notices.count("no modes") == 1
    assert torch.equal(out[1], x[1]) and not torch.equal(out[0], x[0])
    for empty in ([], [(x[:0], Y[:0])]):
        with pytest.raises(NFAError, match="the loader gave no images"):
            nfa.NFAugment.to_fit(latent_flow(autoencoder, SIDE), **how | {"modes": 2}).fit(empty, 3)


def test_images_without_difference_and_latents_that_are_not_finite(autoencoder):
    same = [(torch.zeros(6, 3, 32, 32), Y[:6])]
    for labels in ("given", "none"):
        how = {"size": SIDE, "modes": 2, "labels": labels, "p": 1.0}
        with pytest.warns(nfa.NFAWarning, match="modes"):
            augment = nfa.NFAugment.from_data(same, 3, autoencoder=autoencoder, **how)
        x = smooth(2)
        # convolutions round by the place in a batch: modes of that size, which nobody sees
        torch.testing.assert_close(augment(x, Y[:2])[0], x, atol=1e-5, rtol=0)
        bad = Autoencoder(Small())
        with torch.no_grad():
            bad.module.down.bias.fill_(torch.inf)
        with pytest.raises(NFAError, match="gives latents that are not finite"):
            nfa.NFAugment.from_data([(x, Y[:2])], 3, autoencoder=bad, **how)


def test_modes_of_one_size_serve_another(autoencoder):
    """A mode of 64 pixels, resampled to 112: what a latent stands for changes alike."""
    x = smooth(40, side=112, seed=8)
    augment = nfa.NFAugment.from_data([x], autoencoder=autoencoder, size=64, modes=4, p=1.0, labels="none")  # fmt: skip
    larger = augment.replace(size=112)
    assert larger.size == 112 and larger.change.size == (3, 112, 112) and larger.flow is augment.flow  # fmt: skip
    noise = draw_noise(1, 4, g())
    small, large = (a.change.change(lambda: 2 * x[:1] - 1, None, noise) for a in (augment, larger))
    small, large = (nn.functional.avg_pool2d(v, 4) for v in (small, large))  # of each latent
    gap = lift.down(large, (16, 16)) - small
    assert gap.norm() < 0.1 * small.norm()
    fresh = nfa.NFAugment.to_fit(larger.flow, modes=4, autoencoder=autoencoder, size=112).fit([x])
    assert fresh.flow.config.input_size == (4, 28, 28) and fresh.size == 112
    direct = nfa.NFAugment.from_data([x], autoencoder=autoencoder, size=112, modes=4, labels="none")
    torch.testing.assert_close(fresh.flow.prior.modes, direct.flow.prior.modes)


def test_another_fit_takes_a_fresh_basis_and_scale(classwise, autoencoder):
    """Modes of other images lie outside of the basis of the first."""
    x = torch.rand(24, 3, SIDE, SIDE, generator=g(9))
    direct = nfa.NFAugment.from_data(
        [x], autoencoder=autoencoder, size=SIDE, modes=4, labels="none"
    )
    flow = copy.deepcopy(classwise.flow)
    flow.config.latent |= {"std": [3.0] * 4}
    for known in (flow, flow.pooled()):
        fitted = nfa.NFAugment.to_fit(known, modes=4, autoencoder=autoencoder).fit([x])
        assert "basis" not in fitted.flow.config.network and "std" not in fitted.flow.config.latent
        torch.testing.assert_close(fitted.flow.prior.modes, direct.flow.prior.modes)
    deep = nfa.NFAugment.to_fit(deep_flow(), modes=2, autoencoder=autoencoder, labels="given")
    deep.fit([(x, Y)], 3)
    assert deep.flow.config.latent["std"] == [0.5, 2.0, 1.0, 1.5], "a deep flow keeps its own"


def test_a_flow_on_another_device_is_fitted_there(classwise):
    flow = latent_flow(classwise.autoencoder, SIDE)
    x, y = torch.randn(12, *SHAPE), torch.arange(12) % 3
    fitted = fit_flow(flow, iter([(x, y)]), 3, 2)
    assert fitted.device == flow.device and fitted.config.network["basis"] == 12


# -- files -----------------------------------------------------------------------------------------


def test_settings_size_and_range_come_back(autoencoder, tmp_path):
    x = 100 * smooth(12, seed=10)
    own = {"size": 40, "modes": 3, "strength": 0.3, "p": 0.75, "kind": "axes", "labels": "none"}
    augment = nfa.NFAugment.from_data([x], autoencoder=autoencoder, value_range=(0.0, 100.0), **own)
    augment = augment.replace(size=48)
    saved = augment.save_pretrained(tmp_path / "saved")
    values = json.loads((saved / "config.json").read_text())
    assert values["format_version"] == 2 and values["input_size"] == [4, 10, 10]
    assert values["latent"] == {"autoencoder": "small", "revision": None, "sha256": autoencoder.digest(), "size": 48}  # fmt: skip
    again = nfa.NFAugment.from_pretrained(saved, autoencoder=autoencoder)
    assert {k: getattr(again, k) for k in own} == own | {"size": 48}
    assert again.value_range == augment.value_range
    assert torch.equal(again(x, generator=g()), augment(x, generator=g()))
    assert nfa.NFAugment.from_pretrained(saved, autoencoder=autoencoder, size=64).size == 64
    assert "autoencoder=Autoencoder(small, 4 x H/4 x W/4), size=48" in repr(again)


@pytest.mark.parametrize(
    ("latent", "says"),
    [
        ({"size": 64, "mean": [0.0] * 3}, "latent.mean must hold a number for each of the 4 channels"),
        ({"size": 64, "std": [1.0] * 5}, "latent.std must hold a number for each of the 4 channels"),
        ({"size": 64, "std": [1.0, 1.0, 0.0, 1.0]}, "latent.std must be a list of numbers from 1e-06"),
        ({"size": 64, "std": [1.0, 1.0, -1.0, 1.0]}, "latent.std must be"),
        ({"size": 64, "mean": [0.0, 1e9, 0, 0]}, "latent.mean must be"),
        ({"size": 64, "mean": "0000"}, "latent.mean must be"),
        ({"size": 64, "std": []}, "latent.std must be"),
        ({"size": 64, "mean": [True] * 4}, "latent.mean must be"),
        ({"size": 64.5}, "latent.size must be"), ({"size": 0}, "latent.size must be"),
        ({"autoencoder": "a/b"}, "latent lacks size"), ({"size": 64, "code": "x"}, "unknown"),
        ({"size": 64, "autoencoder": 3}, "latent.autoencoder must be a text"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(latent, says):
    with pytest.raises(ValueError, match=says):
        FlowConfig("linear", (4, 8, 8), 1, latent=latent)


def test_a_basis_that_is_not_orthonormal_is_refused(classwise, tmp_path):
    flow = copy.deepcopy(classwise.flow)
    flow.network.basis.mul_(1.5)
    saved = flow.save_pretrained(tmp_path / "bent")
    with pytest.raises(ValueError, match="the likeliest cause is network.basis"):
        nfa.ConditionalFlow.from_pretrained(saved)


@pytest.mark.parametrize("name", ["linear.cifar10", "conv_p4_tiny.digits"])
def test_flows_of_pixels_are_written_as_ever(name):
    """Their config is the same, byte for byte, as the one that a version without latents wrote."""
    text = (hub.BUNDLED / name / "config.json").read_text()
    flow = nfa.ConditionalFlow.from_pretrained(name)
    values = flow.config.to_dict()
    values["weights_sha256"] = json.loads(text)["weights_sha256"]
    assert json.dumps(values, indent=2) + "\n" == text
    assert values["format_version"] == 1 and "latent" not in values


def child(augment, x, results):
    torch.set_num_threads(1)
    results.put(augment(x, generator=g()).numpy())


def test_a_spawned_process_moves_images_alike(classwise, pooled):
    x = smooth(2)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=child, args=(pooled, x, results))
    process.start()
    found = results.get()
    process.join(60)
    assert torch.equal(torch.from_numpy(found), pooled(x, generator=g()))
