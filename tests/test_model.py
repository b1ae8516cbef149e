"""ConditionalFlow: densities, the classifier, sampling, interpolation, conditional encoding; create_flow and its errors."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import timm_nfaug as nfa
from timm_nfaug import pixels
from timm_nfaug.config import FlowConfig
from timm_nfaug.flows.architectures import ARCHITECTURES
from timm_nfaug.flows.label_band import LabelBandFlow, _label_codes, nearest_label
from timm_nfaug.flows.prior import ClassGaussians


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_levels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())


# -- densities ---------------------------------------------------------------------------------------------------------


def test_bits_per_dim_of_a_fresh_flow():
    """A fresh conv_p4 only rotates the pixels, so its density is that of N(0, 0.75 I): computed here by hand."""
    flow = nfa.create_flow("conv_p4_tiny", num_classes=3, depth=2, hidden=16).eval()
    x = pixels.dequantize(noise_levels(4, 3, 32, 32), generator=generator())
    with torch.no_grad():
        z, log_det = flow(x)
        found = flow.bits_per_dim(x, torch.tensor([0, 1, 2, 0]))
    assert z.shape == (4, 3072) and log_det.shape == (4,)
    assert log_det.abs().max() < 1e-3 and not torch.equal(z, x.flatten(1))
    nats = 0.5 * (x.double().square().flatten(1).mean(1) / 0.75 + math.log(2 * math.pi * 0.75))
    # one of 256 levels is 2 / 256 wide; float32 sums over 3,072 pixels
    torch.testing.assert_close(
        found.double(), nats / math.log(2) - math.log2(2 / 256), rtol=0, atol=1e-5
    )
    assert (found > 8).all()  # noise has 8 bits/dim, and no model can have less on it


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_a_uniform_density_has_as_many_bits_as_the_levels(bits):
    log_prob = torch.full(
        (2,), -12 * math.log(2.0)
    )  # density 1/2 on [-1, 1] in each of 12 dimensions
    torch.testing.assert_close(
        pixels.bits_per_dim(log_prob, 12, bits), torch.full((2,), float(bits))
    )


def test_log_prob_integrates_to_one():
    """Over all of 2-D space, by a sum on a fine grid: scale and log-det of the whole model at once."""
    flow = nfa.create_flow(
        "conv_p4_tiny", input_size=(2, 1, 1), num_classes=2, depth=2, hidden=8, patch=1
    ).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator(p.numel())))
        line = torch.linspace(-12, 12, 601).double()
        grid = torch.cartesian_prod(line, line).view(-1, 2, 1, 1)
        for k in range(2):
            density = flow.log_prob(grid, torch.full((len(grid),), k)).exp()
            # the midpoint rule on a smooth density that has fallen to nothing at the rim; the ReLU kinks cost the most
            assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_class_logits_are_log_densities(small_flow, toy_images):
    x = pixels.levels_to_model(toy_images[0][::5])
    small_flow.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    logits = small_flow.class_logits(x)
    twin = (
        torch.stack([small_flow.log_prob(x, torch.full((len(x),), k)) for k in range(3)], 1)
        + small_flow.log_prior
    )
    difference = logits - twin  # the log-det, a constant for each image
    # float32 sums of 3,072 terms, totals of some thousand nats
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 3), rtol=0, atol=2e-2)
    assert (logits.argmax(1) == toy_images[1][::5]).float().mean() > 0.9  # one colour a class


@pytest.mark.parametrize("rank", [4, 12])
def test_linear_flow_is_a_gaussian_fit(rank):
    """Fitted in closed form, the flow of depth 0 is the Gaussian of the class's mean and covariance."""
    levels = noise_levels(300, 1, 3, 4)
    levels = (levels.float().cumsum(3) / 4).to(torch.uint8)  # neighbours correlate
    y = torch.arange(300) % 2
    x = pixels.levels_to_model(levels)
    flow = nfa.create_flow(
        "linear", input_size=(1, 3, 4), num_classes=2, prior={"num_modes": rank}
    ).double()
    flow.prior.set_moments(flow.moments([(x, y)], num_modes=rank))
    assert flow.is_linear
    for k in range(2):
        rows = x[y == k].flatten(1).double()
        covariance = torch.cov(rows.T)
        values, axes = torch.linalg.eigh(covariance)
        top = axes[:, -rank:] * values[-rank:] @ axes[:, -rank:].T
        # the floor of 2% of the mean variance; with full rank it is all there is besides the sample covariance
        rest = (covariance - top).diagonal().maximum(0.02 * covariance.diagonal().mean())
        twin = MultivariateNormal(rows.mean(0), top + torch.diag(rest))
        found = flow.log_prob(x[y == k].double(), y[y == k])
        # moments pass through float32; 12 quadratic terms over variances down to 2% of the mean
        torch.testing.assert_close(found, twin.log_prob(rows), rtol=0, atol=1e-3)


