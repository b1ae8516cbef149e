"""How linear a flow's augmentation is: the shares are what their definitions say, computed image by image."""

import argparse

import pytest
import torch

from benchmarks.analysis import linearity
from benchmarks.analysis.moving import draw
from timm_nfaug import NFAugment, create_flow, pixels
from train_flow.data import Images


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


def fitted(flow, data, modes=4):
    return NFAugment.to_fit(flow, modes, labels="given").fit([(data.levels, data.labels)], 3).flow


def arguments(**changes):
    return argparse.Namespace(**{"images": 5, "draws": 2, "modes": 4, "seed": 0} | changes)


def test_the_linear_flow_is_linear(data):
    flow = fitted(create_flow("linear"), data)
    found = linearity.shares(
        flow, data, flow.prior.modes, 0.02, arguments()
    )  # so little that next to nothing is clamped
    shares = [found[k] for k in ("same_for_all", "eigen_images", "first_order")]
    assert shares == pytest.approx([1.0] * 3, abs=0.02) and found["mean_move_levels"] > 0.1
    other = torch.linalg.qr(
        torch.randn(3, flow.dim, 4, generator=torch.Generator().manual_seed(1))
    )[0].transpose(1, 2)
    assert linearity.shares(flow, data, other, 0.02, arguments())["eigen_images"] < 0.05, (
        "the span is another one"
    )


def test_shares_of_a_deep_flow_image_by_image(small_flow, data):
    flow, eigen, strength = (
        fitted(small_flow, data),
        fitted(create_flow("linear"), data).prior.modes,
        0.8,
    )
    found = linearity.shares(flow, data, eigen, strength, arguments(draws=1))
    g = torch.Generator().manual_seed(0)
    total = pairs = inside = 0.0
    for k in range(3):
        own = torch.where(data.labels == k)[0]
        x = pixels.levels_to_model(data.levels[own[torch.randperm(len(own), generator=g)[:5]]])
        direction = (draw(1, 4, g) * flow.prior.mode_std[k, :4]) @ flow.prior.modes[k, :4]
        changes = [
            flow.inverse(flow(i[None])[0] + strength * direction).clamp(-1, 1)[0] - i for i in x
        ]
        c = torch.stack(changes).flatten(1).double()
        total += c.square().sum(1).mean()
        pairs += sum(c[i] @ c[j] for i in range(5) for j in range(5) if i != j) / 20
        inside += torch.stack([(eigen[k].double() @ row).square().sum() for row in c]).mean()
    assert found["same_for_all"] == pytest.approx(float(pairs / total), abs=1e-3)
    assert found["eigen_images"] == pytest.approx(float(inside / total), abs=1e-3)
    assert found["same_for_all"] < 0.99 and found["eigen_images"] < 0.99, (
        "as linear as linear: this proves nothing"
    )
    tiny = linearity.shares(flow, data, eigen, 0.01, arguments())["first_order"]
    assert tiny > 0.98 and found["first_order"] < tiny
