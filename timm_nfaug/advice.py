"""The settings that ``--aug nfa`` alone takes: by the images of a class, from scratch or fine-tuned."""

from typing import NamedTuple

from .config import settings_string
from .hub import COSINE, LINEAR


class Advice(NamedTuple):
    """Settings of an `NFAugment`, and where they were measured.

    Attributes:
        most: images of a class, up to which they are taken.
        cell: of docs/evidence.md, in whose search they were the best; "" for the defaults.

    >>> Advice(1.0).strength
    1.0
    """

    strength: float = 0.5
    p: float = 0.5
    most: float = float("inf")
    cell: str = ""

    @property
    def aug(self) -> str:
        """The settings as a string.

        >>> Advice().aug
        'nfa-s0.5-p0.5'
        """
        return settings_string({"strength": self.strength, "p": self.p})


FEW = 150  # images of a class: three times those of the first cell
FROM_SCRATCH, FINE_TUNED = "cifar10-50", "finetune-cifar10-25"
RULES = {  # by flow, and whether the training starts from pretrained weights
    (LINEAR, False): Advice(1.0, 0.5, FEW, FROM_SCRATCH),
    (COSINE, False): Advice(1.0, 1.0, FEW, FROM_SCRATCH),
    (LINEAR, True): Advice(0.5, 0.5, FEW, FINE_TUNED),
    (COSINE, True): Advice(0.5, 0.5, FEW, FINE_TUNED),
}


def advise(per_class: float | None, fine_tuned: bool = False, flow: str = LINEAR) -> Advice:
    """The settings to start with.

    Args:
        per_class: training images of a class, on average; None where nobody knows.
        fine_tuned: whether the training starts from pretrained weights.

    >>> advise(50).aug, advise(50, fine_tuned=True).aug, advise(5000).cell
    ('nfa-s1-p0.5', 'nfa-s0.5-p0.5', '')
    """
    rule = RULES.get((flow, fine_tuned), Advice())
    return rule if per_class is not None and per_class <= rule.most else Advice()
