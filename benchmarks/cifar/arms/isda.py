"""Implicit semantic data augmentation (Wang et al., NeurIPS 2019): a loss, no change of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Arm, register


@register("isda")
class ISDA(Arm):
    """Features move along the covariance of their class.

    The expected cross-entropy over such moves has a bound in closed form, which is the loss. Class
    covariances of the features are running averages over the training.
    """

    label = "ISDA: features moved along the covariance of their class, in expectation"

    def __init__(self, strength: float = 0.5):
        super().__init__()
        self.strength = strength

    def start(self, model: nn.Module, steps: int) -> None:
        super().start(model, steps)
        weight = model.get_classifier().weight
        k, d = weight.shape
        self.steps = steps
        self.count, self.mean = weight.new_zeros(k, 1), weight.new_zeros(k, d)
        self.covariance = weight.new_zeros(k, d, d)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor, step: int) -> Tensor:
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        head = model.get_classifier()
        logits = head(features)
        with torch.autocast(x.device.type, enabled=False):
            self._update(features.detach().float(), target)
            w = head.weight.float()
            strength = self.strength * (step + 1) / self.steps
            spread = w @ self.covariance @ w.T  # (K, K, K): of class y between the rows of w
            own = torch.arange(len(w), device=w.device)
            cross = spread[own, own]  # (K, K): row y of the spread of class y
            variance = spread.diagonal(dim1=1, dim2=2) - 2 * cross + cross.diagonal().unsqueeze(1)
            return F.cross_entropy(logits.float() + 0.5 * strength * variance[target], target)

    @torch.no_grad()
    def _update(self, features: Tensor, y: Tensor) -> None:
        """Welford's update of count, mean and covariance of every class with a batch."""
        for k in y.unique().tolist():
            rows = features[y == k]
            n, m = self.count[k], len(rows)
            new = rows.mean(0)
            delta = new - self.mean[k]
            centred = rows - new
            scatter = centred.T @ centred + torch.outer(delta, delta) * (n * m / (n + m))
            self.covariance[k] = (self.covariance[k] * n + scatter) / (n + m)
            self.mean[k] += delta * m / (n + m)
            self.count[k] += m
