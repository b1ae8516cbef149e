"""Autoencoders of the tests: small, lossy, and not the same at every place."""

import torch
from torch import nn


class Small(nn.Module):
    """Latents (B, 4, H/4, W/4) by a convolution; its random weights follow from a seed."""

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, stride=4)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, stride=4), nn.SiLU(), nn.Conv2d(8, 3, 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.calls: list[int] = []  # images of each call of decode
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.4 * torch.randn(p.shape, generator=g))

    def encode(self, x):
        return self.dropout(self.down(x))

    def decode(self, z):
        self.calls.append(len(z))
        return self.up(z)


def load() -> Small:
    return Small()


class Halves(nn.Module):
    """Latents (B, 3, H/2, W/2): means of four pixels."""

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 2)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=2)


HALVES = f"{__file__}:Halves"  # its name
