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
from timm_nfaug.flows.architectures import ARCHITECTURES, build_network
from timm_nfaug.flows.bijections import ActNorm, AffineCoupling, Bijection, Chain, Conv1x1, Whiten
from timm_nfaug.flows.bijections.folded import _FoldedRun

every = pytest.mark.parametrize("name", CATALOGUE)


def test_catalogue_is_complete():
    for module in pkgutil.walk_packages(timm_nfaug.flows.__path__, "timm_nfaug.flows."):
        importlib.import_module(module.name)
    classes, new = set(), [Bijection]
    while new:
        new = [s for c in new for s in c.__subclasses__() if s.__module__.startswith("timm_nfaug.")]
        classes.update(c for c in new if not c.__subclasses__())
    present = {type(make(name)[0]) for name in CATALOGUE}
    assert classes - present == set(), "bijections without a line in tests/catalogue.py"
    assert set(ARCHITECTURES) - set(SMALL) == set(), (
        "architectures without a line in tests/catalogue.py"
    )


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
        assert (y.flatten(1) - x.flatten(1)).abs().mean() > 0.05, (
            "the case is the identity and proves nothing"
        )


@every
def test_log_det_is_that_of_the_jacobian(name):
    bijection, x = make(name, batch=2)
    y, log_det = bijection(x)
    assert log_det.shape == (2,)
    assert y.shape[1:] == bijection.output_shape(tuple(x.shape[1:]))
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: bijection(v)[0].flatten(), x[i : i + 1]
        )
        expected = torch.linalg.slogdet(jacobian.reshape(y[0].numel(), x[0].numel()))[1]
        # an LU of at most 80 x 80 in float64 errs by about 1e-13
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


@every
def test_log_det_with_gradient_is_the_same(name):
    bijection, x = make(name)
    without = bijection(x)
    bijection.requires_grad_(True)
    y, log_det = bijection(x)
    torch.testing.assert_close(
        (y, log_det), without, rtol=0, atol=1e-11
    )  # slogdet of W in another routine, float64
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
    assert (
        small_flow.inverse(exact) - x
    ).abs().max() < 2e-5  # float32 through whitening and two couplings


def test_transformer_sees_the_whole_image_and_keeps_its_head_in_float32():
    layer, x = make("coupling, transformer, odd channels", torch.float32)
    far = x.clone()
    far[:, 0, -1, -1] += 1
    assert (layer(x)[0] - layer(far)[0])[
        :, 3:, 0, 0
    ].abs().min() > 0  # opposite corners: no convolution here reaches
    seen = []
    layer.net.head.register_forward_hook(lambda m, i, o: seen.append((i[0].dtype, o.dtype)))
    layer.net.blocks.register_forward_hook(lambda m, i, o: seen.append(m[0].mlp.fc1(o).dtype))
    layer.net_dtype = torch.bfloat16
    layer(x)
    assert seen == [torch.bfloat16, (torch.float32, torch.float32)]


