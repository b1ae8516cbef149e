"""The convolution peak of a machine: the FLOP/s of a plain 3x3 convolution with 128 channels.

It is measured in channels_last at the resolutions of the flows; "share of the peak" is over the
quickest of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from train_flow.trainer import emulates_bfloat16

CHANNELS, SIZES = 128, (8, 32)


def dtypes(device: str) -> list[str]:
    """Lists the dtypes of coupling networks that are timed: not bfloat16 where it is only emulated."""
    return ["float32"] if emulates_bfloat16(device) else ["float32", "bfloat16"]


def peak_functions(batch: int, device: str) -> dict[str, tuple[Callable[[], Any], float]]:
    """Returns a name ("conv float32 8x8") to a call and its FLOPs."""
    found = {}
    for dtype in dtypes(device):
        place = {"device": device, "dtype": getattr(torch, dtype)}
        for size in SIZES:
            conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            conv = conv.to(**place, memory_format=torch.channels_last)
            x = torch.randn(batch, CHANNELS, size, size)
            x = x.to(**place, memory_format=torch.channels_last)
            call = synchronised(functools.partial(conv, x), device)
            found[f"conv {dtype} {size}x{size}"] = call, 2 * 9 * CHANNELS**2 * batch * size**2
    return found


def synchronised(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Makes a call wait for the GPU, where it runs on one."""
    if torch.device(device).type != "cuda":
        return function

    def call() -> None:
        function()
        torch.cuda.synchronize()

    return call
