"""The arms of the classification benchmarks: what happens to a batch between crop and loss. One idea a file."""

from . import (  # each registers its arms
    adversarial,
    controls,
    isda,
    mixing,
    nfa,
    policies,
    rotation,
    safe,
    samples,
    tangent,
)
from .base import (
    ALWAYS,
    ARMS,
    RANDAUGMENT,
    Arm,
    Combination,
    LevelsStep,
    Moved,
    NFAStep,
    Policy,
    Settings,
    apply_policy,
    find,
    make_arm,
    needs_flow,
    register,
)
from .controls import deep_modes, mean_move, patch_flow
from .isda import ISDA
from .nfa import fitted, linear_flow

__all__ = [
    "ALWAYS", "ARMS", "ISDA", "NFAStep", "RANDAUGMENT", "Arm", "Combination", "LevelsStep", "Moved", "Policy",
    "Settings", "adversarial", "apply_policy", "controls", "deep_modes", "find", "fitted", "isda", "linear_flow", "make_arm",
    "mean_move", "mixing", "needs_flow", "nfa", "patch_flow", "policies", "register", "rotation", "safe",
    "samples", "tangent",
]  # fmt: skip