def test_with_prior_shares_the_network_and_nothing_else(small_flow, toy_images, tmp_path):
    x, z = (
        pixels.levels_to_model(toy_images[0][:4]),
        small_flow(pixels.levels_to_model(toy_images[0][:4]))[0],
    )
    before, config = small_flow.class_logits(x), small_flow.config.to_dict()
    prior = ClassGaussians(5, small_flow.dim, num_modes=2)
    other = small_flow.with_prior(prior, ["p", "q", "r", "s", "t"])
    assert other.network is small_flow.network and other.num_classes == 5
    assert torch.equal(other(x)[0], z) and other.class_logits(x).shape == (4, 5)
    assert torch.equal(small_flow.class_logits(x), before) and small_flow.config.to_dict() == config
    loaded = nfa.ConditionalFlow.from_pretrained(other.save_pretrained(tmp_path))
    with torch.no_grad():  # folded, as the frozen flow of the fixture is
        assert loaded.config.class_names == ["p", "q", "r", "s", "t"] and torch.equal(
            loaded(x)[0], z
        )


# -- sampling and interpolation ----------------------------------------------------------------------------------------


def test_samples_come_from_the_generator_alone(small_flow):
    y = torch.tensor([0, 1, 2, 1])
    before = torch.get_rng_state()
    first = small_flow.sample(y, temperature=0.7, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (4, 3, 32, 32)
    assert torch.equal(first, small_flow.sample(y, temperature=0.7, generator=generator(5)))
    assert not torch.equal(first, small_flow.sample(y, temperature=0.7, generator=generator(6)))
    # the flow gives its own samples back to the classes they were drawn from
    assert torch.equal(small_flow.class_logits(first).argmax(1), y)


def test_interpolation(small_flow, toy_images):
    x = pixels.levels_to_model(toy_images[0])
    x0, x1 = x[:4], x[40:44]
    frames = small_flow.interpolate(x0, x1, steps=5)
    assert frames.shape == (4, 5, 3, 32, 32)
    # the inverse of the flow in float32
    torch.testing.assert_close(frames[:, 0], x0, rtol=0, atol=2e-5)
    torch.testing.assert_close(frames[:, -1], x1, rtol=0, atol=2e-5)
    z0, z1 = small_flow(x0)[0], small_flow(x1)[0]
    for i, t in enumerate((0.25, 0.5, 0.75), start=1):
        z = small_flow(frames[:, i].contiguous())[0]
        norm = (1 - t) * z0.norm(dim=1) + t * z1.norm(dim=1)
        torch.testing.assert_close(z.norm(dim=1), norm, rtol=1e-4, atol=0)  # float32 there and back
        line = (1 - t) * z0 + t * z1
        assert torch.cosine_similarity(z, line).min() > 0.99999
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        small_flow.interpolate(x0, x1, steps=1)


# -- conditional encoding ----------------------------------------------------------------------------------------------


@pytest.fixture
def encoding_flow(toy_images):
    torch.manual_seed(0)
    flow = nfa.create_flow("conv_p4_tiny", num_classes=3, depth=2, hidden=16, code_rows=8)
    flow.initialize(pixels.dequantize(toy_images[0], generator=generator()), toy_images[1])
    return flow.eval().requires_grad_(False)


def test_conditional_encoding(encoding_flow, toy_images):
    flow, (levels, y) = encoding_flow, toy_images
    x = pixels.levels_to_model(levels)
    with pytest.raises(ValueError, match="one for each image, got 59 labels for 60 images"):
        flow(x, y[1:])
    assert flow.dim == 3 * 40 * 32 and flow.prior.num_classes == 1 and flow.num_classes == 3
    z, _ = flow(x, y)
    torch.testing.assert_close(
        flow.inverse(z), x, rtol=0, atol=2e-5
    )  # float32; the band is cut off again
    with pytest.raises(ValueError, match="needs the labels"):
        flow(x)
    logits = flow.class_logits(x)
    by_hand = torch.stack(
        [flow.log_prob(x, torch.full_like(y, k)) for k in range(3)], 1
    ) - math.log(3)
    torch.testing.assert_close(logits, by_hand, rtol=1e-6, atol=0)  # the same passes, K of them
    assert not torch.equal(flow(x, y)[0], flow(x, (y + 1) % 3)[0])


def test_conditional_encoding_reads_labels_from_the_band(encoding_flow, toy_images):
    flow, x = encoding_flow, pixels.levels_to_model(toy_images[0])
    x = flow.sample(
        torch.tensor([0, 1, 2, 2, 2, 0]), generator=generator()
    )  # an untrained flow makes every label
    assert x.shape == (6, 3, 32, 32) and x.isfinite().all()
    assert torch.equal(x, flow.sample(torch.tensor([0, 1, 2, 2, 2, 0]), generator=generator()))
    # a flow that can make nothing but one image of label 2
    image = pixels.levels_to_model(toy_images[0][:1])
    flow.prior.mu.copy_(flow(image, torch.tensor([2]))[0])
    only = flow.sample(torch.tensor([2, 2]), temperature=0)
    torch.testing.assert_close(
        only, image.expand(2, -1, -1, -1), rtol=0, atol=2e-5
    )  # float32 inverse
    with pytest.raises(RuntimeError, match=r"no label of \[1\]"):
        flow.sample(torch.tensor([2, 1]), temperature=0)


def test_code_rows_make_a_label_band_flow(encoding_flow, small_flow, tmp_path):
    assert type(encoding_flow) is LabelBandFlow and not encoding_flow.has_class_gaussians
    assert type(small_flow) is nfa.ConditionalFlow and small_flow.has_class_gaussians
    loaded = nfa.ConditionalFlow.from_pretrained(encoding_flow.save_pretrained(tmp_path / "ce"))
    assert type(loaded) is LabelBandFlow and torch.equal(loaded.codes, encoding_flow.codes)
    assert type(nfa.ConditionalFlow.from_config(small_flow.config)) is nfa.ConditionalFlow
    with pytest.raises(ValueError, match="code_rows=8 is for a LabelBandFlow"):
        nfa.ConditionalFlow(encoding_flow.config)
    plain = small_flow.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="a LabelBandFlow needs code_rows"):
        LabelBandFlow.from_pretrained(plain)


