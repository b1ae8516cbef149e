"""Move: how a code is moved, and the registry of moves by name.

A move turns standard normal noise into a displacement of codes. To add one, write a file with a
subclass of `Move` under `@register` and import it in `timm_nfaug/moves/__init__.py`; its name then
works in `NFAugment(kind=...)`, in the string ``nfa-mNAME`` and in the preview.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .._utils.checks import check_choice, check_modes, check_strength
from ..flows.model import ConditionalFlow as Flow

CUT = 3.0  # standard deviations; a cut gives every move a bound
STILL = 1e-3  # of a code, or of the range [-1, 1]: an eighth of a level, which no image shows


class Move(ABC):
    """A displacement of codes made from noise.

    Args:
        modes: number of modes moved along.
        strength: 0 moves nothing, 1 by one standard deviation along each mode.

    Attributes:
        name: what it is called in `create_move`.
        needs_code: whether `displacement` needs the codes z; without, a linear flow never looks at
            the images, and a cache can hold the move.

    >>> [Move in kind.__mro__ for kind in _MOVES.values()]
    [True, True, True, True]
    """

    name: ClassVar[str]
    needs_code: ClassVar[bool] = False

    def __init__(self, modes: int = 32, strength: float = 1.0):
        self.modes, self.strength = check_modes(modes), check_strength(strength)

    def noise_size(self, flow: Flow) -> int:
        """Random numbers needed per image."""
        return self.modes

    def check(self, flow: Flow) -> None:
        """Raises ValueError where this flow does not hold what the move needs."""
        self._check_count(flow.dim, "codes of this flow have {} coordinates")

    def _check_count(self, there: int, what: str) -> None:
        if self.modes > there:
            fit = "find some of your data by NFAugment.to_fit(flow).fit(loader), or --nfa-fit"
            wanted = f"{self.modes} modes were asked for; {'lower modes' if there else fit}"
            raise ValueError(f"{what.format(there)}, {wanted}")

    def unmoved(self, flow: Flow) -> Tensor:
        """Mask (K,) of the Gaussians without modes, whose codes it does not move."""
        return torch.zeros(flow.prior.num_classes, dtype=torch.bool)

    @abstractmethod
    def displacement(self, flow: Flow, y: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
        """What is added to codes z (B, D), of Gaussians y (B,), for noise (B, noise_size)."""


MoveClass = TypeVar("MoveClass", bound=type[Move])
_MOVES: dict[str, type[Move]] = {}


def register(move: MoveClass) -> MoveClass:
    """Makes a move known under its `name`: a class decorator, see `timm_nfaug.moves.pca`.

    >>> register(_MOVES["pca"]).name
    'pca'
    """
    if _MOVES.setdefault(move.name, move) is not move:
        raise ValueError(f"a move named {move.name!r} exists already; choose another name")
    return move


def list_moves() -> list[str]:
    """Names of the moves, in the order they were registered.

    >>> list_moves()[:3]
    ['pca', 'axes', 'isotropic']
    """
    return list(_MOVES)


def create_move(name: str, modes: int = 32, strength: float = 1.0) -> Move:
    """Makes a move by name; raises ValueError for an unknown name, bad modes or strength.

    >>> create_move("pca", modes=8).modes
    8
    """
    check_choice("kind", name, list_moves())
    return _MOVES[name](modes, strength)


def usual_modes(flow: Flow) -> int:
    """How many modes images are moved along by default: 32, or all that a flow stores if fewer.

    >>> import timm_nfaug as nfa
    >>> usual_modes(nfa.create_flow("linear", prior={"num_modes": 8}))
    8
    """
    return min(32, flow.prior.num_modes) or 32  # a flow without modes is moved without them


def draw_noise(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws standard normal numbers cut at +-3: (count, size), float32, on the generator's device.

    >>> draw_noise(2, 5, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5])
    """
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn(count, size, generator=generator, device=device, dtype=torch.float32)
    return noise.clamp_(-CUT, CUT)
