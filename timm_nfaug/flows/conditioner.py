"""Networks inside the couplings. Their last layer starts at zero, so a coupling starts as the identity."""

from __future__ import annotations

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


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
