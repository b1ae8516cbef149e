"""NFAExamples: the augmentation for `with_transform` and `set_transform` of Hugging Face datasets."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..augment import NFAugment
from .transforms import for_workers


class NFAExamples:
    """Augments the images of a dict of lists, ``{"image": [...], "label": [...]}``, one by one.

    Images are PIL images, tensors, or arrays (H, W, C), also as nested lists, as `Array3D` gives them.
    Each has its own draw, and its label where `augment.labels` is "given". Random numbers
    come from the transform's own stream, which each worker has in each pass.

    Args:
        transform: of torchvision, say: runs on each image after NFA, which sees it as stored.
        image, label: the keys that hold the images and their labels.
        output: the key of the result, such as "pixel_values", in place of `image`.

    >>> import PIL.Image
    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", labels="given")
    >>> examples = NFAExamples(augment, transform=lambda image: image.size, output="pixel_values")
    >>> examples({"image": [PIL.Image.new("L", (8, 8))], "label": [3]})
    {'label': [3], 'pixel_values': [(8, 8)]}
    """

    def __init__(
        self,
        augment: NFAugment,
        transform: Callable[[Any], Any] | None = None,
        image: str = "image",
        label: str = "label",
        output: str | None = None,
    ):
        self.augment, self.transform = for_workers(augment), transform
        self.image, self.label, self.output = image, label, output or image

    def __call__(self, examples: dict[str, list]) -> dict[str, list]:
        images = examples.get(self.image)
        if not isinstance(images, (list, tuple)):
            raise TypeError(
                f"expected a dict with a list of images under {self.image!r}, got "
                f"{sorted(examples)}; name their column with image="
            )
        labels = self._labels(examples, len(images))
        moved = [self._moved(*pair) for pair in zip(images, labels, strict=True)]
        others = {k: v for k, v in examples.items() if k != self.image}
        return {**others, self.output: moved}

    def _labels(self, examples: dict[str, list], count: int) -> Any:
        given = self.augment.labels == "given" and self.label in examples
        return examples[self.label] if given else [None] * count

    def _moved(self, image: Any, label: Any) -> Any:
        image = np.asarray(image) if isinstance(image, list) else image  # of a column Array3D
        image = self.augment(image) if label is None else self.augment(image, label)[0]
        return image if self.transform is None else self.transform(image)