def test_a_band_flow_refuses_what_needs_class_gaussians(encoding_flow):
    with pytest.raises(ValueError, match="one shared Gaussian; fit a flow with class Gaussians"):
        encoding_flow.with_prior(ClassGaussians(5, encoding_flow.dim))
    with pytest.raises(ValueError, match=r"hold a label already; use class_logits\(x\)"):
        encoding_flow.code_logits(torch.zeros(2, encoding_flow.dim))


def test_moments_of_a_band_flow_are_those_of_its_one_gaussian(encoding_flow, toy_images):
    x, y = pixels.levels_to_model(toy_images[0]), toy_images[1]
    mean, variance, _, _ = encoding_flow.moments([(x[::2], y[::2]), (x[1::2], y[1::2])]).finish()
    z = encoding_flow(x, y)[0].double()
    # float32 results of sums in float64
    torch.testing.assert_close(mean[0].double(), z.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance[0].double(), z.var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "num_classes, channels, rows, width", [(10, 3, 8, 32), (100, 3, 8, 32), (16, 1, 4, 16)]
)
def test_label_codes(num_classes, channels, rows, width):
    codes = _label_codes(num_classes, channels, rows, width)
    assert codes.shape == (num_classes, channels, rows, width) and codes.dtype == torch.uint8
    assert len(codes.flatten(1).unique(dim=0)) == num_classes
    assert torch.equal(codes, _label_codes(num_classes, channels, rows, width))
    # constant on 4 x 4 blocks
    blocks = codes.view(num_classes, channels, rows // 4, 4, width // 4, 4)
    assert torch.equal(blocks.amax((3, 5)), blocks.amin((3, 5)))
    x, y = pixels.levels_to_model(codes), torch.arange(num_classes)
    assert torch.equal(nearest_label(x, x), y)
    # noise of a fifth of the distance between the two levels (1.0): blocks of 16 pixels average it away
    noisy = x + 0.2 * torch.randn(x.shape, generator=generator())
    assert torch.equal(nearest_label(noisy, x), y)


def test_label_codes_that_cannot_be():
    with pytest.raises(ValueError, match="cannot spell 17 labels"):
        _label_codes(17, 1, 4, 16)
    with pytest.raises(ValueError, match="multiples of 4"):
        _label_codes(2, 3, 6, 32)


# -- codes and labels together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "one class", "band"])
def test_encode_agrees_with_forward_and_class_logits(kind, small_flow, encoding_flow, toy_images):
    flow = encoding_flow if kind == "band" else small_flow
    if kind == "one class":
        flow = small_flow.with_prior(ClassGaussians(1, small_flow.dim, num_modes=2))
        flow.code_logits = None  # one class takes no logits
    x, y = pixels.levels_to_model(toy_images[0][::7]), toy_images[1][::7]
    if kind != "one class":
        z, same = flow.encode(x, y)
        assert torch.equal(z, flow(x, y)[0]) and torch.equal(same, y)
    z, found = flow.encode(x)
    wanted = torch.zeros_like(y) if kind == "one class" else flow.class_logits(x).argmax(1)
    assert torch.equal(found, wanted) and found.dtype == torch.int64
    assert torch.equal(z, flow(x, wanted)[0])


def test_a_flow_leaves_its_config_alone():
    config = FlowConfig("conv_p4_tiny", (1, 8, 8), 2, network={"depth": 1, "hidden": 4})
    before = config.to_dict()
    flow = nfa.ConditionalFlow(config)
    assert config.to_dict() == before and flow.config.prior["num_modes"] == 32


# -- shapes, dtypes, names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, size, bits, kwargs",
    [
        ("conv_p4_tiny", (1, 8, 8), 5, {"depth": 2, "hidden": 8}),
        ("conv_p4_tiny", (3, 16, 24), 8, {"depth": 2, "hidden": 8, "patch": 2}),
        ("resnet_ms3", (3, 16, 8), 5, {"steps": 1, "blocks": 1, "hidden": 8}),
        ("linear", (2, 5, 7), 8, {}),
    ],
)
def test_other_sizes_channels_and_bits(name, size, bits, kwargs):
    flow = nfa.create_flow(name, input_size=size, num_classes=4, bits=bits, **kwargs).eval()
    levels, y = noise_levels(5, *size), torch.tensor([0, 1, 2, 3, 0])
    x = pixels.dequantize(levels, bits, generator())
    flow.initialize(x)
    z, log_det = flow(x)
    assert z.shape == (5, math.prod(size)) and log_det.shape == (5,)
    torch.testing.assert_close(
        flow.inverse(z), x, rtol=0, atol=1e-4
    )  # float32, whitening of 5 images
    expected = -flow.log_prob(x, y) / (math.prod(size) * math.log(2)) + bits - 1
    torch.testing.assert_close(flow.bits_per_dim(x, y), expected)
    assert flow.class_logits(x).shape == (5, 4)
    assert flow.sample(y).shape == (5, *size)


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("linear", {}),
        ("conv_p4_tiny", {"depth": 1, "hidden": 8}),
        ("conv_p4_tiny", {"depth": 1, "hidden": 8, "code_rows": 8}),
        ("jet_p4", {"depth": 1, "hidden": 16}),
        ("resnet_ms3", {"steps": 1, "blocks": 1, "hidden": 8}),
    ],
)
def test_an_empty_batch_has_empty_answers(name, kwargs):
    flow = nfa.create_flow(name, num_classes=3, **kwargs)
    x, y = torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)
    z, log_det = flow(x, y)
    assert z.shape == (0, flow.dim) and log_det.shape == (0,)
    assert flow.inverse(z).shape == flow.sample(y).shape == x.shape
    assert flow.log_prob(x, y).shape == flow.bits_per_dim(x, y).shape == (0,)
    assert flow.class_logits(x).shape == (0, 3) and flow.interpolate(x, x, 4, y, y).shape == (
        0,
        4,
        3,
        32,
        32,
    )
    levels, labels = noise_levels(6, 3, 32, 32), torch.arange(3).repeat(2)
    whole = [(pixels.levels_to_model(levels), labels)]
    for found, wanted in zip(
        flow.moments([(x, y), *whole, (x, y)]).finish(), flow.moments(whole).finish(), strict=True
    ):
        assert torch.equal(found, wanted)


