"""Every bijection: exact inverse, log-det equal to the Jacobian's, no side effects; the caches and the set-up from data."""

import copy
import importlib
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from catalogue import CATALOGUE, SMALL, coupling, make
from timm.optim import create_optimizer_v2

import timm_nfaug.flows
from timm_nfaug.flows.actnorm import ActNorm
from timm_nfaug.flows.architectures import ARCHITECTURES, build_network
from timm_nfaug.flows.bijection import Bijection
from timm_nfaug.flows.conditioner import Pointwise
from timm_nfaug.flows.conv1x1 import Conv1x1
from timm_nfaug.flows.coupling import AffineCoupling
from timm_nfaug.flows.whiten import Whiten

every = pytest.mark.parametrize("name", CATALOGUE)


def test_catalogue_is_complete():
    for module in pkgutil.iter_modules(timm_nfaug.flows.__path__, "timm_nfaug.flows."):
        importlib.import_module(module.name)
    classes, new = set(), [Bijection]
    while new:
        new = [s for c in new for s in c.__subclasses__() if s.__module__.startswith("timm_nfaug.")]
        classes.update(new)
    present = {type(make(name)[0]) for name in CATALOGUE}
    assert classes - present == set(), "bijections without a line in tests/catalogue.py"
    assert set(ARCHITECTURES) - set(SMALL) == set(), "architectures without a line in tests/catalogue.py"


@every
def test_round_trip(name):
    bijection, x = make(name)
    y, _ = bijection(x)
    # float64 rounds at 1e-16; the deepest network here amplifies by less than 1e4
    torch.testing.assert_close(bijection.inverse(y), x, rtol=0, atol=1e-9)
    # and the other way: any code has an image
    y = torch.randn_like(y)
    torch.testing.assert_close(bijection(bijection.inverse(y))[0], y, rtol=0, atol=1e-9)
    if not name.startswith(("squeeze", "flatten", "architecture linear")):
        assert (y.flatten(1) - x.flatten(1)).abs().mean() > 0.05, "the case is the identity and proves nothing"


@every
def test_log_det_is_that_of_the_jacobian(name):
    bijection, x = make(name, batch=2)
    y, log_det = bijection(x)
    assert log_det.shape == (2,)
    assert y.shape[1:] == bijection.output_shape(tuple(x.shape[1:]))
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v)[0].flatten(), x[i : i + 1])
        expected = torch.linalg.slogdet(jacobian.reshape(y[0].numel(), x[0].numel()))[1]
        # an LU of at most 80 x 80 in float64 errs by about 1e-13
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


@every
def test_log_det_with_gradient_is_the_same(name):
    bijection, x = make(name)
    without = bijection(x)
    bijection.requires_grad_(True)
    y, log_det = bijection(x)
    torch.testing.assert_close((y, log_det), without, rtol=0, atol=1e-11)  # slogdet of W in another routine, float64
    torch.testing.assert_close(bijection.inverse(y), x, rtol=0, atol=1e-9)


@every
def test_arguments_are_left_alone(name):
    bijection, x = make(name)
    before = x.clone()
    y, _ = bijection(x)
    assert torch.equal(x, before)
    before = y.clone()
    bijection.inverse(y)
    assert torch.equal(y, before)
    before = x.clone()
    bijection.initialize(x)
    assert torch.equal(x, before)


@every
def test_autocast_does_not_reach_the_state(name):
    bijection, x = make(name, torch.float32)
    plain = bijection(x)
    back = bijection.inverse(plain[0])
    with torch.autocast("cpu", torch.bfloat16):
        cast = bijection(x)
        cast_back = bijection.inverse(plain[0])
    for a, b in ((plain[0], cast[0]), (plain[1], cast[1]), (back, cast_back)):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


def test_bfloat16_networks_keep_the_inverse(small_flow, toy_images):
    x = timm_nfaug.pixels.levels_to_model(toy_images[0])
    exact = small_flow(x)[0]
    small_flow.set_net_dtype(torch.bfloat16)
    z = small_flow(x)[0]
    assert not torch.equal(z, exact), "the networks did not run in bfloat16"
    error = (small_flow.inverse(z) - x).abs().max()
    # An input of a net recovered to 1e-6 can fall on the other side of a bfloat16 rounding (2^-9 of it), and the
    # net passes on that much of it: far below the 4e-3 of half a level, and below the 6e-2 of a bfloat16 state.
    assert error < 1e-3
    small_flow.set_net_dtype(None)
    assert torch.equal(small_flow(x)[0], exact)
    assert (small_flow.inverse(exact) - x).abs().max() < 2e-5  # float32 through whitening and two couplings


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamax", "lamb"])
def test_conv1x1_cache_after_an_optimizer_step(optimizer):
    layer, x = make("conv1x1", torch.float32)
    layer.requires_grad_(True)
    with torch.no_grad():
        layer.inverse(layer(x)[0])  # fills the cache
    step = create_optimizer_v2(layer, opt=optimizer, lr=0.1)
    y, log_det = layer(x)
    (y.square().sum() + log_det.sum()).backward()
    step.step()
    assert_fresh(layer, x)


