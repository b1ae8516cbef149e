"""Pixel ranges: uint8 levels, floats in [0, 1], other ranges, and the flow's range [-1, 1].

A level u of ``2**bits`` is the interval [u, u + 1), mapped linearly onto [-1, 1]: a flow sees its
centre, and in training uniform noise inside it (Theis et al., 2016: dequantisation).
"""

import math
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors


def levels_to_model(levels: Tensor) -> Tensor:
    """Maps uint8 levels of any shape to float32 in [-1, 1], at the centre of each level.

    >>> levels_to_model(torch.tensor([0, 255], dtype=torch.uint8)) * 256
    tensor([-255.,  255.])
    """
    if levels.dtype != torch.uint8:
        raise TypeError(f"expected uint8 levels, got {levels.dtype}; use unit_to_model for floats")
    return levels.to(torch.float32).add_(0.5).mul_(2 / 256).sub_(1)


def levels_of(image: PIL.Image.Image | Tensor) -> Tensor:
    """uint8 levels (C, H, W) of a PIL image of mode RGB or L (a copy), or such a tensor itself.

    >>> levels_of(PIL.Image.new("RGB", (6, 4))).shape
    torch.Size([3, 4, 6])
    """
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        return image
    if not isinstance(image, PIL.Image.Image) or image.mode not in ("L", "RGB"):
        what = getattr(image, "mode", type(image).__name__)
        what = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else what
        wanted = "a PIL image of mode RGB or L, or a uint8 tensor (C, H, W)"
        raise TypeError(f"expected {wanted}, got {what}")
    array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))  # plane by plane, as what is added to it


def model_to_levels(x: Tensor) -> Tensor:
    """Maps [-1, 1] to the nearest uint8 levels; values outside are clamped.

    >>> model_to_levels(torch.tensor([-2.0, 0.0, 1.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return x.add(1).mul_(128).sub_(0.5).round_().clamp_(0, 255).to(torch.uint8)


def unit_to_model(x: Tensor) -> Tensor:
    """Maps floats in [0, 1] (level / 255, as ToTensor gives) to [-1, 1], float32.

    >>> unit_to_model(torch.tensor([0.5]))
    tensor([0.])
    """
    return x.to(torch.float32).mul(255).add_(0.5).mul_(2 / 256).sub_(1)


def channel_stats(mean, std, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std, one or C numbers, as float32 (1 or C, 1, 1), for images as `like` (.., C, H, W).

    >>> channel_stats([0.5, 0.5, 0.5], 0.2, torch.zeros(3, 8, 8))[0].shape
    torch.Size([3, 1, 1])
    """
    found, channels = [], like.shape[-3]
    for name, values in (("mean", mean), ("std", std)):
        values = torch.as_tensor(values, dtype=torch.float32, device=like.device).reshape(-1, 1, 1)
        got = values.flatten().tolist()
        if len(got) not in (1, channels):
            wanted = f"one number or one for each of the {channels} channels"
            raise ValueError(f"{name} must be {wanted}, got {got}")
        if name == "mean" and not 0 <= min(got) <= max(got) <= 1:
            raise ValueError(
                f"mean and std are of images in [0, 1], got mean {got}; divide those of levels "
                "0..255 by 255"
            )
        if name == "std" and min(got) <= 0:
            raise ValueError(f"std must be positive in every channel, got {got}")
        found.append(values)
    return found[0], found[1]


