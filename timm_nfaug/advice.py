"""The settings that ``--aug nfa`` alone takes: by the training set, from scratch or fine-tuned."""

from typing import NamedTuple

from .config import settings_string
from .hub import COSINE, LINEAR

DEEP = "conv_p4_small.cifar10"  # a flow that comes with the package, for small photographs


class Advice(NamedTuple):
    """Settings of an `NFAugment`, and where they were measured.

    Attributes:
        flow: as ``--nfa-flow`` takes it; another than linear or cosine is to be fitted.
        most: images of a class, up to which they are taken.
        cell: of docs/evidence.md, in whose search they were the best; "" for the defaults.

    >>> Advice(strength=1.0).aug
    'nfa-s1-p0.5'
    """

    flow: str = LINEAR
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

    @property
    def fit(self) -> bool:
        """Whether the flow is fitted to the training set by ``--nfa-fit``.

        >>> Advice().fit, Advice(DEEP).fit
        (False, True)
        """
        return self.flow not in (LINEAR, COSINE)

    @property
    def flags(self) -> str:
        """The settings as flags of a training.

        >>> Advice(DEEP, 1.0).flags
        '--aug nfa-s1-p0.5 --nfa-flow conv_p4_small.cifar10 --nfa-fit'
        """
        flow = f" --nfa-flow {self.flow}" * (self.flow != LINEAR)
        return f"--aug {self.aug}{flow}{' --nfa-fit' * self.fit}"


FEW = 150  # images of a class: three times those of the cells
SMALL = 64  # pixels of a side: twice those of the cells
FROM_SCRATCH, UNSEEN, FINE_TUNED = "cifar10-50", "tiny-50", "finetune-cifar10-25"
RULES = {  # by flow, and whether the training starts from pretrained weights
    (rule.flow, fine_tuned): rule
    for fine_tuned, rule in (
        (False, Advice(DEEP, 1.0, 0.5, FEW, UNSEEN)),
        (False, Advice(LINEAR, 1.0, 0.5, FEW, FROM_SCRATCH)),
        (False, Advice(COSINE, 1.0, 1.0, FEW, FROM_SCRATCH)),
        (True, Advice(LINEAR, 0.5, 0.5, FEW, FINE_TUNED)),
        (True, Advice(COSINE, 0.5, 0.5, FEW, FINE_TUNED)),
    )
}


def advise(
    per_class: float | None,
    fine_tuned: bool = False,
    flow: str | None = LINEAR,
    size: tuple[int, ...] | None = None,
) -> Advice:
    """The settings to start with.

    Args:
        per_class: training images of a class, on average; None where nobody knows.
        fine_tuned: whether the training starts from pretrained weights.
        flow: the flow, where it is decided; None for the best one.
        size: of the images, (C, H, W), which that depends on; None where nobody knows.

    >>> advise(50).aug, advise(50, fine_tuned=True).aug, advise(5000).cell
    ('nfa-s1-p0.5', 'nfa-s0.5-p0.5', '')
    >>> advise(50, flow=None, size=(3, 32, 32)).flow, advise(50, flow=None, size=(3, 224, 224)).flow
    ('conv_p4_small.cifar10', 'linear')
    """
    small = size is not None and size[0] == 3 and max(size[1:]) <= SMALL
    if small and depends_on_size(per_class, fine_tuned, flow):
        flow = DEEP
    flow = LINEAR if flow is None else flow
    return _rule(per_class, fine_tuned, flow) or Advice(flow)


def depends_on_size(per_class: float | None, fine_tuned: bool, flow: str | None) -> bool:
    """Whether `advise` needs the size of the images.

    >>> depends_on_size(50, False, None), depends_on_size(5000, False, None)
    (True, False)
    """
    return flow is None and _rule(per_class, fine_tuned, DEEP) is not None


def _rule(per_class: float | None, fine_tuned: bool, flow: str) -> Advice | None:
    """The rule of a flow for so many images of a class, if there is one."""
    rule = RULES.get((flow, fine_tuned))
    return rule if rule and per_class is not None and per_class <= rule.most else None
