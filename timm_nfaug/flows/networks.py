"""Networks inside the couplings. The last layer is zero at first: then a coupling does nothing."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """3x3 - 1x1 - 3x3 convolutions with an activation between them (Glow, 2018).

    >>> ConvNet(6, hidden=16, out_channels=12)(torch.zeros(1, 6, 8, 8)).shape
    torch.Size([1, 12, 8, 8])
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, elu: bool = False):
        activation = nn.ELU() if elu else nn.ReLU(inplace=True)
        first, middle = nn.Conv2d(in_channels, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
        last = _zero_init(nn.Conv2d(hidden, out_channels, 3, padding=1))
        super().__init__(first, activation, middle, activation, last)


class ResNet(nn.Sequential):
    """The paper's: a 3x3 convolution, residual blocks of three convolutions, a 3x3 convolution.

    >>> ResNet(6, hidden=16, out_channels=12, blocks=2)(torch.zeros(1, 6, 8, 8)).shape
    torch.Size([1, 12, 8, 8])
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, blocks: int):
        first = nn.Conv2d(in_channels, hidden, 3, padding=1)
        residual = [_ResidualBlock(hidden) for _ in range(blocks)]
        last = _zero_init(nn.Conv2d(hidden, out_channels, 3, padding=1))
        super().__init__(first, nn.ELU(), *residual, last)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = ConvNet(channels, channels, channels, elu=True)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.elu(x + self.body(x))


class ViT(nn.Module):
    """A vision transformer whose tokens are the pixels (Kolesnikov et al., Jet, 2024).

    Its last layer obeys no autocast. Torch's attention has no forward-mode derivatives.

    >>> ViT(6, 16, out_channels=12, size=(4, 4), blocks=1, heads=4)(torch.zeros(1, 6, 4, 4)).shape
    torch.Size([1, 12, 4, 4])
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, size, blocks, heads):
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of the {heads} heads, got {hidden}")
        self.embed = nn.Linear(in_channels, hidden)
        position = nn.init.trunc_normal_(torch.empty(size[0] * size[1], hidden), std=0.02)
        self.position = nn.Parameter(position)
        self.blocks = nn.Sequential(*(Block(hidden, heads, qkv_bias=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(hidden)
        self.head = _zero_init(nn.Linear(hidden, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C)
        tokens = self.norm(self.blocks(self.embed(rows) + self.position))
        with torch.autocast(x.device.type, enabled=False):
            out = self.head(tokens.to(self.head.weight.dtype))
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _zero_init(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
