"""FID (Heusel et al. 2017) and Coverage (Naeem et al. 2020) between features of real and of sampled images."""

from __future__ import annotations

from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.generation.extractor import features_of

NEIGHBOURS = 5


class Given(nn.Identity):
    """Lets torchmetrics' FID take features instead of images: one pass of the network serves all metrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def fid(real: Tensor, made: Tensor) -> float:
    """Returns the Fréchet distance between Gaussians fitted to features (N, F) and (M, F)."""
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    return metric.compute().item()


def coverage(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> float:
    """Returns the share of real features with a made one nearer than their k-th neighbour among the real.

    Args:
        real: (N, F), N > k. made: (M, F).
    """
    if len(real) <= k:
        raise ValueError(f"coverage with k = {k} needs more than {k} real images, got {len(real)}")
    real, made = real.double().numpy(), made.double().numpy()
    own = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(real)
    radius = own.kneighbors()[0][:, -1]  # without points to look for, none is its own neighbour
    other = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(made)
    return float((other.kneighbors(real)[0][:, 0] < radius).mean())


def score(
    real: Tensor, model: nn.Module, levels: Tensor, labels: Tensor, bf16: bool = False
) -> dict[str, float]:
    """Returns fid, coverage and class_accuracy of uint8 images (M, 3, H, W) against real features (N, F)."""
    features, predicted = features_of(model, levels, bf16)
    return {
        "fid": fid(real, features),
        "coverage": coverage(real, features),
        "class_accuracy": (predicted == labels).double().mean().item(),
    }