@pytest.mark.parametrize("change", ["load_state_dict", "assign", "deepcopy", "double", "in place"])
def test_conv1x1_cache_after(change):
    layer, x = make("conv1x1", torch.float32)
    layer.inverse(layer(x)[0])  # fills the cache
    other = make("conv1x1", torch.float32)[0].weight.data * 1.5 + 0.1
    if change == "load_state_dict":
        layer.load_state_dict({"weight": other})
    elif change == "assign":
        layer.load_state_dict({"weight": other}, assign=True)
    elif change == "deepcopy":
        layer = copy.deepcopy(layer)
        with torch.no_grad():
            layer.weight.copy_(other)
    elif change == "double":
        layer, x = layer.double(), x.double()
    else:
        with torch.no_grad():
            layer.weight.mul_(2)
    assert_fresh(layer, x)


def test_conv1x1_cache_after_a_change_of_dtype_and_back():
    """The rounded weight often lands at the old address with the old version; of 20 tries at least one does."""
    for _ in range(20):
        layer, x = make("conv1x1", torch.float32)
        layer.inverse(layer(x)[0])  # fills the cache
        assert_fresh(layer.to(torch.bfloat16).float(), x)


def assert_fresh(layer: Conv1x1, x: torch.Tensor) -> None:
    """log-det and inverse belong to the weight as it is now."""
    with torch.no_grad():
        y, log_det = layer(x)
        w = layer.weight.double()
        expected = torch.linalg.slogdet(w)[1] * x.shape[2] * x.shape[3]
        # the weight's float32 value is exact in float64; only the results are rounded
        torch.testing.assert_close(log_det, expected.to(log_det.dtype).expand(len(x)), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(layer.inverse(y), x, rtol=0, atol=1e-4 if x.dtype == torch.float32 else 1e-12)


def test_conv1x1_cache_is_used():
    layer, x = make("conv1x1", torch.float32)
    first = layer.inverse(layer(x)[0])
    kept = layer._inverse_and_log_det()[0]
    layer(first)
    assert layer._inverse_and_log_det()[0] is kept


def test_initialize_whitens():
    layer = Whiten(6).double()
    x = torch.randn(50, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1) + 3
    y = layer.initialize(x)
    rows = y.permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-9)  # float64 sums
    torch.testing.assert_close(torch.cov(rows.T), torch.eye(6).double(), rtol=0, atol=1e-9)
    assert torch.equal(y, layer(x)[0])


def test_whitening_survives_a_channel_without_variance():
    layer = Whiten(3)
    x = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.25
    y = layer.initialize(x)
    assert y.isfinite().all()
    # a channel divided by the floor, 2e-3, loses 500 times float32's rounding
    torch.testing.assert_close(layer.inverse(y), x, rtol=0, atol=1e-4)


def test_initialize_normalises_every_actnorm(toy_images):
    torch.manual_seed(0)
    net = build_network("conv_p4_tiny", (3, 32, 32), SMALL["conv_p4_tiny"])
    x = timm_nfaug.pixels.levels_to_model(toy_images[0])
    net.initialize(x)
    outputs = []
    layers = [m for m in net.modules() if isinstance(m, ActNorm)]
    assert len(layers) == 2
    for layer in layers:
        layer.register_forward_hook(lambda m, i, o: outputs.append(o[0]))
    net(x)
    for y in outputs:
        std, mean = torch.std_mean(y, dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)  # float32 sums of 3,840 values
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)


def test_layers_over_single_pixels_are_1x1_convolutions():
    """Conv1x1 and Pointwise go their own, faster ways to what F.conv2d gives."""
    layer, x = make("conv1x1")
    expected = F.conv2d(x, layer.weight[:, :, None, None])
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=1e-12)  # float64 sums of 5 terms
    net = Pointwise(5, 7).double()
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(net(images), F.conv2d(images, net.weight, net.bias), rtol=0, atol=1e-12)


def test_couplings_start_as_the_identity_and_refuse_what_cannot_be():
    layer, x = coupling(4), torch.randn(2, 4, 3, 3)
    y, log_det = layer(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(2))
    with pytest.raises(ValueError, match="at least 2 channels"):
        AffineCoupling(layer.net, 1)
    with pytest.raises(ValueError, match="clamp must be positive"):
        AffineCoupling(layer.net, 4, clamp=0)
    with pytest.raises(ValueError, match="multiples of 4, got 30 x 32"):
        build_network("conv_p4_tiny", (3, 30, 32), {})


def test_log_scale_is_bounded_by_the_clamp():
    layer, x = make("coupling, convolutions")
    layer.net[-1].weight.mul_(1e4)
    per_value = layer(x)[1].abs() / x[0, 2:].numel()  # two of four channels are scaled
    assert per_value.max() <= layer.clamp + 1e-9
