"""Training of the class Gaussians: by turns with the flow (glem, ml) or in its steps (joint)."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_nfaug.flows.model import ConditionalFlow

from .config import TrainConfig
from .data import stratified_split
from .evaluate import code_moments
from .images import TrainingImages
from .objective import gaussian_loss, nats_of_unit
from .schedule import GAUSSIANS, generator, piecewise


def split_gaussian_images(labels: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Indices of D_NF, the flow's own images, and of D_G, those kept for the Gaussians.

    D_G is a stratified share; it is empty where the Gaussians learn from the flow's images.

    >>> config = TrainConfig(image_size=32, objective="glem", gaussian_fraction=0.25)
    >>> own, kept = split_gaussian_images(torch.tensor([0] * 8 + [1] * 4), config)
    >>> len(own), len(kept)
    (9, 3)
    """
    if not (config.alternates and config.gaussian_fraction):
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    own, kept = stratified_split(labels, config.gaussian_fraction, config.seed)
    if not len(kept):
        raise ValueError(
            "gaussian_fraction takes no image, as every class has one alone; "
            "set gaussian_fraction=0"
        )
    return own, kept


class Alternation:
    """Trains the Gaussians of a flow before or after its steps, until they freeze.

    Args:
        images: the training images.
        pool: indices of D_G, the images that the Gaussians learn from.
        steps: of the whole training.
        steps_per_epoch: of the flow, for `gaussian_every` 0.

    Attributes:
        freeze_step: step of the flow from which on the Gaussians stay as they are.
        adam: the optimizer of the means and variances.
        updates: how many steps it has taken.
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        images: TrainingImages,
        pool: Tensor,
        steps: int,
        steps_per_epoch: int,
    ):
        self.flow, self.images, self.pool, self.config = flow, images, pool, images.config
        self.freeze_step = round(self.config.gaussian_until * steps)
        self.every = self.config.gaussian_every or steps_per_epoch
        flow.prior.requires_grad_(self.config.joint)  # else only `update` asks for gradients
        self.adam = torch.optim.Adam([flow.prior.mu, flow.prior.s])
        self.updates = 0

    def before_step(self, step: int) -> None:
        """Updates or fits the Gaussians where that is due before the flow's step `step`."""
        c = self.config
        if step >= self.freeze_step:
            return
        if c.alternates and step and step % self.every == 0:
            self.update(step)
        if c.modes_every and step % c.modes_every == 0:
            self.fit(step)

    def after_step(self, step: int) -> None:
        """With objective joint, moves the Gaussians along the gradient of the flow's own loss."""
        if self.config.joint and step < self.freeze_step:
            self._adam_step(step)

    def update(self, step: int) -> None:
        """Takes one Adam step of all Gaussians on the codes of D_G."""
        c, prior = self.config, self.flow.prior
        z, y = self._codes(step)
        t = self._time(step)
        weight = piecewise(c.kld_weight, t, geometric=False) if c.objective == "glem" else 0.0
        prior.requires_grad_(True)
        unit = nats_of_unit(self.flow.config)
        loss = gaussian_loss(
            prior, z, y, weight, c.discriminative, self.flow.dim, c.temperature, unit
        )
        grads = torch.autograd.grad(loss, [prior.mu, prior.s])
        prior.requires_grad_(False)
        self.images.processes.average_(*grads)
        if self.updates == 1:
            self.adam.state.clear()  # the first update, of equal Gaussians, had no KLD term
        prior.mu.grad, prior.s.grad = grads
        self._adam_step(step)
        prior.mu.grad = prior.s.grad = None

    @torch.no_grad()
    def fit(self, step: int) -> None:
        """Sets means, modes and variances in closed form from codes of D_G.

        Large directions then need not be learned step by step.
        """
        some = self.images.data.subset(self.indices(step, every_class=True))
        self.flow.prior.set_moments(code_moments(self.flow, some))

    def indices(self, step: int, every_class: bool = False) -> Tensor:
        """Indices of the images of D_G that an update or fit before `step` uses.

        Args:
            every_class: of each class that the draw misses, add the image that it would meet first.
        """
        n = self.config.gaussian_images or len(self.pool)
        g = generator(self.config.seed, GAUSSIANS, step)
        pool = self.pool[torch.randperm(len(self.pool), generator=g)]
        if not every_class:
            return pool[:n]
        labels = self.images.data.labels.cpu()[pool]
        first = torch.full((self.flow.num_classes,), len(pool)).scatter_reduce(
            0, labels, torch.arange(len(pool)), "amin"
        )
        return torch.cat([pool[:n], pool[first[(first >= n) & (first < len(pool))]]])

    @torch.no_grad()
    def _codes(self, step: int) -> tuple[Tensor, Tensor]:
        """Codes (B, D) and labels (B,) of this process's share of D_G."""
        codes, labels = [], []
        for i, part in enumerate(self.indices(step).split(512)):
            x, y = self.images(part, step * 4096 + i, GAUSSIANS)
            codes.append(self.flow(x)[0])
            labels.append(y)
        return torch.cat(codes), torch.cat(labels)

    def _adam_step(self, step: int) -> None:
        for group in self.adam.param_groups:
            group["lr"] = piecewise(self.config.gaussian_lr, self._time(step), geometric=True)
        self.adam.step()
        self.updates += 1

    def _time(self, step: int) -> float:
        """Position in the schedules: 0 at the first step, 1 where the Gaussians freeze."""
        return step / max(self.freeze_step, 1)
