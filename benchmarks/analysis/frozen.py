"""A classifier for measuring augmentations: frozen features of a pretrained backbone, and a logistic regression on them.

It is fitted to the training images as they are, without augmentation. MobileNetV2's features were
trained on ImageNet, of which Imagenette is a part: they have seen its images.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from timm_nfaug import lift
from timm_nfaug.autoencoder import has_bfloat16
from train_flow.data import Images

BACKBONE = "mobilenetv2_100"
BATCH = 32
DECAY = 1e-3  # of the logistic regression, on standardised features
STEPS = 100


def read(folder: Path, count: int, side: int) -> Images:
    """Reads `count` images of an ImageFolder tree, evenly spread over its files, as squares of `side` pixels."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no directory {folder}; expected train/ and val/ inside")
    cut = v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()])
    data = ImageFolder(str(folder), cut)
    count = min(count, len(data))
    pick = [i * len(data) // count for i in range(count)]
    levels = torch.stack([data[i][0] for i in pick])
    return Images(levels, torch.tensor([data.targets[i] for i in pick]), data.classes)


class Classifier(nn.Module):
    """Features of images and the classes that they tell; `fit` comes first.

    Args:
        weights: safetensors of timm's mobilenetv2_100 without its classifier; None: timm downloads
            its own.
        side: pixels that images are brought to.
    """

    def __init__(self, weights: Path | None, side: int):
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, pretrained=weights is None, num_classes=0)
        if weights is not None:
            self.backbone.load_state_dict(load_file(str(weights)))
        self.backbone.to(memory_format=torch.channels_last)
        self.side, self.head = side, nn.Linear(self.backbone.num_features, 1)
        mean_std = (
            torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self.mean, self.std = mean_std
        self.eval()

    @torch.no_grad()
    def features(self, levels: Tensor) -> Tensor:
        """Features (B, F) of images (B, 3, H, W), uint8."""
        parts = []
        lowered = has_bfloat16(torch.device("cpu"))
        for part in levels.split(BATCH):
            x = (lift.down(part / 255, (self.side, self.side)) - self.mean) / self.std
            with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
                parts.append(self.backbone(x.contiguous(memory_format=torch.channels_last)).float())
        return torch.cat(parts)

    def fit(self, images: Images) -> Classifier:
        """Fits the logistic regression to images; returns self."""
        f = self.features(images.levels)
        mean, std = f.mean(0), f.std(0) + 1e-6
        f = (f - mean) / std
        head = nn.Linear(f.shape[1], len(images.class_names))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.LBFGS(
            head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = F.cross_entropy(head(f), images.labels) + DECAY * head.weight.square().sum()
            found.backward()
            return found

        optimizer.step(loss)
        with torch.no_grad():  # so that it takes features as they come
            head.weight.div_(std)
            head.bias.sub_(head.weight @ mean)
        self.head = head.requires_grad_(False)
        return self

    @torch.no_grad()
    def right(self, features: Tensor, labels: Tensor) -> Tensor:
        """Whether each of features (B, F) tells its label."""
        return self.head(features).argmax(1) == labels