class Scale(NamedTuple):
    """What the values of images mean; without arguments uint8 levels, or floats in [0, 1].

    Args:
        mean, std: per channel, of floats normalised as (x - mean) / std.
        value_range: (low, high), numbers or one for each channel, of floats or integers.

    >>> Scale(value_range=(0, 4095)).to_unit(torch.full((1, 1, 1), 1638.0)).item()
    0.4...
    """

    mean: Any = None
    std: Any = None
    value_range: Any = None

    def checked(self, channels: int) -> "Scale":
        """The same for images of so many channels, with value_range as floats or tuples of floats.

        A channel may hold one value alone, and then never changes, where the ends are given for
        each channel.

        >>> Scale(value_range=[0, 4095]).checked(13).value_range
        (0.0, 4095.0)
        """
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if (given := self.value_range) is None:
            return self
        if self.mean is not None:
            raise ValueError("value_range takes the place of mean and std: give one or the other")
        try:
            low, high = (np.asarray(v, dtype=np.float64).reshape(-1) for v in given)
        except (TypeError, ValueError):
            low = high = np.empty(0)
        fits = len(low) in (1, channels) and len(low) == len(high)
        rises = fits and (low <= high).all() and (low < high).any()
        if not rises or not np.isfinite([low, high]).all():
            wanted = f"(low, high), each a number or one for each of the {channels} channels"
            raise ValueError(f"value_range must be {wanted}, low below high; got {given!r:.200}")
        ends = [v.tolist()[0] if len(v) == 1 else tuple(v.tolist()) for v in (low, high)]
        return self._replace(value_range=tuple(ends))

    @property
    def is_plain(self) -> bool:
        """Whether floats are in [0, 1]."""
        return self.mean is None and self.value_range is None

    def is_levels(self, x: Tensor) -> bool:
        """Whether these are uint8 levels 0..255."""
        return x.dtype == torch.uint8 and self.value_range is None

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for 0 and 1, float32 (1 or C, 1, 1), in images as `like` (.., C, H, W)."""
        if self.mean is not None:
            mean, std = channel_stats(self.mean, self.std, like)
            return -mean / std, (1 - mean) / std
        low, high = self.value_range or (0.0, 1.0)
        view = lambda v: torch.tensor(v, dtype=torch.float32, device=like.device).view(-1, 1, 1)
        return view(low), view(high)

    def to_unit(self, x: Tensor) -> Tensor:
        """Images (.., C, H, W) as float32 in [0, 1]; a channel without a range as 0."""
        x = widened(x).to(torch.float32)
        if self.is_plain:
            return x
        low, high = self.bounds(x)
        return (x - low) / torch.where(high > low, high - low, 1.0)

    def limits(self, image: Tensor) -> tuple[list[float], list[float]]:
        """The least and greatest value that each channel of images (.., C, H, W) can take."""
        if self.is_levels(image):
            return [0.0] * image.shape[-3], [255.0] * image.shape[-3]
        ends = self.value_range or (0.0, 1.0)
        if self.mean is not None:
            ends = tuple(v.flatten().tolist() for v in self.bounds(image))
        low, high = (np.broadcast_to(np.ravel(v), image.shape[-3]).tolist() for v in ends)
        if not image.is_floating_point():
            info = torch.iinfo(image.dtype)
            low, high = [max(v, info.min) for v in low], [min(v, info.max) for v in high]
        return low, high


PLAIN = Scale()


def widened(x: Tensor) -> Tensor:
    """The same values; of unsigned integers that torch lacks kernels for in a signed type.

    >>> widened(torch.zeros(2, dtype=torch.uint16)).dtype
    torch.int32
    """
    wide = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
    return x.to(wide.get(x.dtype, x.dtype))


def batch_of(image: Any) -> Tensor:
    """A tensor or tv_tensor, an array or a PIL image as a tensor (B, C, H, W), B 1 for one image.

    Arrays are (H, W, C) or (B, H, W, C), or (H, W) in grey.

    >>> batch_of(np.zeros((6, 4, 3), np.uint16)).shape
    torch.Size([1, 3, 6, 4])
    """
    if isinstance(image, Tensor):
        x = image.as_subclass(Tensor).detach()
        return x if x.ndim == 4 else x.unsqueeze(0)
    array = np.asarray(image)
    array = array if array.ndim > 2 else array[..., None]
    array = array if array.ndim == 4 else array[None]
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not native.flags.writeable or min(native.strides, default=0) < 0:  # which torch lacks
        native = native.copy()
    return torch.from_numpy(native).permute(0, 3, 1, 2)


def as_came(x: Tensor, image: Any) -> Any:
    """A tensor (B, C, H, W) as what `batch_of` made it from: kind, shape, dtype; info of PIL images.

    >>> image = PIL.Image.new("I;16", (6, 4))
    >>> as_came(batch_of(image), image).mode
    'I;16'
    """
    if isinstance(image, tv_tensors.TVTensor):
        return tv_tensors.wrap(x.reshape(image.shape), like=image)
    if isinstance(image, Tensor):
        return x.reshape(image.shape)
    like = np.asarray(image)
    array = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy().reshape(like.shape), like.dtype)
    if isinstance(image, np.ndarray):
        return array
    new = PIL.Image.fromarray(array)
    new.info = image.info.copy()
    return new


def dequantize(levels: Tensor, bits: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """Maps uint8 levels to float32 in [-1, 1] with uniform noise inside each of ``2**bits`` levels.

    Below 8 bits the lowest bits are dropped. `generator` is on the CPU or where the levels are.

    >>> dequantize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), bits=5).max() < -1 + 2 / 32
    tensor(True)
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
    if levels.dtype != torch.uint8:
        raise TypeError(f"dequantize expects uint8 levels, got {levels.dtype}")
    device = generator.device if generator is not None else levels.device
    noise = torch.rand(levels.shape, generator=generator, device=device).to(levels.device)
    kept = levels if bits == 8 else levels >> (8 - bits)
    return kept.to(torch.float32).add_(noise).mul_(2.0 / 2**bits).sub_(1)


def bits_per_dim(log_prob: Tensor, dim: int, bits: int = 8) -> Tensor:
    """Bits per dimension of log densities (B,) in nats over [-1, 1]^dim, for ``2**bits`` levels.

    >>> bits_per_dim(torch.tensor([-12 * math.log(2)]), dim=12)  # the uniform density
    tensor([8.])
    """
    return -log_prob / (dim * math.log(2)) + (bits - 1)  # a level is 2 / 2**bits wide
