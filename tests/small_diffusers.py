"""An autoencoder of diffusers with random weights, in a directory, as a download of one would be."""

import contextlib
import io
from pathlib import Path

import torch


def write_autoencoder(directory: Path) -> str:
    """Writes an AutoencoderTiny of few channels, 8 times smaller each way; returns the directory."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    made = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):
        made.save_pretrained(directory)
    return str(directory)