def test_wrong_images_codes_and_labels_are_refused(small_flow):
    x = torch.zeros(2, 3, 32, 32)
    for wrong in (torch.zeros(2, 3, 32, 31), torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\).*got \(" + str(wrong.shape[0])):
            small_flow(wrong)
    with pytest.raises(TypeError, match="uint8.*levels_to_model"):
        small_flow(x.to(torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3072\), got \(2, 3, 32, 32\)"):
        small_flow.inverse(x)
    with pytest.raises(ValueError, match=r"0\.\.2 for a flow of 3 classes, got 0\.\.3"):
        small_flow.log_prob(x, torch.tensor([0, 3]))
    with pytest.raises(TypeError, match="soft labels"):
        small_flow.log_prob(x, torch.rand(2, 3))
    with pytest.raises(ValueError, match="one for each image, got 1 labels for 2 images"):
        small_flow.log_prob(x, torch.tensor([1]))
    with pytest.raises(ValueError, match="one for each image, got 1 labels for 2 images"):
        small_flow.moments([(x, torch.tensor([1]))])
    with pytest.raises(ValueError, match=r"0\.\.2"):
        small_flow.sample(torch.tensor([-1]))


def test_half_precision_images_and_autocast_do_not_lower_the_state(small_flow, toy_images):
    x = pixels.levels_to_model(toy_images[0][:4]).half()
    y = toy_images[1][:4]
    (z, log_det), logits, density = (
        small_flow(x),
        small_flow.class_logits(x),
        small_flow.log_prob(x, y),
    )
    assert z.dtype == log_det.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small_flow(x)[0], z)
        assert torch.equal(small_flow.class_logits(x), logits)
        assert torch.equal(small_flow.log_prob(x, y), density)
        back = small_flow.inverse(z)
    assert torch.equal(back, small_flow.inverse(z))


def test_create_flow_names_the_closest():
    for call, match in (
        (
            lambda: nfa.create_flow("conv_p4_tinny"),
            "unknown flow 'conv_p4_tinny'.*did you mean 'conv_p4_tiny'",
        ),
        (
            lambda: nfa.create_flow("linear.cifar10"),
            "^linear.cifar10 is a pretrained flow: pass pretrained=True",
        ),
        (lambda: nfa.create_flow("conv_p4_tiny", dept=3), "unknown key 'dept'.*'depth'"),
        (
            lambda: nfa.create_flow("linear", prior={"modes": 3}),
            "unknown key 'modes' in prior.*'num_modes'",
        ),
        (
            lambda: nfa.create_flow("linear", input_size=(3, 32)),
            r"three positive integers.*got \(3, 32\)",
        ),
        (
            lambda: nfa.create_flow("linear", num_classes=0),
            "num_classes must be a positive integer, got 0",
        ),
        (lambda: nfa.create_flow("linear", bits=9), "bits must be an integer from 1 to 8, got 9"),
        (
            lambda: nfa.create_flow("linear", num_classes=3, class_names=["a"]),
            "all 3 classes or none, got 1",
        ),
        (lambda: nfa.create_flow("resnet_ms3", levels=2), "one number for each of the 2 levels"),
        (
            lambda: nfa.create_flow("no_such_flow", pretrained=True),
            "no pretrained flow named 'no_such_flow'",
        ),
        (
            lambda: nfa.create_flow("linear", pretrained=True, bits=5, depth=2),
            "brings its own bits, depth",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_list_flows():
    assert nfa.list_flows() == sorted(ARCHITECTURES)
    assert nfa.list_flows("conv_p4*") == ["conv_p4_base", "conv_p4_small", "conv_p4_tiny"]
    assert nfa.list_flows("*ms3") == ["resnet_ms3"]
    assert nfa.list_flows("nothing") == []
    assert nfa.list_flows(["*ms3", "*tiny"]) == ["conv_p4_tiny", "resnet_ms3"]
    assert nfa.list_flows("conv_p4*", exclude_filters=["*base", "*tiny"]) == ["conv_p4_small"]
    assert nfa.list_flows("linear", pretrained=True) == ["linear.cifar10", "linear.taef2"]
    assert nfa.list_flows("*.cifar10*", True, "conv*") == ["linear.cifar10"]
    assert all("." in name for name in nfa.list_flows(pretrained=True)) and not nfa.list_flows(
        "lin", pretrained=True
    )


def test_config_survives_the_trip_to_json():
    config = nfa.create_flow(
        "conv_p4_tiny",
        input_size=(1, 8, 8),
        num_classes=2,
        depth=2,
        bits=5,
        class_names=["x", "y"],
        info={"data": "d"},
    ).config
    assert FlowConfig.from_dict(config.to_dict()) == config
