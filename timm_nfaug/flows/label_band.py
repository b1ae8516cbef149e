"""Label codes for conditional encoding (CE): a band of blocks below the image that spells the label.

The paper's baseline appends 8 rows (32 to 40) and reads a sample's label by the nearest code. Here a code is a row
pattern of two levels in 4 x 4 blocks, chosen greedily so that the closest two codes differ in many blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4
LOW, HIGH = 64, 192  # uint8 levels of the two values


def label_codes(num_classes: int, channels: int, rows: int, width: int) -> Tensor:
    """(K, C, rows, W) uint8; the same for the same arguments on every machine."""
    if rows % BLOCK or width % BLOCK:
        raise ValueError(
            f"code_rows and the image width must be multiples of {BLOCK}, got {rows} and {width}"
        )
    bits = channels * (rows // BLOCK) * (width // BLOCK)
    if 2**bits < num_classes:
        raise ValueError(
            f"a band of {bits} blocks cannot spell {num_classes} labels; use more code_rows"
        )
    g = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 2, (1, bits), generator=g)
    while len(chosen) < num_classes:
        candidates = torch.randint(0, 2, (256, bits), generator=g)
        distance = (candidates[:, None] != chosen[None]).sum(2).min(1).values
        if int(distance.max()) > 0:
            chosen = torch.cat([chosen, candidates[distance.argmax()][None]])
    levels = (LOW + (HIGH - LOW) * chosen).to(torch.uint8)
    blocks = levels.view(num_classes, channels, rows // BLOCK, width // BLOCK)
    return blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)


def nearest_label(band: Tensor, codes: Tensor) -> Tensor:
    """(B,) label whose code is nearest to each band (B, C, rows, W), both in the same range."""
    return torch.cdist(band.flatten(1), codes.flatten(1).to(band)).argmin(1)
