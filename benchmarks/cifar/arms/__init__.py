"""What happens to a batch between crop and loss: an arm, moves along modes as a step of it, and RandAugment."""

from .base import Arm, ClassifierChange, LevelsStep, NFAStep, Policy, apply_policy
from .nfa import Settings, fitted, kept_modes, linear_flow
from .policies import RANDAUGMENT, randaugment

__all__ = [
    "RANDAUGMENT", "Arm", "ClassifierChange", "LevelsStep", "NFAStep", "Policy", "Settings", "apply_policy", "fitted",
    "kept_modes", "linear_flow", "randaugment",
]  # fmt: skip