def layer_by_layer(chain: Chain, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slow twin of Chain.forward: every layer by itself, in float64."""
    log_det = 0
    x = x.double()
    for layer in copy.deepcopy(chain).double().layers:
        x, ld = layer(x)
        log_det = log_det + ld
    return x, log_det


@pytest.mark.parametrize(
    "name", ["chain", "conv_p4, patch 2, no whitening", "architecture conv_p4_small"]
)
def test_folded_chain_is_the_chain(name):
    chain, x = make(name)
    with torch.no_grad():
        folded = chain(x)
        torch.testing.assert_close(
            folded, layer_by_layer(chain, x), rtol=0, atol=1e-10
        )  # float64, other order of sums
        assert any(isinstance(s, _FoldedRun) for s in chain._stages())
    # frozen layers are folded under autograd too, and the gradient to the input is theirs
    gradients = []
    for function in (chain, lambda v: layer_by_layer(chain, v)):
        v = x.clone().requires_grad_()
        y, log_det = function(v)
        gradients.append(
            torch.autograd.grad(
                (y * torch.arange(y[0].numel()).view(y[0].shape)).sum() + log_det.sum(), v
            )[0]
        )
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [["linear"], ["coupling"], ["linear", "linear", "coupling", "linear"], ["coupling"] * 2],
)
def test_chains_of_any_order_fold(layers):
    torch.manual_seed(0)
    kinds = {"linear": lambda: Conv1x1(5), "coupling": lambda: coupling(5)}
    chain = Chain([kinds[k]() for k in layers]).double().requires_grad_(False)
    for m in chain.modules():
        if isinstance(m, AffineCoupling):
            torch.nn.init.normal_(m.net[-1].weight, std=0.1)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    y, log_det = chain(x)
    torch.testing.assert_close((y, log_det), layer_by_layer(chain, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(chain.inverse(y), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamax", "lamb"])
def test_chain_folds_anew_after_an_optimizer_step(optimizer):
    chain, x = make("chain", torch.float32)
    chain.requires_grad_(True)
    with torch.no_grad():
        chain.inverse(chain(x)[0])  # folds
    step = create_optimizer_v2(chain, opt=optimizer, lr=0.1)
    y, log_det = chain(x)
    (y.square().mean() + log_det.mean()).backward()
    step.step()
    assert_fresh(chain, x)


@pytest.mark.parametrize(
    "change", ["load_state_dict", "assign", "deepcopy", "double", "in place", "data"]
)
def test_chain_folds_anew_after(change):
    chain, x = make("chain", torch.float32)
    chain.inverse(chain(x)[0])  # folds
    other = {k: v * 1.5 + 0.1 for k, v in chain.state_dict().items()}
    if change == "load_state_dict":
        chain.load_state_dict(other)
    elif change == "assign":
        chain.load_state_dict(other, assign=True)
    elif change == "deepcopy":
        chain = copy.deepcopy(chain)
        chain.load_state_dict(other)
    elif change == "data":  # a hand-written average, evaluated
        for k, v in chain.state_dict(keep_vars=True).items():
            v.data.copy_(other[k])
        chain.eval()
    elif change == "double":
        chain, x = chain.double(), x.double()
    else:
        with torch.no_grad():
            chain.layers[0].bias.add_(2)
            chain.layers[1].weight.mul_(2)
    assert_fresh(chain, x)


def test_chain_folds_anew_after_a_change_of_dtype_and_back():
    """The rounded weight often lands at the old address with the old version; of 20 tries at least one does."""
    for _ in range(20):
        chain, x = make("chain", torch.float32)
        chain.inverse(chain(x)[0])  # folds
        assert_fresh(chain.to(torch.bfloat16).float(), x)


def assert_fresh(chain: Chain, x: torch.Tensor) -> None:
    """Codes, log-det and inverse belong to the parameters as they are now."""
    with torch.no_grad():
        y, log_det = chain(x)
        expected = layer_by_layer(chain, x)
        exact = x.dtype == torch.float64
        # float32 rounds at 6e-8 of values up to 100; a stale matrix is off by 0.1
        torch.testing.assert_close(
            y.double(), expected[0], rtol=1e-4, atol=1e-12 if exact else 1e-3
        )
        torch.testing.assert_close(
            log_det.double(), expected[1], rtol=1e-4, atol=1e-12 if exact else 1e-3
        )
        torch.testing.assert_close(chain.inverse(y), x, rtol=0, atol=1e-10 if exact else 1e-3)


def test_matrices_folded_in_inference_mode_serve_gradients_later():
    chain, x = make("chain", torch.float32)
    chain.requires_grad_(False)
    with torch.inference_mode():
        expected = chain(x)[0]
    kept = chain._stages()
    v = x.clone().requires_grad_()
    y, _ = chain(v)
    assert chain._stages() is kept and torch.equal(y, expected)
    (grad,) = torch.autograd.grad(y.square().sum(), v)
    assert grad.abs().max() > 0


def test_folded_matrices_are_kept():
    chain, x = make("chain", torch.float32)
    chain.inverse(chain(x)[0])
    kept = chain._stages()
    chain(x)
    assert chain._stages() is kept


def test_initialize_whitens():
    layer = Whiten(6).double()
    x = (
        torch.randn(
            50, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).cumsum(1)
        + 3
    )
    y = layer.initialize(x)
    rows = y.permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(
        rows.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-9
    )  # float64 sums
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
        torch.testing.assert_close(
            mean, torch.zeros_like(mean), rtol=0, atol=1e-4
        )  # float32 sums of 3,840 values
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["conv1x1", "actnorm", "whiten"])
def test_linear_layers_are_1x1_convolutions_with_their_matrix(name):
    layer, x = make(name)
    w, b = layer.matrix()
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(
            layer(images)[0], F.conv2d(images, w[:, :, None, None], b), rtol=0, atol=1e-11
        )


def test_couplings_start_as_the_identity_and_refuse_what_cannot_be():
    layer, x = coupling(4), torch.randn(2, 4, 3, 3)
    y, log_det = layer(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(2))
    with pytest.raises(ValueError, match="at least 2 channels"):
        AffineCoupling(layer.net, 1)
    with pytest.raises(ValueError, match="clamp must be positive"):
        AffineCoupling(layer.net, 4, clamp=0)
    with pytest.raises(ValueError, match="multiple of the 3 heads, got 8"):
        build_network("jet_p4", (3, 32, 32), {"depth": 1, "hidden": 8, "heads": 3})
    with pytest.raises(ValueError, match="multiples of 4, got 30 x 32"):
        build_network("conv_p4_tiny", (3, 30, 32), {})


def test_log_scale_is_bounded_by_the_clamp():
    layer, x = make("coupling, convolutions")
    layer.net[-1].weight.mul_(1e4)
    per_value = layer(x)[1].abs() / x[0, 2:].numel()  # two of four channels are scaled
    assert per_value.max() <= layer.clamp + 1e-9


KINDS = (
    "chain",
    "multiscale",
    "conv_p4",
    "architecture conv",
    "architecture jet",
    "architecture res",
)
REVERSIBLE = [n for n in CATALOGUE if n.startswith(KINDS)]


@pytest.mark.parametrize("name", REVERSIBLE)
def test_reversible_backward_gives_the_same_gradients(name):
    bijection, x = make(name)
    bijection.requires_grad_()
    weight = torch.randn_like(bijection(x)[0])
    found = []
    for reversible in (False, True):
        for module in bijection.modules():
            if isinstance(module, Chain):
                module.reversible = reversible
        bijection.zero_grad()
        v = x.clone().requires_grad_()
        y, log_det = bijection(v)
        ((y * weight).sum() + (log_det * log_det.detach()).sum()).backward()
        found.append([y, log_det, v.grad, *(p.grad for p in bijection.parameters())])
    assert all(g is not None for g in found[0])
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain, rtol=1e-8, atol=1e-9)


def test_reversible_backward_stores_nothing_a_layer():
    """What autograd keeps for backward is the output, at any depth; without it, more with every layer."""

    def stored(depth, reversible):
        torch.manual_seed(0)
        chain = build_network("conv_p4_tiny", (3, 16, 16), {"depth": depth, "hidden": 16})
        chain.reversible = reversible
        own = {p.data_ptr() for p in chain.parameters()}
        sizes = {}

        def keep(t):
            if t.data_ptr() not in own:
                sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y, log_det = chain(torch.randn(4, 3, 16, 16))
        (y.square().sum() - log_det.sum()).backward()
        return sum(sizes.values())

    assert stored(4, True) == stored(8, True) == 4 * 3 * 16 * 16
    assert stored(8, False) > 1.8 * stored(4, False) > 20 * stored(4, True)


def test_reversible_backward_refuses_parameters_that_changed_since():
    chain = build_network("conv_p4_tiny", (1, 8, 8), {"depth": 2, "hidden": 8})
    chain.reversible = True
    y, _ = chain(torch.randn(2, 1, 8, 8))
    with torch.no_grad():
        next(p for p in chain.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
