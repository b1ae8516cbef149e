"""What a trained classifier makes of test images: top-1, NLL and calibration, also under corruptions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.cifar.corruptions import CORRUPTIONS
from benchmarks.cifar.training import normalize
from train_flow.data import Images

TEST_PIXELS = 500 * 32 * 32  # of the images of a batch in a test


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """Normalised images (B, 3, H, W) to penultimate features (B, F)."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


@torch.no_grad()
def logits_of(
    model: nn.Module, levels: Tensor, bf16: bool, batch_size: int = 0, views: int = 1
) -> Tensor:
    """Logits (N, K), float32, averaged over the views of each image.

    Args:
        batch_size: 0 for as many as have the pixels of 500 images of 32 px, which caches hold.
        views: 1 for the image, 2 with its mirror image, 6 for these and both shifted by a pixel to
            either side along the diagonal, at half the weight.
    """
    model.eval()
    out = []
    batch_size = batch_size or max(1, TEST_PIXELS // levels[0, 0].numel())
    for part in levels.split(batch_size):
        total = 0.0
        with torch.autocast(levels.device.type, torch.bfloat16, enabled=bf16):
            for weight, view in views_of(normalize(part), views):
                total = total + weight * model(view).float()
        out.append(total)
    return torch.cat(out)


def views_of(x: Tensor, views: int) -> list[tuple[float, Tensor]]:
    """Weights and views of images (B, C, H, W), see `logits_of`."""
    if views == 1:
        return [(1.0, x)]
    if views == 2:
        return [(0.5, x), (0.5, x.flip(3))]
    h, w = x.shape[2:]
    padded = F.pad(x, (1,) * 4, mode="reflect")
    shifted = (padded[:, :, :h, :w], padded[:, :, 2:, 2:])
    return [(0.25, v) for v in (x, x.flip(3))] + [
        (0.125, v) for s in shifted for v in (s, s.flip(3))
    ]


def test(
    model: nn.Module, data: Images, bf16: bool, corrupted: int = 0, views: int = 1
) -> dict[str, float]:
    """top1 and ece in percent, nll in nats; with `corrupted`, top1 on so many images under every corruption too."""
    logits = logits_of(model, data.levels, bf16, views=views)
    found = {
        "top1": 100 * (logits.argmax(1) == data.labels).float().mean().item(),
        "nll": F.cross_entropy(logits, data.labels).item(),
        "ece": 100
        * multiclass_calibration_error(
            logits.softmax(1), data.labels, logits.shape[1], n_bins=15
        ).item(),
    }
    if corrupted:
        pick = torch.arange(corrupted, device=data.levels.device) * len(data) // corrupted
        levels, labels = data.levels[pick], data.labels[pick]
        scores = []
        for i, corruption in enumerate(CORRUPTIONS.values()):
            torch.manual_seed(i)
            scores.append(
                (logits_of(model, corruption(levels), bf16).argmax(1) == labels)
                .float()
                .mean()
                .item()
            )
        found["corrupted_top1"] = 100 * sum(scores) / len(scores)
    return found
