"""Mixing of two images and their labels, by timm: Mixup (every batch) and CutMix (half of the batches)."""

from timm.data import Mixup

from .base import Arm, register


@register("mixup")
class MixupArm(Arm):
    """Mixup with weights drawn from Beta(1, 1)."""

    label = "Mixup (1.0) of timm"
    amounts = {"mixup_alpha": 1.0, "cutmix_alpha": 0.0}

    @classmethod
    def make(cls, data, flow, s):
        classes = len(data.class_names)
        return cls(mix=Mixup(**cls.amounts, label_smoothing=0.0, num_classes=classes))


@register("cutmix")
class CutMixArm(MixupArm):
    """CutMix with areas drawn from Beta(1, 1)."""

    label = "CutMix (1.0) of timm, half of the batches"
    amounts = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5}
