"""The settings that ``--aug nfa`` alone takes: by the training set, from scratch or fine-tuned."""

from typing import NamedTuple

from .config import settings_string
from .hub import COSINE, LINEAR

DEEP = "conv_p4_small.cifar10"  # a flow that comes with the package, for small photographs


class Advice(NamedTuple):
    """Settings of an `NFAugment`, and where they were measured.

    Attributes:
        flow: as ``--nfa-flow`` takes it; another than linear or cosine is to be fitted.
        cells: of docs/evidence.md, in whose searches they were the best, on average over three
            flows and by little; none for the defaults.
        gains: whether NFA was shown to be ahead of crop and flip in one of these cells.

    >>> Advice(strength=1.0).aug
    'nfa-s1-p0.5'
    """

    flow: str = COSINE
    strength: float = 0.5
    p: float = 0.5
    cells: tuple[str, ...] = ()
    gains: bool = True

    @property
    def aug(self) -> str:
        """The settings as a string.

        >>> Advice().aug
        'nfa-s0.5-p0.5'
        """
        return settings_string({"strength": self.strength, "p": self.p})

    @property
    def why(self) -> str:
        """Where the settings come from, in words.

        >>> Advice().why, Advice(cells=("one", "two"), gains=False).why
        ('the default', 'best on average over three flows in one and two, where no gain was shown')
        """
        if not self.cells:
            return "the default"
        found = f"best on average over three flows in {' and '.join(self.cells)}"
        return found + ", where no gain was shown" * (not self.gains)

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
        return flags_of(self.aug, self.flow) + " --nfa-fit" * self.fit


FEW = 150  # images of a class, up to which there are rules: three times those of the cells
LARGEST = 96  # pixels of a side, up to which the deep flow is taken: those of the fine-tuned cells
FROM_SCRATCH = Advice(strength=1.0, p=0.5, cells=("cifar10-50", "tiny-50"))
FINE_TUNED = Advice(
    strength=0.5, p=0.5, cells=("finetune-cifar10-25", "finetune-gtsrb-25"), gains=False
)


def advise(
    per_class: float | None,
    fine_tuned: bool = False,
    flow: str | None = None,
    size: tuple[int, ...] | None = None,
) -> Advice:
    """The settings to start with.

    Args:
        per_class: training images of a class, on average; None where nobody knows.
        fine_tuned: whether the training starts from pretrained weights.
        flow: the flow, where it is decided; None for the best one.
        size: of the images, (C, H, W), which that depends on; None where nobody knows.

    >>> advise(50).aug, advise(50, fine_tuned=True).aug, advise(5000).cells
    ('nfa-s1-p0.5', 'nfa-s0.5-p0.5', ())
    >>> advise(50, size=(3, 32, 32)).flow, advise(50, size=(3, 224, 224)).flow
    ('conv_p4_small.cifar10', 'cosine')
    """
    small = size is not None and size[0] == 3 and max(size[1:]) <= LARGEST
    if small and depends_on_size(per_class, flow):
        flow = DEEP
    rule = Advice() if not are_few(per_class) else FINE_TUNED if fine_tuned else FROM_SCRATCH
    gains = rule.gains or flow == DEEP  # which gained where the others did not
    return rule._replace(flow=COSINE if flow is None else flow, gains=gains)


def flags_of(aug: str, flow: str) -> str:
    """Settings and flow as flags of a training.

    >>> flags_of("nfa-s1", COSINE), flags_of("nfa-s1", LINEAR)
    ('--aug nfa-s1', '--aug nfa-s1 --nfa-flow linear')
    """
    return f"--aug {aug}" + f" --nfa-flow {flow}" * (flow != COSINE)


def depends_on_size(per_class: float | None, flow: str | None) -> bool:
    """Whether `advise` needs the size of the images.

    >>> depends_on_size(50, None), depends_on_size(5000, None)
    (True, False)
    """
    return flow is None and are_few(per_class)


def are_few(per_class: float | None) -> bool:
    """Whether there are rules for so many images of a class.

    >>> are_few(FEW), are_few(FEW + 1), are_few(None)
    (True, False, False)
    """
    return per_class is not None and per_class <= FEW
