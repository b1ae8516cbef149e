"""Move: how a code is moved, and the registry of moves by name.

A move turns standard normal noise into a displacement of codes. To add one, write a file with a
subclass of `Move` under `@register` and import it in `timm_nfaug/moves/__init__.py`; its name then
works in `NFAugment(kind=...)`, in the string ``nfa-mNAME`` and in the preview.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .._utils.checks import check_choice, check_strength
from ..flows.model import ConditionalFlow

CUT = 3.0  # standard deviations; a cut gives every move a bound


class Move(ABC):
    """A displacement of codes made from noise.

    Args:
        modes: number of modes moved along.
        strength: 0 moves nothing, 1 by one standard deviation along each mode (of `rotation`: the
            largest angle, in radians).

    Attributes:
        name: what it is called in `create_move`.
        needs_code: whether `displacement` needs the codes z. A move without runs on the linear
            flow with no look at the images, and from a cache.
    """

    name: ClassVar[str]
    needs_code: ClassVar[bool] = False

    def __init__(self, modes: int = 32, strength: float = 1.0):
        if isinstance(modes, bool) or not isinstance(modes, int) or modes < 1:
            raise ValueError(f"modes must be a positive integer, got {modes!r}")
        self.modes, self.strength = modes, check_strength(strength)

    def noise_size(self, flow: ConditionalFlow) -> int:
        """Random numbers needed per image."""
        return self.modes

    def check(self, flow: ConditionalFlow) -> None:
        """Raises ValueError where this flow does not hold what the move needs."""
        if self.modes > flow.dim:
            raise ValueError(
                f"codes of this flow have {flow.dim} coordinates, {self.modes} modes were asked for; "
                "lower modes"
            )

    def check_stored(self, flow: ConditionalFlow) -> None:
        """Raises ValueError where the flow stores fewer principal modes than wanted."""
        stored = flow.prior.num_modes
        if self.modes > stored:
            raise ValueError(
                f"this flow stores {stored} principal modes per class, {self.modes} were asked for; "
                "lower modes"
            )

    @abstractmethod
    def displacement(
        self, flow: ConditionalFlow, y: Tensor, noise: Tensor, z: Tensor | None = None
    ) -> Tensor:
        """What is added to codes: (B, D).

        Args:
            y: indices of their Gaussians (B,).
            noise: standard normal (B, noise_size).
            z: the codes (B, D), where `needs_code`.
        """


MoveClass = TypeVar("MoveClass", bound=type[Move])
_MOVES: dict[str, type[Move]] = {}


def register(move: MoveClass) -> MoveClass:
    """Class decorator: makes a move known under its `name`."""
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
    """Makes a move by name.

    >>> create_move("pca", modes=8).modes
    8

    Raises:
        ValueError: an unknown name, modes below 1, or a strength that is negative or not finite.
    """
    check_choice("kind", name, list_moves())
    return _MOVES[name](modes, strength)


def draw_noise(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws standard normal numbers cut at +-3: (count, size), float32, on the generator's device.

    >>> draw_noise(2, 5, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5])
    """
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn(count, size, generator=generator, device=device, dtype=torch.float32)
    return noise.clamp_(-CUT, CUT)
