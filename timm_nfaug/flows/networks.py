"""Networks inside the couplings. Their last layer starts at zero, so a coupling starts as the identity."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """3x3 - 1x1 - 3x3 convolutions with ReLU (Kingma & Dhariwal, Glow, 2018)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            zero_init(nn.Conv2d(hidden, out_channels, 3, padding=1)),
        )


class ResidualBlock(nn.Module):
    """3x3 - 1x1 - 3x3 with ELU and a skip; the last convolution starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(channels, channels, 1),
            nn.ELU(),
            zero_init(nn.Conv2d(channels, channels, 3, padding=1)),
        )
        self.activation = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.body(x))


class ResNet(nn.Sequential):
    """The paper's coupling network: a 3x3 convolution, `blocks` residual blocks, a 3x3 convolution."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, blocks: int):
        super().__init__(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.ELU(),
            *(ResidualBlock(hidden) for _ in range(blocks)),
            zero_init(nn.Conv2d(hidden, out_channels, 3, padding=1)),
        )


class ViT(nn.Module):
    """A vision transformer whose tokens are the pixels of (B, C, H, W) (Kolesnikov et al., Jet, 2024), of timm's blocks.

    The last layer, which makes scale and shift, stays in the dtype of its weights under autocast. torch's attention has no
    forward-mode derivative.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        size: tuple[int, int],
        blocks: int,
        heads: int,
    ):
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of the {heads} heads, got {hidden}")
        self.embed = nn.Linear(in_channels, hidden)
        self.position = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(size[0] * size[1], hidden), std=0.02)
        )
        self.blocks = nn.Sequential(*(Block(hidden, heads, qkv_bias=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(hidden)
        self.head = zero_init(nn.Linear(hidden, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.embed(x.permute(0, 2, 3, 1).reshape(b, h * w, c)) + self.position
        tokens = self.norm(self.blocks(tokens))
        with torch.autocast(x.device.type, enabled=False):
            out = self.head(tokens.to(self.head.weight.dtype))
        return out.unflatten(1, (h, w)).permute(0, 3, 1, 2)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
